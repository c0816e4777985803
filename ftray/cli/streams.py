"""Keep standard output for the one document: everything else goes to standard error, native code included."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def chatter_on_stderr() -> Iterator[None]:
    """Send to standard error what this block, its libraries and its child processes write to standard output."""
    stream = sys.stdout
    stream.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = stream
        # C's printf keeps its text in a buffer of its own, which would land in the document.
        ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
