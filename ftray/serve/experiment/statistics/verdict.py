"""What the evidence comes to: one pure function from the numbers of a report to a verdict in plain words.

A tripped guardrail comes first (it protects whoever is being served), then the sample ratio (nothing else can be
trusted without it), then a winner, then "no difference worth having".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ftray.serve.experiment.statistics.betting import exponential
from ftray.serve.experiment.statistics.sequences import Interval

Verdict = Literal["collecting", "winner", "no_difference", "stopped_guardrail", "blocked_sample_ratio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A challenger beside the control."""

    arm: str
    difference: Interval | None
    """Challenger minus control."""
    largest_log_e: float
    side: int
    """1: the challenger was ahead when the e-value was largest; -1: the control was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """A guardrail that an arm has tripped."""

    arm: str
    metric: str
    limit: float
    direction: Literal["lower", "higher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A verdict with its reason."""

    verdict: Verdict
    reason: str
    winner: str | None = None


def needed_log_e(alpha: float, comparisons: int) -> float:
    """Return the logarithm of the e-value that a winner needs: comparisons / alpha."""
    return math.log(comparisons / alpha)


def decide(
    *,
    control: str,
    challenges: Sequence[Challenge],
    trips: Sequence[Trip],
    ratio_blocked: bool,
    alpha: float,
    margin: float,
) -> Decision:
    """Return the verdict."""
    if trips:
        said = "; ".join(f"{trip.arm}: {trip.metric} is {_beyond(trip)} {trip.limit:g}" for trip in trips)
        also = " The sample ratio is off, too." if ratio_blocked else ""
        return Decision(verdict="stopped_guardrail", reason=f"A guardrail has tripped. {said}.{also}")
    if ratio_blocked:
        return Decision(
            verdict="blocked_sample_ratio",
            reason="The arms do not get the units that their weights say. Something loses or repeats units of one arm: "
            "no outcome can be trusted until that is found, and the experiment has to be begun anew.",
        )
    needed = needed_log_e(alpha, len(challenges))
    proven = [one for one in challenges if one.largest_log_e >= needed]
    better = [one for one in proven if one.side > 0]
    if better:
        return _challenger_wins(max(better, key=_estimate), better, control, margin=margin, needed=needed)
    if len(proven) == len(challenges):
        said = ", ".join(f"{one.arm} ({_points(one.difference)})" for one in challenges)
        least = min(challenges, key=lambda one: one.largest_log_e)
        reason = f"{control} is better than {said}; {_evidence(least, needed)}."
        return Decision(verdict="winner", winner=control, reason=reason)
    if all(_is_within(one.difference, margin) for one in challenges):
        said = ", ".join(f"{one.arm} {_points(one.difference)}" for one in challenges)
        return Decision(
            verdict="no_difference",
            reason=f"No challenger differs from {control} by {100 * margin:g} points or more: {said}.",
        )
    return Decision(verdict="collecting", reason=_so_far(challenges, control, needed))


def _challenger_wins(
    best: Challenge, better: Sequence[Challenge], control: str, *, margin: float, needed: float
) -> Decision:
    reason = f"{best.arm} is better than {control}: {_points(best.difference)}; {_evidence(best, needed)}."
    others = [one.arm for one in better if one is not best]
    if others:
        reason += f" So {'is' if len(others) == 1 else 'are'} {', '.join(others)}; {best.arm} has the highest estimate."
    if _is_within(best.difference, margin):
        reason += f" The difference is real, and smaller than the margin of {100 * margin:g} points."
    return Decision(verdict="winner", winner=best.arm, reason=reason)


def _so_far(challenges: Sequence[Challenge], control: str, needed: float) -> str:
    said = "; ".join(
        f"{one.arm} minus {control} is {_points(one.difference)}, largest e-value {exponential(one.largest_log_e):.3g}"
        for one in challenges
        if one.difference is not None
    )
    if not said:
        return "No outcomes yet."
    return f"Not decided: {said}; a winner needs {exponential(needed):.4g}."


def _evidence(one: Challenge, needed: float) -> str:
    return f"the e-value has reached {exponential(one.largest_log_e):.3g}, and {exponential(needed):.4g} was needed"


def _is_within(difference: Interval | None, margin: float) -> bool:
    return difference is not None and difference.low > -margin and difference.high < margin


def _estimate(one: Challenge) -> float:
    return one.difference.estimate if one.difference else -math.inf


def _points(difference: Interval | None) -> str:
    if difference is None:
        return "no outcomes"
    # Weighted by propensities the estimate, and early on the interval, can leave what a difference of shares can be.
    clipped = (min(1.0, max(-1.0, number)) for number in (difference.estimate, difference.low, difference.high))
    value, low, high = (100 * number for number in clipped)
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def _beyond(trip: Trip) -> str:
    return "above" if trip.direction == "lower" else "below"
