"""Run directories, atomic JSON, digests. A record that can be read is a record that was written whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from ftray.errors import InputError, RunError

MANIFEST = "manifest.json"
"""Of a checkpoint: what makes it one, written last."""


def now() -> str:
    """Return the time in UTC as ISO 8601."""
    return timestamp(datetime.now(UTC))


def timestamp(time: datetime) -> str:
    """Return a time in UTC as the records spell it: ISO 8601 with milliseconds and a Z."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def jsonable(value: Any) -> Any:
    """Return `value` with NaN and infinities as null, as the contract wants numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def canonical_json(value: Any) -> str:
    """Return one spelling for equal values: sorted keys, no blanks. What digests are taken of."""
    return json.dumps(jsonable(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the sorted lines "<sha256>  <file name>" of these files: what a model or adapter is."""
    lines = sorted(f"{digest_file(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write atomically: a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _storage_error(path, error) from error


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, atomically."""
    write_text(path, json.dumps(jsonable(record), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON record; a damaged one is an error that names the file."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(
            f"{path} is not JSON: {error}",
            kind="bad_record",
            file=str(path),
            line=getattr(error, "lineno", None),
            hint="Move the file away; records are rewritten by the command that made them.",
        ) from error


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line. The only writer is rank 0 of the run that holds the lock."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(canonical_json_line(record))
    except OSError as error:
        raise _storage_error(path, error) from error


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a crash has torn: it was never reported, and what follows must start on its own."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def canonical_json_line(record: dict[str, Any]) -> str:
    """Return a record as one line, keys in the given order."""
    return json.dumps(jsonable(record), ensure_ascii=False) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line cut off by a crash, or still being written, is ignored.

    Raises InputError `bad_record` for any other line that is no JSON.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    records = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise InputError(
                f"line {number} of {path} is not JSON: {error}",
                kind="bad_record",
                file=str(path),
                line=number,
                hint="Delete that line; the others stay as they are.",
            ) from error
    return records


def _storage_error(path: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {path}: {error.strerror}",
        kind="unknown",
        given=str(path),
        hint="Free some space or make the folder writable, then run the same command again: it resumes.",
        file=str(path),
    )


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths of one training run (layout in the README)."""

    root: Path

    @property
    def job(self) -> Path:
        return self.root / "job.json"

    @property
    def audit(self) -> Path:
        return self.root / "audit.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.jsonl"

    @property
    def selection(self) -> Path:
        return self.root / "selection.json"

    @property
    def diagnosis(self) -> Path:
        return self.root / "diagnosis.json"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def driver_lock(self) -> Path:
        """Held by the process that runs the command."""
        return self.root / ".driver.lock"

    @property
    def worker_lock(self) -> Path:
        """Held by the worker of rank 0, which may outlive a killed driver for a moment."""
        return self.root / ".worker.lock"

    def create(self) -> None:
        """Make the folder, or say why it cannot be made; nothing is started in a folder that cannot be written."""
        hint = "Choose another place with --storage DIR, the job's `storage`, or FTRAY_STORAGE."
        require_writable(self.root, hint=hint)
        require_writable(self.checkpoints, hint=hint)


def require_writable(folder: Path, *, hint: str) -> None:
    """Make the folder where there is none. Raises InputError `storage` when no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be written: {error.strerror}",
            kind="storage",
            given=str(folder),
            allowed="a folder on a disk with free space where this user may write",
            hint=hint,
        ) from error


def try_lock(file: IO[str], *, shared: bool = False, waits: bool = False) -> bool:
    """Lock an open file for as long as it is open, or return False: another process holds it, and is not waited for.

    The kernel frees a lock when its process ends, however it ends. Raises InputError on a file system without locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise InputError(
            f"{file.name} cannot be locked: {error.strerror}",
            kind="storage",
            given=file.name,
            allowed="a file system with locks (flock), so that two processes never train one run",
            hint="Choose another place with --storage DIR, or mount this one with locks.",
        ) from error
    return True


def is_held(lock: Path) -> bool:
    """Return whether a process holds the lock."""
    if not lock.exists():
        return False
    with lock.open(encoding="utf-8") as file:
        return not try_lock(file, shared=True)


def wait_for_lock(path: Path, *, seconds: float) -> IO[str]:
    """Return a file that is locked as long as it is open. Raises RunError `node` when its holder does not end."""
    file = path.open("a", encoding="utf-8")
    deadline = time.monotonic() + seconds
    while not try_lock(file):
        if time.monotonic() > deadline:
            file.close()
            raise RunError(
                f"another process still writes into {path.parent} after {seconds:g} s",
                kind="node",
                hint="End it, then run the command again.",
            )
        time.sleep(0.2)
    return file


@contextlib.contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the run for this process."""
    with path.open("a+", encoding="utf-8") as file:
        if not try_lock(file):
            file.seek(0)
            holder = file.read().strip()
            raise InputError(
                f"this run is already being worked on ({holder or 'by another process'})",
                kind="run_locked",
                given=str(path.parent),
                hint="Wait for it, or end that process; then run the same command again: it resumes.",
            )
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} since {now()}")
        file.flush()
        yield
