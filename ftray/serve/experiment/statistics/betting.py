"""A betting e-process: evidence against "the mean is 0", whatever the rule by which one stops looking.

Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (2024). Each bettor stakes a fixed
share of its wealth on one side of every observation; where the mean is 0 given the past, nobody can expect to gain, so
the mean of their wealths exceeds 1/alpha with probability at most alpha, at any time (Ville's inequality).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

STAKES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of their wealth that the bettors of a side stake, where an observation is as large as it can be."""
LARGEST_LOG = 700.0
"""exp of more does not fit into a number of JSON."""


@dataclass(slots=True)
class Bet:
    """The wealth of all bettors, and its largest so far."""

    up: list[float] = field(default_factory=lambda: [0.0] * len(STAKES))
    """Logarithm of the wealth of those who bet on a mean above 0, in the order of STAKES."""
    down: list[float] = field(default_factory=lambda: [0.0] * len(STAKES))
    """Of those who bet on a mean below 0."""
    largest: float = 0.0
    """Logarithm of the largest e-value so far."""
    side: int = 0
    """Whose wealth was the larger when the e-value was largest: 1 above 0, -1 below, 0 while it never rose above 1."""

    def add(self, fraction: float) -> None:
        """Take an observation as a fraction of the largest that it could have been: from -1 to 1.

        The largest may change from one to the next, if it is known before the observation.
        """
        assert -1.0 - 1e-9 <= fraction <= 1.0 + 1e-9, fraction
        for index, stake in enumerate(STAKES):
            self.up[index] += math.log1p(stake * fraction)
            self.down[index] += math.log1p(-stake * fraction)
        current = self.log_e
        if current > self.largest:
            self.largest = current
            self.side = 1 if log_mean(self.up) >= log_mean(self.down) else -1

    @property
    def log_e(self) -> float:
        """Logarithm of the e-value now."""
        return log_mean(self.up + self.down)

    @property
    def e_value(self) -> float:
        """The e-value now."""
        return exponential(self.log_e)

    @property
    def p_value(self) -> float:
        """The always-valid p-value: 1 / the largest e-value so far."""
        return min(1.0, math.exp(-self.largest))

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"up": list(self.up), "down": list(self.down), "largest": self.largest, "side": self.side}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Bet:
        """Read what to_record returned."""
        return cls(**record)


def log_mean(logs: list[float]) -> float:
    """Return the logarithm of the mean of what these are logarithms of."""
    top = max(logs)
    return top + math.log(math.fsum(math.exp(one - top) for one in logs) / len(logs))


def exponential(log: float) -> float:
    """Return e to the power of `log`, capped where it leaves the range of a number."""
    return math.exp(min(log, LARGEST_LOG))
