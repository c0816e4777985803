"""Confidence sequences: intervals for a mean that hold at all times at once, so that one may look after every unit.

Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences"
(2024), theorem 2.2. They are asymptotic: exact as the count grows, which is why few observations get none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TIGHTEST = 1000
"""The number of observations at which the interval is as narrow as such an interval can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its confidence sequence's present interval."""

    estimate: float
    low: float
    high: float


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations (Welford)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one observation."""
        self.n += 1
        before = value - self.mean
        self.mean += before / self.n
        self.squares += before * (value - self.mean)

    def interval(self, alpha: float, *, extra_squares: float = 0.0) -> Interval | None:
        """Return the interval that misses the mean, ever, with probability `alpha`; None before the first observation.

        `extra_squares` is added to the squared deviations: observations that all are alike are no proof of no variance.
        """
        if self.n == 0:
            return None
        width = half_width(self.n, math.sqrt((self.squares + extra_squares) / self.n), alpha)
        return Interval(estimate=self.mean, low=self.mean - width, high=self.mean + width)

    def to_record(self) -> list[float]:
        """Return the JSON form."""
        return [self.n, self.mean, self.squares]

    @classmethod
    def from_record(cls, record: list[float]) -> Moments:
        """Read what to_record returned."""
        return cls(n=int(record[0]), mean=record[1], squares=record[2])


def half_width(n: int, deviation: float, alpha: float) -> float:
    """Return half the width of the two-sided sequence after n observations with this standard deviation.

    deviation * sqrt(2 (n rho^2 + 1) / (n^2 rho^2) * ln(sqrt(n rho^2 + 1) / alpha)),
    with rho^2 = (-2 ln alpha + ln(1 - 2 ln alpha)) / TIGHTEST.
    """
    rho2 = (-2.0 * math.log(alpha) + math.log(1.0 - 2.0 * math.log(alpha))) / TIGHTEST
    spread = n * rho2 + 1.0
    return deviation * math.sqrt(2.0 * spread / (n * n * rho2) * math.log(math.sqrt(spread) / alpha))
