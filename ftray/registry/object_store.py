"""A registry in an object store, or anything else that fsspec opens by URL (`s3://...`, `gs://...`, `memory://...`).

What it relies on, `storage/objects.py` says. Each generation of an alias is an object of its own, created and never
changed or deleted: of any number of writers one creates it, and the highest number is the alias. An adapter is there
when its record is, which is written last. Deleting an adapter and promoting it at the same moment is not kept apart, as
nothing locks two objects: the alias then dangles, which `resolve` says.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftray.errors import RunError
from ftray.registry.names import DIGEST
from ftray.registry.store import RECORD_FILE
from ftray.storage.objects import Objects, encoded

GENERATION = re.compile(r"(?P<generation>\d{8})\.json")
_ADAPTER = re.compile(rf"adapters/(?P<name>[^/]+)/(?P<digest>{DIGEST.pattern})/{re.escape(RECORD_FILE)}")


class ObjectStore:
    """Objects under a URL: adapters/<name>/<digest>/<file> and aliases/<alias>/<generation>.json.

    `cache`: a local folder for fetched adapters, by digest.
    """

    def __init__(self, url: str, *, cache: Path) -> None:
        self._objects = Objects(url, name="registry", failure="registry")
        self._cache = cache

    @property
    def place(self) -> str:
        return self._objects.url

    @contextmanager
    def guard(self) -> Iterator[None]:
        yield

    def scratch(self) -> Path:
        self._cache.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".staged-", dir=self._cache))

    def publish(self, staged: Path, record: Mapping[str, Any]) -> bool:
        place = self._adapter(record["name"], record["digest"])
        is_new = self.record(record["name"], record["digest"]) is None
        if is_new:
            self._objects.require_exclusive()
            for path in sorted(staged.iterdir()):
                self._objects.put(path, f"{place}/{path.name}")
            self._objects.write_json(f"{place}/{RECORD_FILE}", record)
        shutil.rmtree(staged)
        return is_new

    def record(self, name: str, digest: str) -> dict[str, Any] | None:
        return self._objects.read_json(f"{self._adapter(name, digest)}/{RECORD_FILE}")

    def records(self, name: str | None = None) -> list[dict[str, Any]]:
        under = "adapters" if name is None else f"adapters/{name}"
        found = [_ADAPTER.fullmatch(path) for path in self._objects.find(under)]
        records = [self.record(one["name"], one["digest"]) for one in found if one]
        return [record for record in records if record is not None]

    def replace_record(self, record: Mapping[str, Any]) -> None:
        self._objects.write_json(f"{self._adapter(record['name'], record['digest'])}/{RECORD_FILE}", record)

    def folder(self, record: Mapping[str, Any]) -> Path:
        folder = self._cache / str(record["digest"])
        if not folder.is_dir():
            staged = self.scratch()
            place = self._adapter(record["name"], record["digest"])
            for file in record["files"]:
                if not self._objects.get(f"{place}/{file}", staged / file):
                    raise RunError(
                        f"the registry {self.place} has lost {file} of {record['name']}@{record['digest'][:12]}",
                        kind="registry",
                        given=f"{place}/{file}",
                        hint="Register the adapter again: the command that made it does so.",
                    )
            with contextlib.suppress(OSError):
                # Somebody else may have fetched it meanwhile.
                staged.rename(folder)
            shutil.rmtree(staged, ignore_errors=True)
        return folder

    def refetch(self, record: Mapping[str, Any]) -> bool:
        shutil.rmtree(self._cache / str(record["digest"]), ignore_errors=True)
        return True

    def remove(self, name: str, digest: str) -> None:
        # From then on it is not there.
        self._objects.remove(f"{self._adapter(name, digest)}/{RECORD_FILE}")
        for path in self._objects.find(f"adapters/{name}/{digest}"):
            self._objects.remove(path)

    def alias(self, name: str) -> dict[str, Any] | None:
        last = self._generations(f"aliases/{name}").get(name, 0)
        return self._objects.read_json(self._generation(name, last)) if last else None

    def aliases(self) -> dict[str, dict[str, Any]]:
        newest = self._generations("aliases")
        found = {name: self._objects.read_json(self._generation(name, last)) for name, last in newest.items()}
        return {name: alias for name, alias in found.items() if alias is not None}

    def swap(self, alias: Mapping[str, Any]) -> bool:
        name, generation = alias["alias"], alias["generation"]
        present = self._generations(f"aliases/{name}").get(name, 0)
        if generation != present + 1:
            return False
        return self._objects.create(
            self._generation(name, generation), encoded({**alias, "swap": secrets.token_hex(8)})
        )

    def _generations(self, under: str) -> dict[str, int]:
        """Return the highest generation of each alias."""
        highest: dict[str, int] = {}
        for path in self._objects.find(under):
            _, name, file = path.split("/")
            if match := GENERATION.fullmatch(file):
                highest[name] = max(highest.get(name, 0), int(match["generation"]))
        return highest

    def _adapter(self, name: str, digest: str) -> str:
        return f"adapters/{name}/{digest}"

    def _generation(self, alias: str, generation: int) -> str:
        return f"aliases/{alias}/{generation:08d}.json"
