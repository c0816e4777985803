"""Follow a run's metrics.jsonl while workers elsewhere write it: in the folder, or in the store they publish it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ftray.errors import RunError
from ftray.storage.mirror import Mirror

POLL_SECONDS = 0.5
STORE_POLL_SECONDS = 2.0


class Lines(Protocol):
    """Where lines are appended."""

    def lines(self) -> list[dict[str, Any]]:
        """Return what has been appended since the last call."""


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


class StoreTail:
    """`Tail` of a file in a store; while the store does not answer there is nothing new."""

    def __init__(self, mirror: Mirror, name: str) -> None:
        self._mirror = mirror
        self._name = name
        self._position = self._whole(mirror.read(name) or b"")

    def lines(self) -> list[dict[str, Any]]:
        """Return what has been appended since the last call."""
        try:
            size = self._mirror.size(self._name) or 0
            # A new attempt may begin with fewer lines than the last one had.
            self._position = min(self._position, size)
            text = self._mirror.read(self._name, start=self._position) if size > self._position else b""
        except RunError:
            return []
        whole = (text or b"")[: self._whole(text or b"")]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]

    @staticmethod
    def _whole(text: bytes) -> int:
        return text.rfind(b"\n") + 1


@contextmanager
def following(
    metrics: Path, display: Callable[[dict[str, Any]], None], *, mirror: Mirror | None = None
) -> Iterator[None]:
    """Pass every line that is appended inside this block to `display`, from a thread of its own.

    `mirror`: of the run, whose store is looked into where it has one.
    """
    done = threading.Event()
    is_remote = mirror is not None and mirror.is_remote
    tail: Lines = StoreTail(mirror, metrics.name) if mirror is not None and is_remote else Tail(metrics)
    pause = STORE_POLL_SECONDS if is_remote else POLL_SECONDS
    thread = threading.Thread(target=_follow, args=(tail, display, done, pause), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(tail: Lines, display: Callable[[dict[str, Any]], None], done: threading.Event, pause: float) -> None:
    while True:
        last = done.wait(pause)
        for line in tail.lines():
            display(line)
        if last:
            return
