"""A challenger against the control, under weights that may change while it runs.

Every outcome is set against the mean of those before it and weighted by one over the chance that its unit had of its
arm: psi = (Y - m) (1{challenger} / pi_challenger - 1{control} / pi_control). Given the past, the mean of psi is the
difference of the arms, whatever the weights were; where there is none it is 0, also when the base rate drifts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ftray.serve.experiment.statistics.betting import Bet
from ftray.serve.experiment.statistics.sequences import Interval, Moments

PRIOR_MEAN, PRIOR_WEIGHT = 0.5, 1.0
"""The running mean starts as if one outcome of 0.5 had been seen."""
MEMORY = 100
"""From so many outcomes on, the running mean forgets: an outcome's part in it falls by a hundredth with every other.

Any mean of the past is valid, and one that follows a drifting rate stays valid where fewer units of one arm send
feedback: what is left of an outcome then has mean 0 in either arm. jobs/bench_statistics shows what happens without.
"""


@dataclass(slots=True)
class Centre:
    """The running mean of all arms' outcomes, shrunken towards one half: what is known before the next outcome."""

    n: int = 0
    value: float = PRIOR_MEAN

    def add(self, outcome: float) -> None:
        """Take an outcome, after everything that needs the mean before it."""
        self.n += 1
        self.value += (outcome - self.value) / (PRIOR_WEIGHT + min(self.n, MEMORY))


@dataclass(slots=True)
class Comparison:
    """What the outcomes so far say of challenger and control."""

    bet: Bet = field(default_factory=Bet)
    effect: Moments = field(default_factory=Moments)
    """Of psi, over the outcomes of all arms: those of third arms are 0."""
    least: float = 1.0
    """The smallest chance that a unit had of one of the two."""

    def add(self, outcome: float, *, centre: float, is_challenger: bool, challenger: float, control: float) -> None:
        """Take an outcome from 0 to 1 of one of the two; `challenger` and `control` are its unit's chances of each."""
        self.least = min(self.least, challenger, control)
        psi = (outcome - centre) * (1.0 / challenger if is_challenger else -1.0 / control)
        bound = max(centre, 1.0 - centre) / min(challenger, control)
        self.effect.add(psi)
        self.bet.add(psi / bound)

    def skip(self) -> None:
        """Take an outcome of a third arm: it says nothing of these two, and their wealth stays as it is."""
        self.effect.add(0.0)

    def difference(self, alpha: float) -> Interval | None:
        """Return challenger minus control with its confidence sequence; None before the first outcome.

        Widened as if each arm had one more outcome, as far from the mean as can be: a hundred right answers in a row
        leave a few wrong ones possible.
        """
        return self.effect.interval(alpha, extra_squares=2.0 / self.least**2)

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"bet": self.bet.to_record(), "effect": self.effect.to_record(), "least": self.least}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Comparison:
        """Read what to_record returned."""
        return cls(
            bet=Bet.from_record(record["bet"]), effect=Moments.from_record(record["effect"]), least=record["least"]
        )
