"""The databases that outcomes may lie in, as far as they differ: how to connect, to begin, and to spell a few words.

Everything else is SQL that SQLite and PostgreSQL read alike.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from ftray.artifacts import require_writable
from ftray.errors import InputError, RunError

Row = Sequence[Any]
BUSY_SECONDS = 30.0
"""How long a writer waits for one of another process."""
CHECKED_BYTES = 64 * 2**20
"""A SQLite file up to this size is read through when it is opened; a larger one shows its damage when it is used."""
LOCK = 0x66747261795F6F75
"""PostgreSQL's number for "there is one writer"."""


class Connection(Protocol):
    """A connection that commits nothing and begins nothing by itself."""

    def execute(self, text: str, values: Any = ..., /) -> Any: ...

    def close(self) -> None: ...


class Database(Protocol):
    """One place where outcomes lie."""

    serial: str
    """The type of a column that numbers its rows in the order in which they are written."""
    place: str
    """How messages call it; never with a password."""

    def connect(self) -> Connection:
        """Open a connection. Raises InputError where there is no such database."""

    def spell(self, text: str) -> str:
        """Return a statement, whose values stand as ?, as this database reads it."""

    def begin_writing(self, connection: Connection) -> None:
        """Begin a transaction as the only writer of all processes, which waits for the others."""

    def begin_reading(self, connection: Connection) -> None:
        """Begin a transaction that sees one moment."""

    def is_error(self, error: Exception) -> bool:
        """Return whether the database, and not our code, raised it."""

    def is_lost(self, error: Exception) -> bool:
        """Return whether the connection is gone and another one may work."""

    def explain(self, error: Exception) -> RunError:
        """Return what to tell whoever asked."""


class SqliteDatabase:
    """A file. Commits are in the write-ahead log, and flushed to the disk, before they are acknowledged.

    `synchronous=FULL`: a commit outlives the process and the machine. NORMAL would outlive the process alone and lose
    the last moments before a power cut; the flush is shared by all calls that wait at the time.
    """

    serial = "INTEGER PRIMARY KEY AUTOINCREMENT"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)

    def connect(self) -> Connection:
        require_writable(self.path.parent, hint="Choose another place: serve.store, or the storage folder.")
        try:
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # What is purged is overwritten, not only unlinked.
        connection.execute("PRAGMA secure_delete = ON")

    def check(self) -> None:
        """Raise InputError for a file that is damaged."""
        if not self.path.exists() or self.path.stat().st_size > CHECKED_BYTES:
            return
        with closing(self.connect()) as connection:
            try:
                found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            except sqlite3.DatabaseError as error:
                raise self._damaged(str(error)) from error
        if found != "ok":
            raise self._damaged(str(found).splitlines()[-1])

    def _damaged(self, what: str) -> InputError:
        return InputError(
            f"{self.path} cannot be used as a database of outcomes: {what}",
            kind="bad_record",
            given=str(self.path),
            allowed="a file that ftray has written, undamaged, on a local disk",
            hint="Put a copy from before in its place, or move it away with its -wal and -shm files to begin anew.",
            file=str(self.path),
        )

    def spell(self, text: str) -> str:
        return text

    def begin_writing(self, connection: Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")

    def begin_reading(self, connection: Connection) -> None:
        connection.execute("BEGIN")

    def is_error(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.Error)

    def is_lost(self, error: Exception) -> bool:
        return False

    def explain(self, error: Exception) -> RunError:
        return RunError(
            f"the outcomes in {self.path} cannot be reached: {error}",
            kind="unknown",
            given=str(self.path),
            hint="Free some space and see that the file is whole (sqlite3 FILE 'PRAGMA integrity_check').",
            file=str(self.path),
        )


class PostgresDatabase:
    """A PostgreSQL server. Its own settings say what a commit outlives; by default, the machine."""

    serial = "BIGSERIAL PRIMARY KEY"

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise InputError(
                "the store is a PostgreSQL database, and psycopg is not installed",
                kind="missing_package",
                given=without_password(url),
                hint="pip install 'ftray[postgres]'",
                path="serve.store",
            ) from error
        self._psycopg = psycopg
        self._url = url
        self.place = without_password(url)

    def connect(self) -> Connection:
        try:
            connection: Connection = self._psycopg.connect(self._url, autocommit=True, connect_timeout=10)
        except self._psycopg.Error as error:
            raise InputError(
                f"{self.place} cannot be reached: {str(error).strip()}",
                kind="storage",
                given=self.place,
                allowed="postgresql://USER:PASSWORD@HOST:PORT/DATABASE of a server that runs",
                hint="See that the server runs and that the user may create tables in the database.",
                path="serve.store",
            ) from error
        return connection

    def spell(self, text: str) -> str:
        return text.replace("?", "%s")

    def begin_writing(self, connection: Connection) -> None:
        connection.execute("BEGIN")
        connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")

    def begin_reading(self, connection: Connection) -> None:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def is_error(self, error: Exception) -> bool:
        return isinstance(error, self._psycopg.Error)

    def is_lost(self, error: Exception) -> bool:
        return isinstance(error, self._psycopg.OperationalError)

    def explain(self, error: Exception) -> RunError:
        return RunError(
            f"the outcomes in {self.place} cannot be reached: {str(error).strip()}",
            kind="node",
            given=self.place,
            hint="See that the server runs; calls that were not acknowledged may be sent again with the same key.",
        )


def without_password(url: str) -> str:
    """Return a URL as it may be shown."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def database_of(url: str, folder: Path) -> Database:
    """Return the database that `serve.store` names: sqlite, sqlite:///FILE or postgresql://... ."""
    if url == "sqlite":
        return SqliteDatabase(folder / "outcomes.sqlite")
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return SqliteDatabase(Path(url.removeprefix("sqlite:///")).expanduser())
    if url.startswith(("postgresql://", "postgres://")):
        return PostgresDatabase(url)
    raise InputError(
        f"there is no store {without_password(url) if '://' in url else url!r}",
        kind="bad_value",
        given=without_password(url) if "://" in url else url,
        allowed="sqlite, sqlite:///FILE (four slashes for an absolute path), postgresql://USER@HOST/DATABASE",
        path="serve.store",
    )


def lost(error: InputError) -> RunError:
    """Return what an InputError of `connect` is in the middle of the work, which had begun well."""
    return RunError(error.message, kind="node", given=error.given, hint=error.hint, file=error.file)
