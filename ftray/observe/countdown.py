"""How long a training still takes, from the lines that it logs: at the pace of the newest attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, kw_only=True)
class Countdown:
    """How far a training is, and since when."""

    total: int = 0
    step: int = 0
    first_step: int | None = None
    first_time: float = 0.0

    def take(self, line: Mapping[str, Any], now: float) -> None:
        """Note a line of metrics.jsonl; `now` in seconds of whichever clock."""
        # Another attempt has another pace; a spike of the loss changes none.
        if self.first_step is None or (line["kind"] == "event" and line["event"] != "loss_spike"):
            self.first_step, self.first_time = line["step"], now
        self.step = line["step"]

    def seconds_left(self, now: float) -> float | None:
        """Return the time the remaining steps take at the pace so far; None before there is one."""
        done = self.step - (self.first_step or 0)
        if self.first_step is None or done <= 0 or not self.total:
            return None
        # While a step is under way the estimate falls with the clock, not in jumps at every log line.
        return max(0.0, (now - self.first_time) / done * (self.total - self.step))
