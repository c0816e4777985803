"""Keep a folder of a working copy and the store the same: fetch what others wrote, publish what this process did.

Who writes a file publishes it, and nobody else does, so that no machine overwrites another's newer file: rank 0 of a
training what training leaves (`of_training`), the command that runs it all the rest. Where both have a file and nobody
has published it yet, the store's is the truth. A checkpoint is in the store from the moment its manifest is, as in a
folder; the lines of metrics.jsonl up to it are there before.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ftray.artifacts import MANIFEST, is_held, try_lock, write_json
from ftray.storage.lease import Held, Lease, Tenancy, hold
from ftray.storage.objects import Objects, Version
from ftray.storage.publisher import CHECKPOINT_FILE, Publisher, Shelf, files_below, is_hidden, seen

Wanted = Callable[[str], bool]
"""Whether a file of a folder, by its name in it, is meant."""
CHECKPOINT_FOLDER = re.compile(r"(?:^|/)checkpoints/step-\d+$")
KNOWN = ".store.json"
"""In a mirrored folder: which version of each object its files are."""
FETCHING = ".fetching.lock"
DRIVER = "driver"
WORKER = "worker"
"""Whose leases there are: of the command that runs a job, and of rank 0 of its workers."""
WRITERS = (".driver.lock", ".worker.lock")
"""What processes of this machine hold that write into a folder."""
TRAINING_FILES = ("metrics.jsonl", "selection.json", "evaluation.json", "predictions.jsonl")
TRAINING_FOLDERS = ("checkpoints/", "adapter/", "tensorboard/")


def of_training(name: str) -> bool:
    """Return whether a file of a run is written by rank 0 of its training."""
    return name in TRAINING_FILES or name.startswith(TRAINING_FOLDERS)


def of_trial(name: str) -> bool:
    """Return whether a file of a trial is written by its trainer; its adapter is kept by the campaign."""
    return name == "trial.json" or (of_training(name) and not name.startswith("adapter/"))


def of_campaign(name: str) -> bool:
    """Return whether a file of a campaign is written by the command that runs it."""
    return "/" not in name


def is_record(name: str) -> bool:
    """Return whether a file is anything but the weights of checkpoints: their manifests say which there are."""
    return CHECKPOINT_FILE.search(name) is None or name.endswith(f"/{MANIFEST}")


def is_brief(name: str) -> bool:
    """Return whether a file of a run or campaign is read to list them."""
    listed = ("job.json", "result.json", "sweep.json", "metrics.jsonl")
    return name in listed or name.startswith(f"{DRIVER}-lease/") or name.endswith("/trial.json")


def everything(name: str) -> bool:
    """Return True: all files are meant."""
    return True


class Mirror(Protocol):
    """A folder of the storage on this machine, and its place in the store."""

    folder: Path

    @property
    def is_remote(self) -> bool:
        """Whether there is a store beside the folder."""

    def fetch(self, wanted: Wanted = everything, *, as_reader: bool = False) -> None:
        """Make the wanted files of the folder what the store has; what it does not have is deleted here.

        `as_reader`: leave a folder alone that a process of this machine is writing: it is newer than the store.
        """

    def publish(self, *names: str) -> None:
        """Put files, or all files of folders, into the store; those that are not here are left out."""

    def read(self, name: str, *, start: int | None = None) -> bytes | None:
        """Return a file's content as the store has it, from `start` on; None where there is none."""

    def size(self, name: str) -> int | None:
        """Return a file's bytes in the store; None where there is none."""

    def remove(self, name: str) -> None:
        """Delete a file in the store."""

    def holding(self, name: str) -> contextlib.AbstractContextManager[Lease | None]:
        """Hold a lease on the folder against processes on other machines.

        Raises InputError `run_locked` while another process holds it.
        """

    def under(self, name: str, number: int | None) -> Held | None:
        """Return what allows to write under another process's tenure of a lease."""

    def shelf(self, wanted: Wanted) -> Shelf | None:
        """Return what a publisher publishes of this folder; None where there is nothing to do."""

    def publishing(self, wanted: Wanted, *, lease: Held | None = None) -> contextlib.AbstractContextManager[Publisher]:
        """Publish the wanted files all the while they are written, and all of them when the block ends.

        `lease`: without it nothing may be published any more.
        """


class FolderMirror:
    """A folder that is its own store: everybody reaches it."""

    is_remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fetch(self, wanted: Wanted = everything, *, as_reader: bool = False) -> None:
        pass

    def publish(self, *names: str) -> None:
        pass

    def read(self, name: str, *, start: int | None = None) -> bytes | None:
        file = self.folder / name
        return file.read_bytes()[start or 0 :] if file.is_file() else None

    def size(self, name: str) -> int | None:
        file = self.folder / name
        return file.stat().st_size if file.is_file() else None

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def holding(self, name: str) -> contextlib.AbstractContextManager[Lease | None]:
        return contextlib.nullcontext()

    def under(self, name: str, number: int | None) -> Held | None:
        return None

    def shelf(self, wanted: Wanted) -> Shelf | None:
        return None

    def publishing(self, wanted: Wanted, *, lease: Held | None = None) -> contextlib.AbstractContextManager[Publisher]:
        return contextlib.nullcontext(Publisher())


class ObjectMirror:
    """A folder of a working copy, and the objects below its name in the store."""

    is_remote = True

    def __init__(self, objects: Objects, folder: Path, name: str, *, machine: str) -> None:
        self._objects = objects
        self._machine = machine
        self.folder = folder
        self._prefix = f"{name}/" if name else ""

    def fetch(self, wanted: Wanted = everything, *, as_reader: bool = False) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            # A writer holds its lock before it fetches itself, and so before it writes.
            if as_reader and any(is_held(lock) for lock in _locks(self.folder)):
                return
            there = self._listing(wanted)
            known = self._known()
            checkpoints = _checkpoints(there)
            for folder in _local_checkpoints(self.folder, wanted):
                if folder not in checkpoints:
                    drop_checkpoint(self.folder / folder)
            for folder, names in checkpoints.items():
                self._fetch_checkpoint(folder, names)
            plain = {name: version for name, version in there.items() if CHECKPOINT_FILE.search(name) is None}
            for name in files_below(self.folder):
                if CHECKPOINT_FILE.search(name) is None and wanted(name) and name not in plain:
                    (self.folder / name).unlink(missing_ok=True)
                    known.pop(name, None)
            for name, version in plain.items():
                self._fetch_file(name, version, known)
            write_json(self.folder / KNOWN, known)

    def _listing(self, wanted: Wanted) -> dict[str, Version]:
        found = self._objects.find(self._prefix.rstrip("/"))
        names = {name.removeprefix(self._prefix): version for name, version in found.items()}
        return {name: version for name, version in names.items() if not is_hidden(name) and wanted(name)}

    def _known(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / KNOWN).read_bytes()))
        except (FileNotFoundError, ValueError):
            return {}

    def _fetch_file(self, name: str, version: Version, known: dict[str, Any]) -> None:
        file = self.folder / name
        is_same = name in known and file.is_file() and known[name] == [version.tag, *seen(file)]
        if is_same and version.tag:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        if self._objects.get(self._prefix + name, file):
            if version.modified is not None:
                os.utime(file, (version.modified, version.modified))
            known[name] = [version.tag, *seen(file)]

    def _fetch_checkpoint(self, folder: str, names: list[str]) -> None:
        """Fetch these files of a checkpoint unless they are here; its manifest goes first and comes last."""
        local, payload = self.folder / folder, [name for name in names if not name.endswith(f"/{MANIFEST}")]
        manifest = self._objects.read(f"{self._prefix}{folder}/{MANIFEST}")
        if manifest is None:
            return
        if (local / MANIFEST).is_file() and (local / MANIFEST).read_bytes() == manifest:
            sizes = {name: entry["bytes"] for name, entry in json.loads(manifest)["files"].items()}
            payload = [name for name in payload if not _has_size(self.folder / name, sizes)]
            if not payload:
                return
        else:
            drop_checkpoint(local)
        local.mkdir(parents=True, exist_ok=True)
        (local / MANIFEST).unlink(missing_ok=True)
        if all(self._objects.get(self._prefix + name, self.folder / name) for name in payload):
            part = local / f".{MANIFEST}.part"
            part.write_bytes(manifest)
            part.replace(local / MANIFEST)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other process of this machine fetch into the same folder meanwhile."""
        with (self.folder / FETCHING).open("a", encoding="utf-8") as file:
            try_lock(file, waits=True)
            yield

    def publish(self, *names: str) -> None:
        for name in names:
            path = self.folder / name
            found = [f"{name}/{below}" for below in files_below(path)] if path.is_dir() else [name]
            for one in found:
                with contextlib.suppress(FileNotFoundError):
                    self._objects.put(self.folder / one, self._prefix + one)

    def read(self, name: str, *, start: int | None = None) -> bytes | None:
        return self._objects.read(self._prefix + name, start=start)

    def size(self, name: str) -> int | None:
        return self._objects.size(self._prefix + name)

    def remove(self, name: str) -> None:
        self._objects.remove(self._prefix + name)

    def holding(self, name: str) -> contextlib.AbstractContextManager[Lease | None]:
        return hold(self._objects, f"{self._prefix}{name}-lease", what=self._what, machine=self._machine)

    def under(self, name: str, number: int | None) -> Held | None:
        assert number is not None, "who writes into a store holds a lease"
        return Tenancy(self._objects, f"{self._prefix}{name}-lease", number, what=self._what)

    @property
    def _what(self) -> str:
        return f"{self._objects.url}/{self._prefix}".rstrip("/")

    @contextlib.contextmanager
    def publishing(self, wanted: Wanted, *, lease: Held | None = None) -> Iterator[Publisher]:
        publisher = Publisher(lease=lease)
        publisher.add(self.shelf(wanted))
        try:
            yield publisher
        except BaseException:
            publisher.close(is_failing=True)
            raise
        publisher.close()
        self._note(publisher)

    def shelf(self, wanted: Wanted) -> Shelf:
        """Return what of this folder is published, and that what has just been fetched is there already."""
        there = self._listing(wanted)
        put = {
            name: (entry[1], entry[2])
            for name, entry in self._known().items()
            if name in there and there[name].tag == entry[0]
        }
        manifests = {
            folder: (self.folder / folder / MANIFEST).read_bytes()
            for folder in _local_checkpoints(self.folder, wanted)
            if f"{folder}/{MANIFEST}" in there and (self.folder / folder / MANIFEST).is_file()
        }
        return Shelf(
            objects=self._objects,
            folder=self.folder,
            prefix=self._prefix,
            wanted=wanted,
            put=put,
            checkpoints=manifests,
        )

    def _note(self, publisher: Publisher) -> None:
        """Note that the files here are those in the store, so that nobody on this machine fetches them."""
        with self._alone():
            known, there = self._known(), self._listing(everything)
            for shelf in publisher.shelves:
                for name, state in shelf.put.items():
                    file = self.folder / name
                    if name in there and file.is_file() and seen(file) == state:
                        known[name] = [there[name].tag, *state]
            write_json(self.folder / KNOWN, known)


def drop_checkpoint(folder: Path) -> None:
    """Delete a checkpoint here; its manifest goes first."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(there: dict[str, Version]) -> dict[str, list[str]]:
    """Return the files of every checkpoint that is whole in the store, by its folder."""
    found: dict[str, list[str]] = {}
    for name in there:
        if CHECKPOINT_FILE.search(name):
            found.setdefault(str(PurePosixPath(name).parent), []).append(name)
    return {folder: names for folder, names in found.items() if f"{folder}/{MANIFEST}" in names}


def _local_checkpoints(folder: Path, wanted: Wanted) -> list[str]:
    """Return the folders of checkpoints here, whole or not."""
    found = [Path(path).relative_to(folder).as_posix() for path, _, _ in os.walk(folder)]
    return [name for name in sorted(found) if CHECKPOINT_FOLDER.search(name) and wanted(f"{name}/{MANIFEST}")]


def _locks(folder: Path) -> list[Path]:
    """Return the locks of those that may write into a folder or into one below it."""
    return [Path(path) / name for path, _, files in os.walk(folder) for name in files if name in WRITERS]


def _has_size(file: Path, sizes: dict[str, int]) -> bool:
    return file.is_file() and sizes.get(file.name, file.stat().st_size) == file.stat().st_size
