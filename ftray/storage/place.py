"""Where runs are kept: a folder, or a URL with a working copy of it on each machine, laid out as a folder is.

A working copy is `${FTRAY_CACHE:-~/.cache/ftray}/storage/<12 digits of the URL's digest>`. Everything that reads and
writes runs works on it; `Mirror` fetches from the store what others have written, and publishes what this process has.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ftray.artifacts import require_writable
from ftray.errors import InputError
from ftray.storage.lease import machine_id
from ftray.storage.mirror import FolderMirror, Mirror, ObjectMirror
from ftray.storage.objects import Objects

SETTING = "--storage DIR, FTRAY_STORAGE or the job's `storage`"
REGISTRY = "registry"
"""Folder of the storage that is the registry, where nothing else is said."""
ID_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Place:
    """A storage. It crosses process borders: the working copy is that of the process that asks."""

    spelling: str
    """A folder's absolute path, or a URL."""

    @property
    def url(self) -> str | None:
        """The URL; None for a folder."""
        return self.spelling if is_url(self.spelling) else None

    @property
    def folder(self) -> Path:
        """The folder, or the working copy."""
        if self.url is None:
            return Path(self.spelling)
        return cache_folder() / "storage" / _digest(self.spelling)

    @property
    def registry_url(self) -> str | None:
        """Where the registry is, where the working copy is not the place for it."""
        return os.environ.get("FTRAY_REGISTRY") or (f"{self.url}/{REGISTRY}" if self.url else None)

    def objects(self) -> Objects:
        """Open the store. Raises InputError for a URL that nothing opens."""
        assert self.url is not None, "a folder has no objects"
        return _objects(self.url)

    def mirror(self, folder: Path) -> Mirror:
        """Return what keeps a folder of this storage and the store the same; for a folder there is nothing to do."""
        if self.url is None:
            return FolderMirror(folder)
        return ObjectMirror(self.objects(), self.here(folder), self.name(folder), machine=machine_id(cache_folder()))

    def require(self, *, writes: bool = True) -> None:
        """Raise InputError `bad_store` where the store cannot be used as runs use it; a folder is asked elsewhere.

        `storage` where this machine can have no working copy of it. `writes`: False where reading is enough.
        """
        if self.url is not None:
            require_writable(self.folder, hint="Name another place for working copies: export FTRAY_CACHE=DIR.")
            self.objects().require(setting=SETTING, writes=writes)

    def here(self, path: Path) -> Path:
        """Return this process's path of what a record calls `path`, in the working copy of whoever wrote it."""
        return path if self.url is None else self.folder / self.name(path)

    def name(self, path: Path) -> str:
        """Return the name of a path in the storage, in whichever working copy of it."""
        if self.url is None:
            return path.relative_to(self.folder).as_posix()
        parts = path.parts
        ours = ("storage", _digest(self.url))
        found = [index for index in range(len(parts) - 1) if parts[index : index + 2] == ours]
        if not found:
            raise ValueError(f"{path} is in no working copy of {self.url}")
        return "/".join(parts[found[-1] + 2 :])

    def holds(self, path: Path) -> bool:
        """Return whether a path lies in this storage's working copy; never for a folder."""
        return self.url is not None and path.is_relative_to(self.folder)

    def spell(self, path: Path) -> str:
        """Return what people on any machine can call a path of this storage by."""
        return str(path) if self.url is None else f"{self.url}/{self.name(path)}".rstrip("/")


def open_place(given: str | Path, *, base: Path | None = None) -> Place:
    """Return the place that a setting names; a relative folder is taken from `base`, else from here.

    Raises InputError for a URL with a password in it, which every record of the job would show.
    """
    text = str(given)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if not is_url(text):
        return Place(str((base or Path.cwd()) / Path(text).expanduser()))
    protocol, _, rest = text.partition("://")
    if "@" in rest.split("/")[0]:
        raise InputError(
            f"the storage {protocol}://... has credentials in it, which the records of every run would show",
            kind="bad_value",
            given=f"{protocol}://...@{rest.partition('@')[2]}",
            allowed=f"{protocol}://bucket/prefix",
            hint="Give them in the environment: for s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
            path="storage",
        )
    if not re.fullmatch(r"[^?#\s]+", rest.strip("/")):
        raise InputError(
            f"the storage {text!r} names no place",
            kind="bad_value",
            given=text,
            allowed="a folder, or a URL such as s3://bucket/prefix",
            hint=f"Correct {SETTING}.",
            path="storage",
        )
    return Place(f"{protocol}://{rest.rstrip('/')}")


def is_url(text: str) -> bool:
    """Return whether a setting names a store rather than a folder."""
    return "://" in text


def cache_folder() -> Path:
    """Return where this machine keeps working copies."""
    return Path(os.environ.get("FTRAY_CACHE") or "~/.cache/ftray").expanduser().absolute()


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:ID_DIGITS]


@functools.lru_cache(maxsize=8)
def _objects(url: str) -> Objects:
    # One connection for all of a process: what a store has proven is not asked again.
    return Objects(url)
