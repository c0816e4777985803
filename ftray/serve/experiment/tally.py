"""The running sums of one experiment: everything its report needs, whatever the number of its units.

An event is folded once, in the order in which the store has committed it; the same events give the same tally to the
last bit, and so do a tally's JSON form and what is folded after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftray.serve.experiment.spec import MEASURED, ExperimentSpec, Guardrail
from ftray.serve.experiment.statistics.comparison import Centre, Comparison
from ftray.serve.experiment.statistics.preferences import Preferences
from ftray.serve.experiment.statistics.sample_ratio import SampleRatio
from ftray.serve.experiment.statistics.sequences import Interval, Moments

FEWEST = 50
"""A guardrail, whose values have no bounds, has no interval before so many units of the arm."""
GROWTH = 1.03
"""The history has a point each time the outcomes have grown by this factor: about 78 for each factor of ten."""


@dataclass(slots=True)
class Tally:
    """Sums over the units' first outcomes of a running experiment."""

    spec: ExperimentSpec
    ratio: SampleRatio = field(default_factory=SampleRatio)
    centre: Centre = field(default_factory=Centre)
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    """By challenger."""
    metrics: dict[str, dict[str, Moments]] = field(default_factory=dict)
    """By metric and arm: of the outcome, of each guardrail and of what is measured."""
    tripped: list[list[Any]] = field(default_factory=list)
    """[position of the guardrail, arm], in the order in which they tripped."""
    preferences: Preferences | None = None
    late: int = 0
    """Outcomes and votes that came after the end: stored, and in none of these sums."""
    next_point: int = 1
    """The number of outcomes at which the history gets its next point."""
    as_of: str = ""
    """When the last event of these sums was taken."""

    def expose(self, arm: str, chances: Mapping[str, float], *, at: str) -> None:
        """Take a unit's first exposure, with the chances that it had of each arm."""
        self._see(at)
        self.ratio.add(arm, chances)

    def outcome(self, metric: str, arm: str, value: float, chances: Mapping[str, float], *, at: str) -> None:
        """Take a unit's first outcome of a metric; `chances` are those of its exposure."""
        self._see(at)
        moments = self.metrics.setdefault(metric, {}).setdefault(arm, Moments())
        moments.add(value)
        for position, guardrail in enumerate(self.spec.guardrails):
            if guardrail.metric == metric and self._is_beyond(guardrail, arm) and [position, arm] not in self.tripped:
                self.tripped.append([position, arm])
        if metric == self.spec.metric:
            self._compare(arm, value, chances)

    def _compare(self, arm: str, value: float, chances: Mapping[str, float]) -> None:
        control = self.spec.control
        for one in self.spec.arms:
            if one.name == control:
                continue
            comparison = self.comparisons.setdefault(one.name, Comparison())
            if arm not in (one.name, control):
                comparison.skip()
                continue
            comparison.add(
                value,
                centre=self.centre.value,
                is_challenger=arm == one.name,
                challenger=chances[one.name],
                control=chances[control],
            )
        self.centre.add(value)

    def prefer(self, *, rater: str, chosen: str, rejected: str, is_tie: bool, at: str) -> None:
        """Take a rater's first vote on a pair of arms."""
        self._see(at)
        names = [arm.name for arm in self.spec.arms]
        self.preferences = self.preferences or Preferences(arms=len(names))
        self.preferences.add(rater=rater, chosen=names.index(chosen), rejected=names.index(rejected), is_tie=is_tie)

    def _see(self, at: str) -> None:
        # Threads stamp their calls before they are put in order.
        self.as_of = max(self.as_of, at)

    def is_due(self) -> bool:
        """Return whether the history gets a point now, and wait for the next one if so."""
        if self.centre.n < self.next_point:
            return False
        self.next_point = max(self.centre.n + 1, math.ceil(self.centre.n * GROWTH))
        return True

    def guardrail_interval(self, guardrail: Guardrail, arm: str) -> Interval | None:
        """Return an arm's mean of a guardrail's metric, once there are enough units.

        Over all guardrails and arms, one is tripped that should not be with probability alpha at most.
        """
        moments = self.moments(guardrail.metric, arm)
        if moments.n < FEWEST:
            return None
        return moments.interval(self.spec.alpha / (len(self.spec.guardrails) * len(self.spec.arms)))

    def _is_beyond(self, guardrail: Guardrail, arm: str) -> bool:
        interval = self.guardrail_interval(guardrail, arm)
        if interval is None:
            return False
        return interval.low > guardrail.limit if guardrail.direction == "lower" else interval.high < guardrail.limit

    def moments(self, metric: str, arm: str) -> Moments:
        """Return count and mean of a metric in an arm."""
        return self.metrics.get(metric, {}).get(arm) or Moments()

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form, without the spec."""
        return {
            "ratio": self.ratio.to_record(),
            "centre": [self.centre.n, self.centre.value],
            "comparisons": {arm: comparison.to_record() for arm, comparison in self.comparisons.items()},
            "metrics": {
                metric: {arm: moments.to_record() for arm, moments in by_arm.items()}
                for metric, by_arm in self.metrics.items()
            },
            "tripped": self.tripped,
            "preferences": self.preferences.to_record() if self.preferences else None,
            "late": self.late,
            "next_point": self.next_point,
            "as_of": self.as_of,
        }

    @classmethod
    def from_record(cls, spec: ExperimentSpec, record: dict[str, Any]) -> Tally:
        """Read what to_record returned."""
        preferences = record["preferences"]
        return cls(
            spec=spec,
            ratio=SampleRatio.from_record(record["ratio"]),
            centre=Centre(n=record["centre"][0], value=record["centre"][1]),
            comparisons={arm: Comparison.from_record(one) for arm, one in record["comparisons"].items()},
            metrics={
                metric: {arm: Moments.from_record(one) for arm, one in by_arm.items()}
                for metric, by_arm in record["metrics"].items()
            },
            tripped=record["tripped"],
            preferences=Preferences.from_record(preferences) if preferences else None,
            late=record["late"],
            next_point=record["next_point"],
            as_of=record["as_of"],
        )


def measured_metrics(spec: ExperimentSpec) -> set[str]:
    """Return the metrics that an experiment takes: its outcome, its guardrails, and what is measured."""
    return {spec.metric, *(guardrail.metric for guardrail in spec.guardrails), *MEASURED}
