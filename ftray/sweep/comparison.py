"""What the finalists are worth beside the default configuration and the base, on rows that were asked once.

Several comparisons are made at once, so each is held to more (Bonferroni): intervals hold together with 95 %, and
p-values are multiplied by how many there are. These rows choose nothing: the winner stays the validation rows' choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ftray.evaluate.intervals import (
    RESAMPLES,
    Estimate,
    RowStatistics,
    finite,
    mcnemar,
    newcombe,
    percentile_estimate,
    randomisation,
    resample,
    wilson,
)
from ftray.sweep.choice import Choice

if TYPE_CHECKING:
    from ftray.evaluate.config import Metric
    from ftray.evaluate.predict import RowPrediction

SIGNIFICANCE = 0.05
MOST_RESAMPLES = 40_000
"""Enough for the tails of 200 comparisons at once; more costs seconds and shows nothing."""
BASE = "base"
"""Whose scores these are, beside the trials'; a trial_id is 12 hex digits."""
Split = Literal["test", "validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One model's results on the rows, in the rows' order."""

    statistics: RowStatistics
    correct: NDArray[np.bool_] | None
    """[n] whether each row is right, where the metric is the share of right ones; else None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One model beside another on the same rows."""

    estimate: Estimate
    """This one less the other, in the metric's unit, with its simultaneous interval."""
    p_value: float
    """Of the two being equally good, this comparison taken alone."""
    comparisons: int
    """How many comparisons this is one of."""
    better: bool
    """In the metric's sense, by however little."""

    @property
    def adjusted_p_value(self) -> float:
        """The p-value that holds for all comparisons together."""
        return min(1.0, self.p_value * self.comparisons)

    @property
    def distinguishable(self) -> bool:
        """Whether it is better, and by more than noise."""
        return self.better and self.adjusted_p_value <= SIGNIFICANCE

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        record = self.estimate.to_record()
        return {
            "difference": record["value"],
            "low": record["low"],
            "high": record["high"],
            "p_value": finite(self.adjusted_p_value),
            "distinguishable": self.distinguishable,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The default configuration or a finalist, on the rows."""

    trial_id: str
    value: Estimate
    """The metric with its simultaneous interval."""
    against_default: Difference | None
    """None of the default itself, and where it has no value."""
    against_base: Difference

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "trial_id": self.trial_id,
            "value": self.value.to_record(),
            "against_default": self.against_default.to_record() if self.against_default else None,
            "against_base": self.against_base.to_record(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The finalists, the default configuration and the base on the same rows."""

    split: Split
    num_rows: int
    base: Estimate
    candidates: dict[str, Candidate]
    """By trial_id: the finalists, best by validation first, and the default if it is none of them."""
    winner_id: str
    default_id: str | None
    winner_vs_default: Difference | None
    """None where the default has no value; no difference where the winner is the default."""
    reason: str
    """How many comparisons the numbers account for, and why."""

    @property
    def winner(self) -> Candidate:
        """The validation rows' choice."""
        return self.candidates[self.winner_id]

    @property
    def default(self) -> Candidate | None:
        """The default configuration, if it has a value."""
        return None if self.default_id is None else self.candidates[self.default_id]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "split": self.split,
            "num_rows": self.num_rows,
            "base": self.base.to_record(),
            "candidates": [candidate.to_record() for candidate in self.candidates.values()],
            "winner_vs_default": self.winner_vs_default.to_record() if self.winner_vs_default else None,
            "reason": self.reason,
        }


def scores_of(metric: Metric, rows: Sequence[RowPrediction]) -> Scores:
    """Return one model's graded answers as what is compared here."""
    # This module is also for those that never load a model, and the metrics' import brings PyTorch.
    from ftray.evaluate.metrics import is_share, statistics

    correct = np.array([row.correct is True for row in rows]) if is_share(metric, rows) else None
    return Scores(statistics=statistics(metric, rows), correct=correct)


def compare_finalists(
    choice: Choice, scores: Mapping[str, Scores], base: Scores, *, higher_is_better: bool, split: Split
) -> Comparison:
    """Compare the finalists with the default configuration and the base.

    `scores` has the default's and each finalist's results by trial_id, all of the same rows as the base's. On test
    rows, which chose nothing, the comparisons are those that are made. On validation rows all trials took part in the
    choice, and each counts as a comparison (Bonferroni; Dunn 1961, JASA 56:52-64).
    Right or wrong rows: Wilson's and Newcombe's intervals and McNemar's exact test; else bootstrap and randomisation.
    """
    assert choice.winner is not None, "without a winner there is nothing to compare"
    default_id = choice.default.trial_id if choice.default else None
    finalists = [result.trial_id for result in choice.finalists]
    shown = finalists if default_id is None or default_id in finalists else [*finalists, default_id]
    num_asked = len(shown) if split == "test" else choice.num_candidates
    num_against_default = max(1, num_asked - 1)
    # The base's value is shown beside the others.
    num_values = num_asked + 1
    everyone = {**{name: scores[name] for name in shown}, BASE: base}
    sides = _Sides(everyone, higher_is_better=higher_is_better, most=num_values)
    candidates = {
        name: Candidate(
            trial_id=name,
            value=sides.value(name, num_values),
            against_default=None
            if default_id is None or name == default_id
            else sides.difference(name, default_id, num_against_default),
            against_base=sides.difference(name, BASE, num_asked),
        )
        for name in shown
    }
    winner = candidates[choice.winner.trial_id]
    is_default = winner.trial_id == default_id
    return Comparison(
        split=split,
        num_rows=sides.num_rows,
        base=sides.value(BASE, num_values),
        candidates=candidates,
        winner_id=winner.trial_id,
        default_id=default_id,
        winner_vs_default=_no_difference() if is_default else winner.against_default,
        reason=_account(split, is_default, default_id is not None, num_against_default, choice.num_candidates),
    )


class _Sides:
    """All models on the same rows, and how they are compared; `most` is the most that is asked at once."""

    def __init__(self, scores: Mapping[str, Scores], *, higher_is_better: bool, most: int) -> None:
        self._scores = scores
        self._higher_is_better = higher_is_better
        self._resamples = min(RESAMPLES * most, MOST_RESAMPLES)
        self._shares = all(one.correct is not None for one in scores.values())
        samples = [one.statistics for one in scores.values()]
        self.num_rows = len(samples[0].rows)
        # Shares have formulas. For the others the tail beyond an interval's end holds as many resamples as usual.
        drawn = [] if self._shares else resample(samples, resamples=self._resamples)
        self._resampled = dict(zip(scores, drawn, strict=not self._shares))

    def value(self, name: str, num_shown: int) -> Estimate:
        """Return one model's value; the intervals of `num_shown` of them hold together."""
        one = self._scores[name]
        if self._shares:
            assert one.correct is not None
            return wilson(int(one.correct.sum()), len(one.correct), level=_level(num_shown))
        return percentile_estimate(one.statistics.value, self._resampled[name], level=_level(num_shown))

    def difference(self, name: str, other: str, comparisons: int) -> Difference:
        """Return one model beside another, as one of so many comparisons."""
        paired = self._paired_shares if self._shares else self._paired_statistics
        estimate, p_value = paired(name, other, _level(comparisons))
        better = estimate.value > 0 if self._higher_is_better else estimate.value < 0
        return Difference(estimate=estimate, p_value=p_value, comparisons=comparisons, better=better)

    def _paired_shares(self, name: str, other: str, level: float) -> tuple[Estimate, float]:
        this, that = self._scores[name].correct, self._scores[other].correct
        assert this is not None
        assert that is not None
        only_this, only_that = int((this & ~that).sum()), int((that & ~this).sum())
        both, neither = int((this & that).sum()), int((~this & ~that).sum())
        return newcombe(both, only_that, only_this, neither, level=level), mcnemar(only_that, only_this)

    def _paired_statistics(self, name: str, other: str, level: float) -> tuple[Estimate, float]:
        this, that = self._scores[name].statistics, self._scores[other].statistics
        resampled = self._resampled[name] - self._resampled[other]
        estimate = percentile_estimate(this.value - that.value, resampled, level=level)
        return estimate, randomisation(that, this, resamples=self._resamples)


def _level(num_at_once: int) -> float:
    return 1 - SIGNIFICANCE / num_at_once


def _no_difference() -> Difference:
    nothing = Estimate(value=0.0, low=0.0, high=0.0)
    return Difference(estimate=nothing, p_value=1.0, comparisons=1, better=False)


def _account(split: Split, is_default: bool, has_default: bool, comparisons: int, num_candidates: int) -> str:
    """Say what the numbers account for."""
    if not has_default:
        return "The default configuration has no value to compare with."
    if is_default:
        return "The validation rows chose the default configuration itself: there is nothing to compare it with."
    if split == "validation":
        return (
            f"There is no test split: the validation rows chose among {num_candidates} trials, so the numbers account "
            f"for {comparisons} comparison{_s(comparisons)} with the default. They also chose each trial's checkpoint, "
            "so the values are biased upwards."
        )
    return (
        f"The validation rows chose the winner, the test rows chose nothing; the numbers account for {comparisons} "
        f"comparison{_s(comparisons)} with the default."
    )


def _s(number: int) -> str:
    return "" if number == 1 else "s"
