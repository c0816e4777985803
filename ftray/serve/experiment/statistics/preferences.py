"""Pairwise preferences: evidence that some arm's answers are preferred, and how strong each arm is.

A rater's first vote on a pair of arms counts. A tie is half a win for each side. The strengths are Bradley-Terry's,
with a Poisson bootstrap over raters that takes each vote once: a rater's weight in each resample is a function of its
name.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftray.serve.experiment.statistics.betting import Bet, exponential, log_mean
from ftray.serve.experiment.statistics.sequences import Interval

RESAMPLES = 200
ROUNDS = 200
"""Of the minorisation-maximisation that fits the strengths; it needs fewer."""
PRIOR_WINS = 0.5
"""Added to both sides of every pair: an arm that has won every vote is not infinitely strong."""
POISSON = tuple(itertools.accumulate(math.exp(-1.0) / math.factorial(weight) for weight in range(8)))
"""The distribution function of the Poisson distribution with mean 1, from 0 to 7."""
FloatArray = NDArray[np.float64]


@dataclass(slots=True)
class Preferences:
    """Votes between arms, by their positions in the experiment."""

    arms: int
    n: int = 0
    wins: list[float] = field(default_factory=list)
    """Of each arm, over all pairs; empty before the first vote."""
    bets: dict[str, Bet] = field(default_factory=dict)
    """By "first,second" with first < second: does the second win more than half?"""
    resampled: dict[str, list[float]] = field(default_factory=dict)
    """By "winner,loser": wins in each resample of raters. Only with three arms or more."""
    counts: dict[str, float] = field(default_factory=dict)
    """By "winner,loser": wins."""

    def add(self, *, rater: str, chosen: int, rejected: int, is_tie: bool) -> None:
        """Take a rater's first vote on a pair of arms."""
        self.n += 1
        self.wins = self.wins or [0.0] * self.arms
        first, second = sorted((chosen, rejected))
        share = 0.5 if is_tie else float(chosen == second)
        self.bets.setdefault(f"{first},{second}", Bet()).add(2.0 * share - 1.0)
        weights = resample_weights(rater) if self.arms > 2 else []
        for winner, loser, won in ((second, first, share), (first, second, 1.0 - share)):
            self.wins[winner] += won
            if won == 0.0:
                continue
            pair = f"{winner},{loser}"
            self.counts[pair] = self.counts.get(pair, 0.0) + won
            if weights:
                sums = self.resampled.setdefault(pair, [0.0] * RESAMPLES)
                for index, weight in enumerate(weights):
                    sums[index] += weight * won

    @property
    def log_e(self) -> float:
        """Logarithm of the e-value against "no arm is preferred to another": the mean over all pairs of arms."""
        pairs = self.arms * (self.arms - 1) // 2
        return log_mean([bet.log_e for bet in self.bets.values()] + [0.0] * (pairs - len(self.bets)))

    @property
    def e_value(self) -> float:
        """The e-value now."""
        return exponential(self.log_e)

    def strengths(self, control: int) -> list[Interval] | None:
        """Return each arm's chance to be preferred to the control, with 95 % intervals; None for two arms.

        The intervals are the bootstrap's, and hold for one look.
        """
        if self.arms == 2 or self.n == 0:
            return None
        wins = np.zeros((RESAMPLES + 1, self.arms, self.arms))  # [resample, winner, loser], the votes themselves first
        for pair, won in self.counts.items():
            winner, loser = map(int, pair.split(","))
            wins[0, winner, loser] = won
            wins[1:, winner, loser] = self.resampled[pair]
        fitted = bradley_terry(wins)
        chances = fitted / (fitted + fitted[:, [control]])
        low, high = np.quantile(chances[1:], (0.025, 0.975), axis=0)
        return [
            Interval(estimate=float(value), low=float(least), high=float(most))
            for value, least, most in zip(chances[0], low, high, strict=True)
        ]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "arms": self.arms,
            "n": self.n,
            "wins": self.wins,
            "bets": {pair: bet.to_record() for pair, bet in self.bets.items()},
            "resampled": self.resampled,
            "counts": self.counts,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Preferences:
        """Read what to_record returned."""
        return cls(**{**record, "bets": {pair: Bet.from_record(bet) for pair, bet in record["bets"].items()}})


def resample_weights(rater: str) -> list[int]:
    """Return how often a rater is drawn in each resample: Poisson with mean 1, from the hash of its name."""
    stream = hashlib.shake_256(rater.encode()).digest(4 * RESAMPLES)
    places = (int.from_bytes(stream[at : at + 4], "big") / 2**32 for at in range(0, len(stream), 4))
    return [sum(place >= reached for reached in POISSON) for place in places]


def bradley_terry(wins: FloatArray) -> FloatArray:
    """Return strengths [resample, arm] that sum to 1, from wins [resample, winner, loser].

    Hunter, "MM algorithms for generalized Bradley-Terry models" (2004). Arm i is preferred to j with probability
    s_i / (s_i + s_j).
    """
    arms = wins.shape[-1]
    won = wins + PRIOR_WINS * (1.0 - np.eye(arms))
    total, met = won.sum(axis=2), won + np.swapaxes(won, 1, 2)
    strengths = np.full(total.shape, 1.0 / arms)
    for _ in range(ROUNDS):
        strengths = total / (met / (strengths[:, :, None] + strengths[:, None, :])).sum(axis=2)
        strengths /= strengths.sum(axis=1, keepdims=True)
    return strengths
