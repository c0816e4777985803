"""Log lines for machines: with FTRAY_LOG=json every process of ftray writes JSON objects on standard error.

Each line has time, level, message, event, host and pid, and, as far as they are known, job, run (or sweep), trial,
worker and step. The command writes what people would read; workers and trainers write what only they know, to the logs
of Ray's session.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any, Literal, TextIO

from ftray.artifacts import jsonable, now
from ftray.errors import FtrayError, InputError, Interrupted

VARIABLE = "FTRAY_LOG"
FORMATS = ("text", "json")
Level = Literal["info", "warning", "error"]
LEVELS: Mapping[str, Level] = {"loss_spike": "warning", "nonfinite": "error", "failure": "error"}
"""Of events that are more than news."""


def is_json() -> bool:
    """Return whether lines are for machines. Raises InputError for another format."""
    given = os.environ.get(VARIABLE) or "text"
    if given not in FORMATS:
        raise InputError(
            f"{VARIABLE}={given} is no format",
            kind="bad_value",
            given=given,
            allowed=list(FORMATS),
            hint=f"Unset {VARIABLE} for lines that people read.",
        )
    return given == "json"


class JsonLog:
    """Writes lines that share a context."""

    def __init__(self, stream: TextIO | None = None, **context: Any) -> None:
        """`stream`: standard error, as it is when a line is written, where none is given."""
        self._stream = stream
        self._lock = threading.Lock()
        self._context = {"host": socket.gethostname(), "pid": os.getpid(), **context}

    def bind(self, **context: Any) -> None:
        """Add to the context of the lines to come."""
        self._context |= context

    def write(self, message: str, *, level: Level = "info", **fields: Any) -> None:
        """Write a line; what is None is left out."""
        told = {"time": now(), "level": level, "message": message, **self._context, **fields}
        known = {name: value for name, value in told.items() if value is not None}
        text = json.dumps(jsonable(known), ensure_ascii=False, allow_nan=False, default=str)
        with self._lock:
            stream = self._stream or sys.stderr
            stream.write(text + "\n")
            stream.flush()

    def error(self, error: FtrayError) -> None:
        """Write what ended the work."""
        record = error.to_record()
        record.pop("schema")
        level: Level = "warning" if isinstance(error, Interrupted) else "error"
        self.write(record.pop("message"), level=level, event="error", **record)


PROCESS = JsonLog()
"""The log of this process."""
_is_worker = False


def bind(**context: Any) -> None:
    """Say what this process works for: run, worker and the like are in all its lines from now on."""
    PROCESS.bind(**context)


def in_worker() -> None:
    """Say that this process is Ray's, and what it does is seen by nobody else. A command's own display says it all."""
    global _is_worker
    _is_worker = True


def fail(error: FtrayError) -> None:
    """Write what ended this process's work, with what it worked for."""
    PROCESS.error(error)


def say(message: str, *, level: Level = "info", **fields: Any) -> None:
    """Write a line of a worker; nothing where lines are for people."""
    if _is_worker and is_json():
        PROCESS.write(message, level=level, **fields)
