"""What fine-tuning destroyed of what the base could do: counted item by item over the general and instruction probes.

`score` counts items and says how much was forgotten; the limits of the job decide whether that is too much, each for
the probes it can be read on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftray.evaluate.compare import Grading, TaskComparison
from ftray.evaluate.config import EvaluateConfig
from ftray.evaluate.intervals import Estimate, percentile_estimate, wilson

GENERAL_ROLES = frozenset({"general", "instruction"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Degraded:
    """How many of some items fine-tuning made worse."""

    n: int
    degraded: int

    @property
    def share(self) -> Estimate:
        """Their share with Wilson's interval."""
        return wilson(self.degraded, self.n)

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        share = self.share
        return {"score": share.value, "low": share.low, "high": share.high, "n": self.n, "degraded": self.degraded}


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgetting:
    """What the general probes lost.

    Three kinds of probes (`compare.Grading`) have three limits, and all must hold for `passed`:
    right or wrong: of all such items together, the share that the base got right and the tuned model gets wrong is at
    most `evaluate.max_forgetting`. Scores between 0 and 1: each probe's mean falls by at most `max_forgetting`.
    Likelihoods: each probe's bits per byte rise by at most `evaluate.max_bits_per_byte_increase`.
    """

    items: Degraded
    """All graded items: `items.share` is the forgetting score."""
    parts: dict[Grading, Degraded]
    """The same items by how they are graded; the part `right_or_wrong` is what `max_forgetting` is held against."""
    mean_drop: Estimate | None
    """Mean over the probes graded 0-1 of (base - tuned), gains counting against losses; None where there are none."""
    limit: float
    max_bits_per_byte_increase: float
    passed: bool
    reasons: tuple[str, ...]
    """Sentences on whatever exceeds its limit; on the score itself when nothing does."""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            **self.items.to_record(),
            "unit": "share",
            "mean_drop": self.mean_drop.to_record() if self.mean_drop else None,
            "parts": {name: part.to_record() for name, part in self.parts.items()},
            "limit": self.limit,
            "max_bits_per_byte_increase": self.max_bits_per_byte_increase,
            "passed": self.passed,
        }


def measure_forgetting(comparisons: Sequence[TaskComparison], config: EvaluateConfig) -> Forgetting | None:
    """Count what the general and instruction probes lost, or return None when there are none."""
    probes = [comparison for comparison in comparisons if comparison.role in GENERAL_ROLES]
    if not probes:
        return None
    by_grading: dict[Grading, list[TaskComparison]] = {}
    for probe in probes:
        by_grading.setdefault(probe.grading, []).append(probe)
    parts = {grading: _sum(some) for grading, some in by_grading.items()}
    excesses = [
        *_too_many_wrong(by_grading.get("right_or_wrong", []), config.max_forgetting),
        *_too_low(by_grading.get("score", []), config.max_forgetting),
        *_too_many_bits(by_grading.get("likelihood", []), config.max_bits_per_byte_increase),
    ]
    items = _sum(probes)
    return Forgetting(
        items=items,
        parts=parts,
        mean_drop=_mean_drop([probe for probe in probes if probe.grading != "likelihood"]),
        limit=config.max_forgetting,
        max_bits_per_byte_increase=config.max_bits_per_byte_increase,
        passed=not excesses,
        reasons=tuple(excesses) or (_within(probes, parts, config),),
    )


def _sum(probes: Sequence[TaskComparison]) -> Degraded:
    return Degraded(n=sum(probe.n for probe in probes), degraded=sum(probe.degraded for probe in probes))


def _mean_drop(probes: Sequence[TaskComparison]) -> Estimate | None:
    if not probes:
        return None
    # The probes' rows are independent, so are their resamples: their mean is a resample of the mean.
    resampled = [_independently(probe.resampled_harm, index) for index, probe in enumerate(probes)]
    return percentile_estimate(float(np.mean([probe.harm for probe in probes])), np.mean(resampled, axis=0))


def _too_many_wrong(probes: Sequence[TaskComparison], limit: float) -> list[str]:
    if not probes:
        return []
    part = _sum(probes)
    if part.share.value <= limit:
        return []
    worst = [
        f"Probe '{probe.name}' fell from {probe.base.value:.1%} to {probe.tuned.value:.1%}: "
        f"{probe.degraded} of {probe.n} forgotten."
        for probe in probes
        if probe.degraded > limit * probe.n
    ]
    return [
        f"Of {part.n} general items {part.degraded} were right before and are wrong now: {_shown(part.share)}, beyond "
        f"the limit of {limit:.1%} (evaluate.max_forgetting).",
        *worst,
    ]


def _too_low(probes: Sequence[TaskComparison], limit: float) -> list[str]:
    return [
        f"Probe '{probe.name}' fell from {probe.base.value:.1%} to {probe.tuned.value:.1%} ({probe.metric}), beyond "
        f"the limit of {limit:.1%} (evaluate.max_forgetting)."
        for probe in probes
        if not probe.harm <= limit
    ]


def _too_many_bits(probes: Sequence[TaskComparison], limit: float) -> list[str]:
    return [
        f"Probe '{probe.name}' rose by {probe.harm:.3f} bits per byte, beyond the limit of {limit:g} "
        "(evaluate.max_bits_per_byte_increase)."
        for probe in probes
        if not probe.harm <= limit
    ]


def _within(probes: Sequence[TaskComparison], parts: dict[Grading, Degraded], config: EvaluateConfig) -> str:
    """Say what changed, each part beside the limit that it kept."""
    said = []
    if part := parts.get("right_or_wrong"):
        said.append(
            f"{part.degraded} of {part.n} items forgotten, {_shown(part.share)}, limit {config.max_forgetting:.1%}"
        )
    for probe in probes:
        if probe.grading == "likelihood":
            limit = config.max_bits_per_byte_increase
            said.append(f"'{probe.name}' {probe.harm:+.3f} bits per byte, limit {limit:g}")
        elif probe.grading == "score":
            said.append(f"'{probe.name}' {-probe.harm:+.1%}, limit -{config.max_forgetting:.1%}")
    return f"The general probes changed within their limits: {'; '.join(said)}."


def _shown(share: Estimate) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def _independently(resampled: np.ndarray, index: int) -> np.ndarray:
    """Shuffle by a seed of its own: every probe was resampled from the same seed, which would correlate them."""
    return np.random.default_rng(index).permutation(resampled)
