"""What a campaign has taken, all attempts together: written as it goes, so that a kill forgets seconds at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ftray.artifacts import read_json, write_json

WRITE_EVERY_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Seconds by the clock, and seconds of trainers."""

    wall: float = 0.0
    trainers: float = 0.0


class Spent:
    """The clock of a campaign."""

    def __init__(self, path: Path, *, began: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`began`: what the clock said when this attempt began."""
        self.path = path
        self._clock = clock
        record = read_json(path) if path.exists() else {}
        self.before = Amount(wall=record.get("wall_seconds", 0.0), trainers=record.get("trainer_seconds", 0.0))
        self._began = began
        self._trainers_began: float | None = None
        self._trainers_seconds = 0.0
        self._workers = 0
        self._written = began

    def start_trainers(self, workers: int) -> None:
        """Count the seconds of this many trainers from now on."""
        self._workers = workers
        self._trainers_began = self._clock()

    def stop_trainers(self) -> None:
        """Count no more."""
        if self._trainers_began is not None:
            self._trainers_seconds += self._workers * (self._clock() - self._trainers_began)
            self._trainers_began = None

    @property
    def now(self) -> Amount:
        """Everything so far."""
        running = 0.0 if self._trainers_began is None else self._clock() - self._trainers_began
        return Amount(
            wall=self.before.wall + self._clock() - self._began,
            trainers=self.before.trainers + self._trainers_seconds + self._workers * running,
        )

    def write(self, *, at_once: bool = False) -> None:
        """Write it down, now and then or at once."""
        if at_once or self._clock() - self._written > WRITE_EVERY_SECONDS:
            self._written = self._clock()
            amount = self.now
            write_json(
                self.path,
                {"schema": "ftray/spent/1", "wall_seconds": amount.wall, "trainer_seconds": amount.trainers},
            )
