"""A registry in an object store, or anything else that fsspec opens by URL (`s3://...`, `gs://...`, `memory://...`).

What it relies on: writing an object is all or nothing, listing shows what has been written, and an object can be
created only where there is none (S3: If-None-Match; Google: ifGenerationMatch=0). Each generation of an alias is an
object of its own, created and never changed or deleted: of any number of writers one creates it, and the highest number
is the alias. An adapter is there when its record is, which is written last. Deleting an adapter and promoting it at the
same moment is not kept apart, as nothing locks two objects: the alias then dangles, which `resolve` says.

`memory://` keeps this within one process. Stores whose fsspec class creates by looking first are refused.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftray.artifacts import jsonable
from ftray.errors import InputError, RunError
from ftray.registry.names import DIGEST
from ftray.registry.store import RECORD_FILE

GENERATION = re.compile(r"(?P<generation>\d{8})\.json")
_ADAPTER = re.compile(rf"adapters/(?P<name>[^/]+)/(?P<digest>{DIGEST.pattern})/{re.escape(RECORD_FILE)}")


class ObjectStore:
    """Objects under a URL: adapters/<name>/<digest>/<file> and aliases/<alias>/<generation>.json.

    `cache`: a local folder for fetched adapters, by digest.
    """

    def __init__(self, url: str, *, cache: Path) -> None:
        self._files, self._root = _open(url)
        self._url = url.rstrip("/")
        self._cache = cache
        self._is_proven = False

    @property
    def place(self) -> str:
        return self._url

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
            self._require_exclusive()
            with self._speaking():
                for path in sorted(staged.iterdir()):
                    self._files.put_file(str(path), f"{place}/{path.name}")
                self._write(f"{place}/{RECORD_FILE}", record)
        shutil.rmtree(staged)
        return is_new

    def record(self, name: str, digest: str) -> dict[str, Any] | None:
        return self._read(f"{self._adapter(name, digest)}/{RECORD_FILE}")

    def records(self, name: str | None = None) -> list[dict[str, Any]]:
        found = [_ADAPTER.fullmatch(path) for path in self._find("adapters" if name is None else f"adapters/{name}")]
        records = [self.record(one["name"], one["digest"]) for one in found if one]
        return [record for record in records if record is not None]

    def replace_record(self, record: Mapping[str, Any]) -> None:
        with self._speaking():
            self._write(f"{self._adapter(record['name'], record['digest'])}/{RECORD_FILE}", record)

    def folder(self, record: Mapping[str, Any]) -> Path:
        folder = self._cache / str(record["digest"])
        if not folder.is_dir():
            staged = self.scratch()
            place = self._adapter(record["name"], record["digest"])
            with self._speaking():
                for file in record["files"]:
                    self._files.get_file(f"{place}/{file}", str(staged / file))
            with contextlib.suppress(OSError):
                # Somebody else may have fetched it meanwhile.
                staged.rename(folder)
            shutil.rmtree(staged, ignore_errors=True)
        return folder

    def refetch(self, record: Mapping[str, Any]) -> bool:
        shutil.rmtree(self._cache / str(record["digest"]), ignore_errors=True)
        return True

    def remove(self, name: str, digest: str) -> None:
        place = self._adapter(name, digest)
        with self._speaking():
            # From then on it is not there.
            self._files.rm_file(f"{place}/{RECORD_FILE}")
            for path in self._find(f"adapters/{name}/{digest}"):
                self._files.rm_file(f"{self._root}/{path}")

    def alias(self, name: str) -> dict[str, Any] | None:
        last = self._generations(f"aliases/{name}").get(name, 0)
        return self._read(self._generation(name, last)) if last else None

    def aliases(self) -> dict[str, dict[str, Any]]:
        found = {name: self._read(self._generation(name, last)) for name, last in self._generations("aliases").items()}
        return {name: alias for name, alias in found.items() if alias is not None}

    def swap(self, alias: Mapping[str, Any]) -> bool:
        name, generation = alias["alias"], alias["generation"]
        present = self._generations(f"aliases/{name}").get(name, 0)
        return generation == present + 1 and self._create(self._generation(name, generation), alias)

    def _generations(self, under: str) -> dict[str, int]:
        """Return the highest generation of each alias."""
        highest: dict[str, int] = {}
        for path in self._find(under):
            _, name, file = path.split("/")
            if match := GENERATION.fullmatch(file):
                highest[name] = max(highest.get(name, 0), int(match["generation"]))
        return highest

    def _create(self, path: str, record: Mapping[str, Any]) -> bool:
        """Write an object where there is none; return whether it is ours that is there now."""
        self._require_exclusive()
        ours = _encoded({**record, "swap": secrets.token_hex(8)})
        with self._speaking():
            try:
                self._files.pipe_file(path, ours, mode="create")
            except FileExistsError:
                # A repeated request may have met its own first attempt.
                return bool(self._files.cat_file(path) == ours)
        return True

    def _require_exclusive(self) -> None:
        """Raise InputError `bad_store` unless the store refuses to create an object twice; asked once."""
        if self._is_proven:
            return
        from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]

        looks_first = type(self._files).pipe_file is AbstractFileSystem.pipe_file
        path = f"{self._root}/.probe-{secrets.token_hex(8)}"
        with self._speaking():
            try:
                self._files.pipe_file(path, b"1", mode="create")
                self._files.pipe_file(path, b"2", mode="create")
            except FileExistsError:
                self._is_proven = not looks_first
            finally:
                self._files.rm_file(path)
        if not self._is_proven:
            raise InputError(
                f"{self._url} cannot create an object only where there is none: two promotions could both win",
                kind="bad_store",
                given=self._url,
                allowed="a folder, S3, Google Cloud Storage, or one whose fsspec class has pipe_file(mode='create')",
                hint="Use another store for the registry, or a newer version of its fsspec package.",
            )

    def _find(self, under: str) -> list[str]:
        """Return the objects below a path, relative to the root."""
        with self._speaking():
            self._files.invalidate_cache()
            try:
                found = self._files.find(f"{self._root}/{under}")
            except FileNotFoundError:
                return []
        start = f"{self._root}/".lstrip("/")
        return [path.lstrip("/").removeprefix(start) for path in found]

    def _read(self, path: str) -> dict[str, Any] | None:
        with self._speaking():
            try:
                content = self._files.cat_file(path)
            except FileNotFoundError:
                return None
        return dict(json.loads(content))

    def _write(self, path: str, record: Mapping[str, Any]) -> None:
        self._files.pipe_file(path, _encoded(record))

    def _adapter(self, name: str, digest: str) -> str:
        return f"{self._root}/adapters/{name}/{digest}"

    def _generation(self, alias: str, generation: int) -> str:
        return f"{self._root}/aliases/{alias}/{generation:08d}.json"

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turn what a store says into one screen."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"the registry {self._url} does not answer as it should: {type(error).__name__}: {error}",
                kind="registry",
                given=self._url,
                hint="See whether the store is there and its credentials hold; then run the same command again.",
            ) from error


def _encoded(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(jsonable(record), indent=2, ensure_ascii=False) + "\n").encode()


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it. Raises InputError `bad_store`."""
    import fsspec  # type: ignore[import-untyped]

    try:
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"the registry {url!r} cannot be opened: {error}",
            kind="bad_store",
            given=url,
            allowed="a folder, or a URL that fsspec knows, such as s3://bucket/path",
            hint="Install what it needs (s3fs for s3://, gcsfs for gs://), or correct --registry or FTRAY_REGISTRY.",
        ) from error
    return files, str(root).rstrip("/")
