"""Work that nobody awaits, with the one place that catches whatever it raises: it is logged, and nobody else hears."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


async def logged(work: Awaitable[Any], what: str, *, level: int = logging.ERROR) -> bool:
    """Await some work; return whether it came to its end. `what` is said where it did not."""
    try:
        await work
    except Exception:
        # The last line of defence: a loop that ended here would be missed by nobody, for ever.
        log.log(level, "%s", what, exc_info=True)
        return False
    return True


async def repeat(work: Callable[[], Awaitable[Any]], what: str, *, seconds: float, level: int = logging.ERROR) -> None:
    """Do something, and again after a pause, whatever came of it."""
    while True:
        await logged(work(), what, level=level)
        await asyncio.sleep(seconds)


class Background:
    """Tasks that end by themselves, or with the process."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[bool]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something on its own."""
        task = asyncio.create_task(logged(work, "work in the background failed"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, seconds: float) -> None:
        """Wait for what runs; cancel what is left then."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        for task in set(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
