"""The one thread that touches the models: it steps the batchers in turn, and sleeps while nobody asks.

Whatever others want of a model is a call between two steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from ftray.errors import RunError, is_out_of_memory
from ftray.serve.asking import DeadlinePassed, EngineLost, Piece
from ftray.serve.engine.batcher import Batcher
from ftray.serve.engine.rows import Row

Result = TypeVar("Result")
Delivery = tuple[Row, Piece | Exception]
"""What a row has grown by, or why it ended."""
TOGETHER_SECONDS = 0.001
"""How far apart those may come who begin together, while nobody is answered."""
MOST_TOGETHER = 64
logger = logging.getLogger(__name__)


class StepLoop:
    """Batchers, stepped by a thread."""

    def __init__(
        self, deliver: Callable[[Sequence[Delivery]], None], *, clock: Callable[[], float] = time.time
    ) -> None:
        """Call `deliver` after each step, from the thread, with what it came to."""
        self._deliver = deliver
        self._clock = clock
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="ftray-engine", daemon=True)
        self.batchers: list[Batcher] = []
        """Changed by calls only."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread after its present step; rows that run are forgotten."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join()

    def post(self, work: Callable[[], None]) -> None:
        """Call something before the next step, in order; it must not raise. Raises EngineLost once it is stopped."""
        with self._wake:
            if self._is_stopping:
                raise EngineLost("the engine was stopped")
            self._inbox.append(work)
            self._wake.notify()

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Call something before the next step; the future has what it returns or raises."""
        future: Future[Result] = Future()

        def answer() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:
                # It is raised where the result is waited for.
                future.set_exception(error)

        self.post(answer)
        return future

    def _run(self) -> None:
        while True:
            with self._wake:
                if not any(batcher.has_work for batcher in self.batchers):
                    self._wait_for_work()
                inbox, self._inbox = self._inbox, []
            for work in inbox:
                work()
            if self._is_stopping:
                for batcher in self.batchers:
                    _drop(batcher, EngineLost("the engine was stopped"))
                return
            deliveries: list[Delivery] = []
            for batcher in self.batchers:
                if batcher.has_work:
                    deliveries += self._step(batcher)
            if deliveries:
                self._deliver(deliveries)

    def _wait_for_work(self) -> None:
        """Sleep until somebody asks, and until nobody else has for a moment: who comes together begins together."""
        while not (self._inbox or self._is_stopping):
            self._wake.wait()
        came = 0
        while came < len(self._inbox) < MOST_TOGETHER:
            came = len(self._inbox)
            self._wake.wait(TOGETHER_SECONDS)

    def _step(self, batcher: Batcher) -> list[Delivery]:
        late: list[Delivery] = []
        try:
            late = [(row, DeadlinePassed()) for row in batcher.expired(self._clock())]
            grown = batcher.step()
        except Exception as error:
            # The thread goes on for those who come next; nobody is above it to hear of this.
            logger.exception("a step failed")
            what = "memory ran out" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            lost = EngineLost(f"the step failed: {what}")
            return late + [(row, lost) for row in _drop(batcher, lost)]
        return late + [(growth.row, growth.piece or _not_a_number()) for growth in grown]


def _drop(batcher: Batcher, error: EngineLost) -> list[Row]:
    """Forget a batcher's rows, and return them; who waits for a probe hears why."""
    rows = batcher.give_up()
    for row in rows:
        if row.probe is not None:
            row.probe.set_exception(error)
    return [row for row in rows if row.probe is None]


def _not_a_number() -> RunError:
    return RunError(
        "the model's logits are not numbers after this prompt",
        kind="nonfinite",
        hint="An adapter that was trained in another precision may overflow in this one; serve it in fp32 or bf16.",
    )
