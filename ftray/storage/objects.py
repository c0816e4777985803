"""The objects below a URL that fsspec opens (`s3://...`, `gs://...`, `memory://...`): the seam to every such store.

What is relied on: writing an object is all or nothing, listing shows what has been written, and an object can be
created only where there is none (S3: If-None-Match; Google: ifGenerationMatch=0). `memory://` keeps this within one
process. Stores whose fsspec class creates by looking first are refused. Credentials and endpoint are what the class
reads from the environment; they are in no URL, no record and no message.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ftray.artifacts import jsonable
from ftray.errors import FtrayError, InputError, RunError

PROBE_SECONDS = 10.0
"""How long a store may take to show that it can be used."""
EXTRAS = {"s3": "s3", "s3a": "s3"}
"""Optional extras of ftray by the protocol that needs them."""
VERSION_KEYS = ("ETag", "etag", "generation", "version", "mtime", "created", "LastModified", "updated")
"""Where fsspec's classes say which version of an object a listing shows, the best first."""

TIME_KEYS = ("LastModified", "mtime", "created", "updated")


@dataclass(frozen=True, slots=True)
class Version:
    """Which content an object has, as far as a listing tells."""

    size: int
    tag: str
    modified: float | None = None
    """When it was written, by the store's clock, in seconds since 1970."""


class Objects:
    """The objects below a URL; their names are relative to it. `name` is what people call the whole.

    Raises InputError `bad_store` or `missing_package` for a URL that nothing opens. Everything else that a store does
    not do is a RunError of kind `failure`.
    """

    def __init__(self, url: str, *, name: str = "storage", failure: str = "communication") -> None:
        self.url = url.rstrip("/")
        self._name = name
        self._failure = failure
        self._files, self._root = _open(url, name)
        self._is_proven = False

    def find(self, under: str = "") -> dict[str, Version]:
        """Return the objects below a name, with their versions."""
        with self._speaking():
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._path(under), detail=True)
            except FileNotFoundError as error:
                if _is_missing_bucket(error):
                    raise
                return {}
        start = f"{self._root}/".lstrip("/")
        return {path.lstrip("/").removeprefix(start): _version(info) for path, info in found.items()}

    def read(self, name: str, *, start: int | None = None) -> bytes | None:
        """Return an object's bytes, from `start` on; None where there is no such object."""
        with self._speaking():
            try:
                return bytes(self._files.cat_file(self._path(name), start=start))
            except FileNotFoundError as error:
                if _is_missing_bucket(error):
                    raise
                return None

    def size(self, name: str) -> int | None:
        """Return an object's bytes; None where there is no such object."""
        with self._speaking():
            self._files.invalidate_cache()
            try:
                return int(self._files.info(self._path(name))["size"])
            except FileNotFoundError as error:
                if _is_missing_bucket(error):
                    raise
                return None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return an object that is a JSON record; None where there is none."""
        content = self.read(name)
        return None if content is None else dict(json.loads(content))

    def write(self, name: str, content: bytes) -> None:
        """Write an object, over one that is there."""
        with self._speaking():
            self._files.pipe_file(self._path(name), content)

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a JSON record."""
        self.write(name, encoded(record))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object where there is none; return whether it is ours that is there now.

        The content must be nobody else's: a repeated request may have met its own first attempt. Raises InputError
        `bad_store` for a store that cannot do this.
        """
        self.require_exclusive()
        with self._speaking():
            try:
                self._files.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return bool(self._files.cat_file(self._path(name)) == content)
        return True

    def put(self, file: Path, name: str) -> None:
        """Write a file's content as an object. Raises FileNotFoundError when the file is gone."""
        file.stat()
        with self._speaking():
            self._files.put_file(str(file), self._path(name))

    def get(self, name: str, file: Path) -> bool:
        """Write an object's content to a file that appears whole; return False where there is no such object."""
        part = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
        with self._speaking():
            try:
                self._files.get_file(self._path(name), str(part))
            except FileNotFoundError as error:
                part.unlink(missing_ok=True)
                if _is_missing_bucket(error):
                    raise
                return False
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        part.replace(file)
        return True

    def remove(self, name: str) -> None:
        """Delete an object; nothing where there is none."""
        with self._speaking(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def require_exclusive(self) -> None:
        """Raise InputError `bad_store` unless the store refuses to create an object twice; asked once."""
        if self._is_proven:
            return
        from fsspec.asyn import AsyncFileSystem  # type: ignore[import-untyped]
        from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]

        # fsspec's own `pipe_file` asks whether the object is there, then writes it. The asynchronous classes, S3's
        # among them, have a `_pipe_file` of their own in its place.
        is_own = type(self._files).pipe_file is not AbstractFileSystem.pipe_file
        looks_first = not is_own and not isinstance(self._files, AsyncFileSystem)
        path = self._path(f".probe-{secrets.token_hex(8)}")
        is_exclusive = False
        with self._speaking():
            self._files.pipe_file(path, b"1", mode="create")
            try:
                self._files.pipe_file(path, b"2", mode="create")
            except FileExistsError:
                is_exclusive = not looks_first
            finally:
                self._files.rm_file(path)
        if not is_exclusive:
            raise InputError(
                f"{self.url} cannot create an object only where there is none: two writers could both win",
                kind="bad_store",
                given=self.url,
                allowed="a folder, S3, Google Cloud Storage, or one whose fsspec class has pipe_file(mode='create')",
                hint=f"Use another store for the {self._name}, or a newer version of its fsspec package.",
            )
        self._is_proven = True

    def require(self, *, setting: str, writes: bool = True) -> None:
        """Raise InputError `bad_store` unless objects can be written here, once, and deleted; within PROBE_SECONDS.

        `setting`: what a user changes to name another place. `writes`: False where reading is enough.
        """
        answer: list[FtrayError | None] = []

        def ask() -> None:
            try:
                if writes:
                    self.require_exclusive()
                else:
                    self.read(".probe")
                answer.append(None)
            except FtrayError as error:
                answer.append(error)

        # A store that does not answer is asked again and again by its library, for minutes.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(PROBE_SECONDS)
        error = answer[0] if answer else None
        if answer and error is None:
            return
        if isinstance(error, InputError):
            raise error
        raise InputError(
            error.message if error else f"the {self._name} {self.url} does not answer within {PROBE_SECONDS:g} s",
            kind="bad_store",
            given=self.url,
            allowed="a bucket that is there, where these credentials may list, read, write and delete",
            hint="Check the bucket's name, its credentials and its endpoint (for s3://: AWS_ACCESS_KEY_ID, "
            f"AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL); or choose another place: {setting}.",
            path="storage" if self._name == "storage" else None,
        ) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turn what a store says into one screen."""
        try:
            yield
        except _store_errors() as error:
            raise RunError(
                f"the {self._name} {self.url} does not answer as it should: {_said(error)}",
                kind=self._failure,
                given=self.url,
                hint="See whether the store is there and its credentials hold; then run the same command again.",
            ) from error


def encoded(record: Mapping[str, Any]) -> bytes:
    """Return a record as the bytes of an object."""
    return (json.dumps(jsonable(record), indent=2, ensure_ascii=False) + "\n").encode()


def _version(info: Mapping[str, Any]) -> Version:
    tag = next((str(info[key]) for key in VERSION_KEYS if info.get(key) is not None), "")
    time = next((info[key] for key in TIME_KEYS if info.get(key) is not None), None)
    modified = time.timestamp() if isinstance(time, datetime) else time if isinstance(time, int | float) else None
    return Version(size=int(info.get("size") or 0), tag=tag, modified=modified)


def _store_errors() -> tuple[type[BaseException], ...]:
    """Return what stores' libraries raise: some of it is no OSError."""
    known = {"botocore.exceptions": "BotoCoreError", "aiohttp": "ClientError", "gcsfs.retry": "HttpError"}
    found = [getattr(sys.modules[module], name) for module, name in known.items() if module in sys.modules]
    return (OSError, *found)


def _said(error: BaseException) -> str:
    """Return what a store's library said, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _is_missing_bucket(error: FileNotFoundError) -> bool:
    """Return whether it is the bucket that is not there, rather than the object."""
    cause = getattr(error.__cause__, "response", None) or {}
    return str(cause.get("Error", {}).get("Code", "")) == "NoSuchBucket"


def _open(url: str, name: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it."""
    import fsspec  # type: ignore[import-untyped]

    protocol = url.partition("://")[0]
    setting = "--registry or FTRAY_REGISTRY" if name == "registry" else "--storage, FTRAY_STORAGE or the job's storage"
    try:
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        raise InputError(
            f"the {name} {url!r} needs a package that is not installed: {error}",
            kind="missing_package",
            given=url,
            allowed="a folder, or a URL whose fsspec package is installed",
            hint=f'Install it: pip install "ftray[{extra}]".' if extra else f"Install it, or correct {setting}.",
            path="storage" if name == "storage" else None,
        ) from error
    except ValueError as error:
        raise InputError(
            f"the {name} {url!r} cannot be opened: {error}",
            kind="bad_store",
            given=url,
            allowed="a folder, or a URL that fsspec knows, such as s3://bucket/path",
            hint=f"Correct {setting}.",
            path="storage" if name == "storage" else None,
        ) from error
    return files, str(root).rstrip("/")
