"""Follow a run's metrics.jsonl while workers elsewhere write it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.5


class Tail:
    """The lines that are appended to a file of JSON lines from now on; torn ones come when they are whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Up to its last whole line: a torn one is cut off by the next attempt.
        self._position = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0

    def lines(self) -> list[dict[str, Any]]:
        """Return what has been appended since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines() if line]


@contextmanager
def following(metrics: Path, display: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Pass every line that is appended inside this block to `display`, from a thread of its own."""
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(Tail(metrics), display, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(tail: Tail, display: Callable[[dict[str, Any]], None], done: threading.Event) -> None:
    while True:
        last = done.wait(POLL_SECONDS)
        for line in tail.lines():
            display(line)
        if last:
            return
