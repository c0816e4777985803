"""Keep standard output for the one document: everything else goes to standard error, native code included."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ftray.artifacts import jsonable

_answers: list[int] = []
"""Where standard output really goes while everything else is sent to standard error."""


def answer_line(record: dict[str, Any]) -> None:
    """Print one line of JSON at once: for the commands whose output is read while they run."""
    line = json.dumps(jsonable(record), ensure_ascii=False, allow_nan=False, default=str) + "\n"
    if _answers:
        os.write(_answers[-1], line.encode())
        return
    sys.stdout.write(line)
    sys.stdout.flush()


@contextmanager
def chatter_on_stderr() -> Iterator[None]:
    """Send to standard error what this block, its libraries and its child processes write to standard output."""
    stream = sys.stdout
    stream.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    _answers.append(saved)
    try:
        yield
    finally:
        _answers.pop()
        sys.stdout = stream
        # C's printf keeps its text in a buffer of its own, which would land in the document.
        ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
