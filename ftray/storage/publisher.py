"""Mirror folders into the store while they are written, from a thread of its own.

Nothing waits for it but the end of a training. A file that has changed is put again, whole; a checkpoint's files go
before the metrics, and these before its manifest, so that whoever goes on from a checkpoint in the store finds the
lines up to it. A checkpoint that was pruned goes with its manifest first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftray.artifacts import MANIFEST
from ftray.errors import RunError
from ftray.storage.lease import Held, LeaseLost
from ftray.storage.objects import Objects

EVERY_SECONDS = 2.0
PATIENCE_SECONDS = 120.0
"""How long a store may refuse before the training ends."""
CHECKPOINT_FILE = re.compile(r"(?:^|/)checkpoints/step-\d+/[^/]+$")
State = tuple[int, int]
"""What shows that a file has changed: its bytes and its time."""


@dataclass(slots=True, kw_only=True)
class Shelf:
    """A folder that is published, and what of it is in the store."""

    objects: Objects
    folder: Path
    prefix: str
    wanted: Callable[[str], bool]
    put: dict[str, State] = field(default_factory=dict)
    checkpoints: dict[str, bytes] = field(default_factory=dict)
    """Manifests by the checkpoint's folder."""
    begun: dict[str, bytes] = field(default_factory=dict)
    """Of checkpoints of which there may be files without the manifest."""

    def push(self) -> None:
        """Make the store what the folder is. Raises RunError where the store refuses."""
        here = self._manifests()
        for folder, manifest in [*self.checkpoints.items(), *self.begun.items()]:
            if here.get(folder) != manifest:
                self._withdraw(folder, manifest)
        fresh = {folder: manifest for folder, manifest in here.items() if folder not in self.checkpoints}
        whole = [folder for folder, manifest in fresh.items() if self._put_weights(folder, manifest)]
        self._push_files()
        for folder in whole:
            if self._manifest(folder) == fresh[folder]:
                self.objects.write(f"{self.prefix}{folder}/{MANIFEST}", fresh[folder])
                self.checkpoints[folder] = self.begun.pop(folder)
            else:
                # Pruned since: what was put of it would be nobody's.
                self._withdraw(folder, fresh[folder])

    def _manifests(self) -> dict[str, bytes]:
        found = {}
        for name in files_below(self.folder):
            if CHECKPOINT_FILE.search(name) and name.endswith(f"/{MANIFEST}") and self.wanted(name):
                folder = name.removesuffix(f"/{MANIFEST}")
                if (manifest := self._manifest(folder)) is not None:
                    found[folder] = manifest
        return found

    def _manifest(self, folder: str) -> bytes | None:
        """Return a checkpoint's manifest; None where there is none, or one that is damaged."""
        try:
            content = (self.folder / folder / MANIFEST).read_bytes()
            json.loads(content)["files"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return content

    def _put_weights(self, folder: str, manifest: bytes) -> bool:
        """Put a checkpoint's files; return False when it has been pruned meanwhile."""
        self.begun[folder] = manifest
        for name in json.loads(manifest)["files"]:
            try:
                self.objects.put(self.folder / folder / name, f"{self.prefix}{folder}/{name}")
            except FileNotFoundError:
                self._withdraw(folder, manifest)
                return False
        return True

    def _withdraw(self, folder: str, manifest: bytes) -> None:
        self.objects.remove(f"{self.prefix}{folder}/{MANIFEST}")
        self.checkpoints.pop(folder, None)
        for name in json.loads(manifest)["files"]:
            self.objects.remove(f"{self.prefix}{folder}/{name}")
        self.begun.pop(folder, None)

    def _push_files(self) -> None:
        """Put the other files that have changed, and delete those that are gone."""
        there = set()
        for name in files_below(self.folder):
            if CHECKPOINT_FILE.search(name) or "/checkpoints/" in f"/{name}" or not self.wanted(name):
                continue
            with contextlib.suppress(FileNotFoundError):
                state = seen(self.folder / name)
                there.add(name)
                if self.put.get(name) != state:
                    self.objects.put(self.folder / name, self.prefix + name)
                    self.put[name] = state
        for name in set(self.put) - there:
            if not (self.folder / name).exists():
                self.objects.remove(self.prefix + name)
                del self.put[name]


class Publisher:
    """Pushes shelves again and again; without any it does nothing."""

    def __init__(
        self, *, lease: Held | None = None, every: float = EVERY_SECONDS, patience: float = PATIENCE_SECONDS
    ) -> None:
        """`every`: seconds between two rounds; `patience`: how long a store may refuse; `lease`: what must be held."""
        self.shelves: list[Shelf] = []
        self._lease = lease
        self._every, self._patience = every, patience
        self._pushing = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing_since: float | None = None
        self._failure: RunError | None = None

    def add(self, shelf: Shelf | None) -> None:
        """Publish a further folder; it begins with the first one."""
        if shelf is None:
            return
        with self._pushing:
            self.shelves.append(shelf)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
            self._thread.start()

    def drop(self, folder: Path) -> None:
        """Publish a folder no more; what it has now is published first. Raises RunError as `flush` does."""
        with self._pushing:
            leaving = [shelf for shelf in self.shelves if shelf.folder == folder]
            self.shelves = [shelf for shelf in self.shelves if shelf.folder != folder]
        for shelf in leaving:
            self._insist([shelf])

    def _run(self) -> None:
        while not self._done.wait(self._every):
            try:
                self._push(self.shelves)
                self._failing_since = self._failure = None
            except LeaseLost as error:
                self._failure = error
                return
            except RunError as error:
                since = self._failing_since = self._failing_since or time.monotonic()
                if time.monotonic() - since > self._patience:
                    # Whoever does not watch, a campaign, goes on, and so does this when the store answers again.
                    self._failure = self._lost(error)

    def _push(self, shelves: Sequence[Shelf]) -> None:
        with self._pushing:
            for shelf in shelves:
                if self._lease is not None:
                    self._lease.verify()
                try:
                    shelf.push()
                except OSError as error:
                    raise RunError(
                        f"what is in {shelf.folder} cannot be published: {error}", kind="unknown", given=str(error)
                    ) from error

    def require(self) -> None:
        """Raise RunError `communication` once the store has refused for too long."""
        if self._failure is not None:
            raise self._failure

    def watching(self, tell: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        """Return `tell`, which ends the training by an error once the store has refused for too long."""

        def told(line: dict[str, Any]) -> None:
            self.require()
            tell(line)

        return told

    def flush(self, folder: Path | None = None) -> None:
        """Publish everything, or one of the folders, now. Raises RunError `communication` where it cannot be."""
        self._insist([shelf for shelf in self.shelves if folder in (None, shelf.folder)])

    def _insist(self, shelves: Sequence[Shelf]) -> None:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self._push(shelves)
                return
            except LeaseLost:
                raise
            except RunError as error:
                if time.monotonic() > deadline:
                    raise self._lost(error) from error
            time.sleep(min(self._every, 1.0))

    def close(self, *, is_failing: bool = False) -> None:
        """Publish what there is and end; while something else ends the training (`is_failing`) one try is made."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        if not is_failing:
            self.flush()
            return
        with contextlib.suppress(RunError):
            self._push(self.shelves)

    def _lost(self, error: RunError) -> RunError:
        steps = sorted(folder.rpartition("-")[2] for shelf in self.shelves for folder in shelf.checkpoints)
        kept = f"its newest checkpoint there is of step {int(steps[-1])}" if steps else "it holds no checkpoint yet"
        return RunError(
            f"the store has taken nothing for {self._patience:g} s, and {kept}: what came after it is lost "
            f"({error.message})",
            kind="communication",
            given=error.given,
            hint="When the store answers again, run the same command: it goes on from what the store has.",
        )


def files_below(folder: Path) -> Iterator[str]:
    """Yield the names of a folder's files that are nobody's own: none with a part that begins with a dot."""
    # Not `rglob`, which fails where a folder is deleted meanwhile.
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            if not is_hidden(name):
                yield (Path(path) / name).relative_to(folder).as_posix()


def is_hidden(name: str) -> bool:
    """Return whether a file is in the making, or means something on one machine only."""
    return any(part.startswith(".") for part in name.split("/"))


def seen(file: Path) -> State:
    """Return what shows that a file has changed. Raises FileNotFoundError."""
    known = file.stat()
    return known.st_size, known.st_mtime_ns
