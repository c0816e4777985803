"""The thread of a trainer that computes: it carries out orders between two turns of its work, and says when it breaks.

Calls of clients come in other threads, which only leave orders here and wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from safetensors import SafetensorError

from ftray.errors import FtrayError, RunError

IDLE_SECONDS = 0.5
"""How long the thread waits before it looks again whether there is work."""


class Computing:
    """Calls `work` again and again; it returns whether there was anything to do."""

    def __init__(self, work: Callable[[], bool]) -> None:
        self._work = work
        self._orders: list[Callable[[], None]] = []
        self.changed = threading.Condition()
        """Notified after every turn, and when an order comes."""
        self._thread: threading.Thread | None = None
        self._is_ending = False
        self._error: FtrayError | None = None
        self.busy_seconds = 0.0

    @property
    def has_started(self) -> bool:
        return self._thread is not None

    @property
    def has_orders(self) -> bool:
        return bool(self._orders)

    def start(self) -> None:
        """Begin to compute."""
        self._thread = threading.Thread(target=self._run, name="trials", daemon=True)
        self._thread.start()

    def order(self, order: Callable[[], None], *, wait: bool = True) -> None:
        """Have the thread do something before its next turn, and wait until it has. Raises what ended the thread."""
        done = threading.Event()

        def carry_out() -> None:
            try:
                order()
            finally:
                done.set()

        with self.changed:
            self.require_alive()
            self._orders.append(carry_out)
            self.changed.notify_all()
        while wait and not done.wait(IDLE_SECONDS):
            self.require_alive()

    def require_alive(self) -> None:
        """Raise RunError where the thread does not compute: what ended it."""
        if self._error is not None:
            raise self._error
        if self._thread is None or (not self._thread.is_alive() and not self._is_ending):
            raise RunError("the trainer does not compute", kind="unknown", hint="Its log says why (ray logs).")

    def end(self) -> None:
        """Stop computing, after the turn that is going on."""
        self._is_ending = True
        with self.changed:
            self.changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._is_ending:
                with self.changed:
                    orders, self._orders = self._orders, []
                for order in orders:
                    order()
                began = time.perf_counter()
                is_busy = self._work()
                self.busy_seconds += time.perf_counter() - began if is_busy else 0.0
                with self.changed:
                    self.changed.notify_all()
                    if not is_busy and not self._orders:
                        self.changed.wait(IDLE_SECONDS)
        except FtrayError as error:
            self._error = error
        except (OSError, SafetensorError) as error:
            # A full disk is either, whoever writes.
            self._error = RunError(f"the trainer could not go on: {error}", kind="unknown")
        finally:
            with self.changed:
                self.changed.notify_all()
