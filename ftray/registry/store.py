"""Where a registry is kept: the seam, and which of its two implementations a place means.

`local_store.py` keeps it in a folder, `object_store.py` in any store that fsspec opens by URL.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

RECORD_FILE = "record.json"
FOLDER = "registry"
"""In the storage folder, where nothing else is said."""


class Store(Protocol):
    """Files of immutable adapters, and aliases that change one generation at a time."""

    @property
    def place(self) -> str:
        """What people call it."""

    def guard(self) -> AbstractContextManager[None]:
        """Let nobody else change aliases or delete inside this block, where the store can; do not nest."""

    def publish(self, staged: Path, record: Mapping[str, Any]) -> bool:
        """Take a folder of files with its record, wholly or not at all; return False where it is there already.

        The staged folder is the store's from then on.
        """

    def record(self, name: str, digest: str) -> dict[str, Any] | None:
        """Return an adapter's record; None where there is no such adapter."""

    def records(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the records of all adapters, or of those of one name, in no order."""

    def replace_record(self, record: Mapping[str, Any]) -> None:
        """Write an adapter's record anew; its files stay."""

    def folder(self, record: Mapping[str, Any]) -> Path:
        """Return a local folder with the adapter's files, fetched where need be. Not verified."""

    def refetch(self, record: Mapping[str, Any]) -> bool:
        """Throw away a local copy, so that `folder` fetches it anew; False where the files are the store's own."""

    def remove(self, name: str, digest: str) -> None:
        """Delete an adapter."""

    def alias(self, name: str) -> dict[str, Any] | None:
        """Return an alias's newest record; None where there never was one. Its `name` is null where it was deleted."""

    def aliases(self) -> dict[str, dict[str, Any]]:
        """Return the newest record of every alias, the deleted ones too, by its name."""

    def swap(self, alias: Mapping[str, Any]) -> bool:
        """Write an alias whose generation is the one after the present one; False where it is not, and nothing done."""

    def scratch(self) -> Path:
        """Return a new local folder, to stage an adapter in."""


def open_store(storage: Path, url: str | None = None) -> Store:
    """Return the store that `url` names, else FTRAY_REGISTRY, else the storage folder's own.

    Raises InputError `bad_store` for a URL that nothing opens.
    """
    from ftray.registry.local_store import LocalStore

    place = url or os.environ.get("FTRAY_REGISTRY") or str(storage / FOLDER)
    if place.startswith("file://"):
        place = place.removeprefix("file://")
    if "://" not in place:
        return LocalStore(Path(place).expanduser())
    from ftray.registry.object_store import ObjectStore

    return ObjectStore(place, cache=storage / "registry-cache")


def fit_generation(present: Mapping[str, Any] | None, alias: Mapping[str, Any]) -> bool:
    """Return whether an alias's new record is the one after the present one."""
    return bool(alias["generation"] == (present["generation"] if present else 0) + 1)


def newest_first(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records in the order people read them in."""
    return sorted(records, key=lambda record: (record["created_at"], record["digest"]), reverse=True)
