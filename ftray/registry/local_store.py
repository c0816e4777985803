"""A registry in a folder.

An adapter appears by one rename of a folder whose files are synced. An alias changes under a lock of the kernel
(flock), which a killed process leaves free: of any number of processes on one machine, or on machines that share a
file system with locks (local disks, NFS 4), one wins each generation. Readers need no lock.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftray.artifacts import read_json, require_writable, try_lock, write_json
from ftray.errors import RunError
from ftray.registry.names import DIGEST
from ftray.registry.store import RECORD_FILE, fit_generation

LOCK_SECONDS = 30.0
"""How long a change waits for another one, which takes milliseconds."""
LEFT_SECONDS = 86_400.0
"""Age at which a staged folder is nobody's any more."""


class LocalStore:
    """A folder: adapters/<name>/<digest>/ and aliases/<alias>.json."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def place(self) -> str:
        return str(self.root)

    @contextmanager
    def guard(self) -> Iterator[None]:
        self._make()
        with (self.root / ".lock").open("a", encoding="utf-8") as file:
            deadline = time.monotonic() + LOCK_SECONDS
            while not try_lock(file):
                if time.monotonic() > deadline:
                    raise RunError(
                        f"another process has been changing {self.root} for {LOCK_SECONDS:g} s",
                        kind="registry_locked",
                        given=str(self.root),
                        hint="End it, then run the command again.",
                    )
                time.sleep(0.002)
            yield

    def scratch(self) -> Path:
        self._make()
        for left in (*self.root.glob(".staged-*"), *self.root.glob(".deleted-*")):
            # Of a process that was killed.
            if left.stat().st_mtime < time.time() - LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        folder = self.root / f".staged-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        return folder

    def publish(self, staged: Path, record: Mapping[str, Any]) -> bool:
        target = self._folder(record["name"], record["digest"])
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(staged / RECORD_FILE, dict(record))
        sync(staged)
        try:
            # A folder takes no other folder's place unless that one is empty.
            staged.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(staged)
            return False
        sync(target.parent)
        return True

    def record(self, name: str, digest: str) -> dict[str, Any] | None:
        path = self._folder(name, digest) / RECORD_FILE
        try:
            return dict(read_json(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def records(self, name: str | None = None) -> list[dict[str, Any]]:
        root = self.root / "adapters"
        names = [name] if name is not None else sorted(path.name for path in _folders(root))
        digests = [(one, path.name) for one in names for path in _folders(root / one)]
        found = [self.record(one, digest) for one, digest in digests if DIGEST.fullmatch(digest)]
        return [record for record in found if record is not None]

    def replace_record(self, record: Mapping[str, Any]) -> None:
        write_json(self._folder(record["name"], record["digest"]) / RECORD_FILE, dict(record))

    def folder(self, record: Mapping[str, Any]) -> Path:
        return self._folder(record["name"], record["digest"])

    def refetch(self, record: Mapping[str, Any]) -> bool:
        return False

    def remove(self, name: str, digest: str) -> None:
        folder = self._folder(name, digest)
        gone = self.root / f".deleted-{os.getpid()}-{secrets.token_hex(4)}"
        # It is gone at once, or not at all.
        folder.rename(gone)
        sync(folder.parent)
        shutil.rmtree(gone)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()

    def alias(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(read_json(self._alias(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def aliases(self) -> dict[str, dict[str, Any]]:
        root = self.root / "aliases"
        names = sorted(path.stem for path in root.glob("[a-z0-9]*.json")) if root.is_dir() else []
        found = {name: self.alias(name) for name in names}
        return {name: alias for name, alias in found.items() if alias is not None}

    def swap(self, alias: Mapping[str, Any]) -> bool:
        path = self._alias(alias["alias"])
        if not fit_generation(self.alias(alias["alias"]), alias):
            return False
        path.parent.mkdir(exist_ok=True)
        write_json(path, dict(alias))
        sync(path.parent)
        return True

    def _make(self) -> None:
        if not self.root.is_dir():
            require_writable(self.root, hint="Choose another place with --registry, FTRAY_REGISTRY or --storage.")

    def _folder(self, name: str, digest: str) -> Path:
        return self.root / "adapters" / name / digest

    def _alias(self, name: str) -> Path:
        return self.root / "aliases" / f"{name}.json"


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
