"""What was forgotten, and whether the tuned model should be shipped: pure decisions, each with its reasons.

A model is shipped when it beats its base on rows that chose nothing, by more than noise, and kept what it could do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ftray.evaluate.compare import TaskComparison
from ftray.evaluate.config import LOWER_IS_BETTER, EvaluateConfig
from ftray.evaluate.intervals import Estimate, finite, percentile_estimate

SIGNIFICANCE = 0.05
Split = Literal["test", "validation"]
Decision = Literal["ship", "do_not_ship", "inconclusive"]
Unit = Literal["score", "bits_per_byte"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgetting:
    """What the general probes lost.

    Positive is worse. `score` is the mean over the probes graded 0-1 of (base - tuned), gains counting against losses;
    where there are only likelihood probes, the mean increase of bits per byte. `unit` says which.
    """

    score: Estimate
    unit: Unit
    n: int
    """Rows of the probes in the score."""
    degraded: int
    """Probes, of either kind, that lost more than their own limit."""
    limit: float
    passed: bool
    """The mean score lost is within its limit, and so is every single increase of bits per byte."""
    reasons: tuple[str, ...]
    """Sentences on whatever exceeds its limit; on the score itself when nothing does."""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "score": finite(self.score.value),
            "low": finite(self.score.low),
            "high": finite(self.score.high),
            "unit": self.unit,
            "n": self.n,
            "degraded": self.degraded,
            "limit": self.limit,
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Ship or not, and why."""

    decision: Decision
    reasons: tuple[str, ...]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"decision": self.decision, "reasons": list(self.reasons)}


def measure_forgetting(comparisons: Sequence[TaskComparison], config: EvaluateConfig) -> Forgetting | None:
    """Sum up the general probes, or return None when there are none."""
    probes = [comparison for comparison in comparisons if comparison.role == "general"]
    if not probes:
        return None
    by_likelihood = [probe for probe in probes if probe.bits_per_byte_change is not None]
    by_score = [probe for probe in probes if probe.bits_per_byte_change is None]
    counted = by_score or by_likelihood
    limit = config.max_forgetting if by_score else config.max_bits_per_byte_increase
    # The probes' rows are independent, so are their resamples: their mean is a resample of the mean.
    score = percentile_estimate(
        float(np.mean([probe.harm for probe in counted])),
        np.mean([_independently(probe.resampled_harm, index) for index, probe in enumerate(counted)], axis=0),
    )
    too_many_bits = [probe for probe in by_likelihood if not probe.harm <= config.max_bits_per_byte_increase]
    too_low = [probe for probe in by_score if not probe.harm <= config.max_forgetting]
    mean_passed = not by_score or score.value <= config.max_forgetting
    reasons = [
        f"Probe '{probe.name}' rose by {probe.harm:.3f} bits per byte, beyond the limit of "
        f"{config.max_bits_per_byte_increase:g} (evaluate.max_bits_per_byte_increase)."
        for probe in too_many_bits
    ]
    if not mean_passed:
        reasons.append(
            f"The general probes lost {_points(score)} on average, beyond the limit of {limit:.1%} "
            "(evaluate.max_forgetting)."
        )
    reasons += [
        f"Probe '{probe.name}' fell from {probe.base.value:.1%} to {probe.tuned.value:.1%}." for probe in too_low
    ]
    if not reasons:
        lost = _points(score) if by_score else f"{score.value:+.3f} bits per byte"
        reasons = [f"The general probes changed within their limits (mean loss {lost}, limit {limit:g})."]
    return Forgetting(
        score=score,
        unit="score" if by_score else "bits_per_byte",
        n=sum(probe.n for probe in counted),
        degraded=len(too_many_bits) + len(too_low),
        limit=limit,
        passed=mean_passed and not too_many_bits,
        reasons=tuple(reasons),
    )


def decide(task: TaskComparison, forgetting: Forgetting | None, *, split: Split) -> Verdict:
    """Return the verdict on the tuned model.

    `ship`: on the test split better than the base with p <= 0.05, and forgetting within its limits (or not measured,
    which the reasons then say). `do_not_ship`: significantly worse than the base, or too much forgotten.
    `inconclusive`: no test split, or no difference beyond noise.
    """
    remembered = (
        forgetting.reasons
        if forgetting
        else ("Forgetting was not measured: the job names no general probes (evaluate.general).",)
    )
    reasons = (_comparison_sentence(task, split), *remembered)
    significant = task.p_value <= SIGNIFICANCE
    if split == "validation":
        biased = (
            "There is no test split: these rows also chose the checkpoint, so the tuned value is biased upwards. "
            "Add data.test for a verdict."
        )
        return Verdict(decision="inconclusive", reasons=(biased, *reasons))
    if forgetting is not None and not forgetting.passed:
        return Verdict(decision="do_not_ship", reasons=reasons)
    if significant and task.improvement < 0:
        return Verdict(decision="do_not_ship", reasons=reasons)
    if significant and task.improvement > 0:
        return Verdict(decision="ship", reasons=reasons)
    noise = f"That difference is not distinguishable from noise on {task.n} rows; more test rows may settle it."
    return Verdict(decision="inconclusive", reasons=(reasons[0], noise, *remembered))


def _comparison_sentence(task: TaskComparison, split: Split) -> str:
    better = "better than" if task.improvement > 0 else "worse than" if task.improvement < 0 else "equal to"
    p_value = "p < 0.001" if task.p_value < 0.001 else f"p = {task.p_value:.2g}"
    return (
        f"On {task.n} {split} rows the tuned model's {task.metric} is {_shown(task.metric, task.tuned)}, "
        f"{better} the base's {_shown(task.metric, task.base)} ({p_value})."
    )


def _shown(metric: str, estimate: Estimate) -> str:
    form = ".3f" if metric in LOWER_IS_BETTER else ".1%"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def _points(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def _independently(resampled: np.ndarray, index: int) -> np.ndarray:
    """Shuffle by a seed of its own: every probe was resampled from the same seed, which would correlate them."""
    return np.random.default_rng(index).permutation(resampled)
