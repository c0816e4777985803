"""The loss of every step as one curve, and the robust statistics that rules judge it by.

Levels are medians over a window, so that one strange batch is no trend; everything is meant relative to the loss at the
start, so that one set of thresholds serves tasks of any scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ftray.evaluate.intervals import FloatArray

START_STEPS = 3
"""The first steps, whose mean is the loss of the untouched base: an adapter starts as no change at all."""
WINDOWS = 20
"""A level is the median over one part in so many of the curve."""
SMALLEST_WINDOW = 5
NORMAL = 1.4826
"""Standard deviation of a Gaussian in units of its median absolute deviation."""


@dataclass(frozen=True)
class Curve:
    """A quantity over the optimizer steps, at least one."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @cached_property
    def start(self) -> float:
        """The mean of the first steps, as far as they are known: the fourth value may be of a much later step."""
        until = self.steps[0] + START_STEPS
        return float(np.mean([value for step, value in zip(self.steps, self.values, strict=True) if step < until]))

    @cached_property
    def window(self) -> int:
        """Steps that a level is taken over."""
        return min(len(self.values), max(SMALLEST_WINDOW, len(self.values) // WINDOWS))

    @cached_property
    def levels(self) -> FloatArray:
        """[N - window + 1] medians over a moving window."""
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(self.values), self.window)
        return np.asarray(np.median(windows, axis=1), dtype=np.float64)

    @property
    def end(self) -> float:
        """The level of the last steps: twice the window, for the end is what everything is compared with."""
        return float(np.median(self.values[-2 * self.window :]))

    @property
    def lowest(self) -> float:
        """The lowest level."""
        return float(self.levels.min())

    @property
    def lowest_at(self) -> int:
        """The step in the middle of the lowest level's window."""
        return self.steps[int(self.levels.argmin()) + self.window // 2]

    @property
    def highest(self) -> float:
        """The highest level."""
        return float(self.levels.max())

    @cached_property
    def noise(self) -> float:
        """Standard deviation from step to step around the level, in the last half; spikes do not count."""
        centre = self.window // 2
        around = np.asarray(self.values)[centre : centre + len(self.levels)]
        distances = np.abs(around - self.levels)[len(self.levels) // 2 :]
        return float(NORMAL * np.median(distances))

    def after(self, step: int) -> Curve | None:
        """Return the part beyond `step`; None where there is none."""
        kept = [(one, value) for one, value in zip(self.steps, self.values, strict=True) if one > step]
        if not kept:
            return None
        steps, values = zip(*kept, strict=True)
        return Curve(steps=steps, values=values)

    def level_at(self, step: int) -> float:
        """Return the median of the last window of steps up to `step`; of the first steps where that is before them."""
        until = max(1, sum(one <= step for one in self.steps))
        return float(np.median(self.values[max(0, until - self.window) : until]))

    def level_between(self, first: float, last: float) -> float:
        """Return the median between two shares of the curve."""
        count = len(self.values)
        return float(np.median(self.values[int(first * count) : max(int(first * count) + 1, int(last * count))]))


def reversals(values: Sequence[float]) -> float:
    """Return the share of moves that go against the move before; 0 where there are fewer than two."""
    moves = np.sign(np.diff(values))
    if len(moves) < 2:
        return 0.0
    return float(np.mean(moves[1:] * moves[:-1] < 0))


def total_rise(values: Sequence[float]) -> float:
    """Return the sum of all upward moves."""
    moves = np.diff(values)
    return float(moves[moves > 0].sum())


def jitter(values: Sequence[float]) -> float:
    """Return the standard deviation around a locally straight line, from second differences; 0 below four values."""
    if len(values) < 4:
        return 0.0
    # The second difference of independent noise has six times its variance.
    return float(NORMAL * np.median(np.abs(np.diff(values, n=2))) / np.sqrt(6))
