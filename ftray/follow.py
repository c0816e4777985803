"""Follow a run's metrics.jsonl while workers elsewhere write it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.5


@contextmanager
def following(metrics: Path, display: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Pass every line that is appended inside this block to `display`, from a thread of its own."""
    # Up to its last whole line: a torn one is cut off by the next attempt.
    start = metrics.read_bytes().rfind(b"\n") + 1 if metrics.exists() else 0
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(metrics, start, display, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(metrics: Path, position: int, display: Callable[[dict[str, Any]], None], done: threading.Event) -> None:
    while True:
        last = done.wait(POLL_SECONDS)
        if metrics.exists():
            with metrics.open("rb") as file:
                file.seek(position)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            position += len(whole)
            for line in filter(None, whole.splitlines()):
                display(json.loads(line))
        if last:
            return
