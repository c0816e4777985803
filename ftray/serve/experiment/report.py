"""An experiment's report, from its running sums: the cost does not grow with the units."""

from __future__ import annotations

import dataclasses
from typing import Any

from ftray.artifacts import jsonable
from ftray.serve.experiment.spec import Experiment, propensities
from ftray.serve.experiment.statistics.betting import exponential
from ftray.serve.experiment.statistics.comparison import Comparison
from ftray.serve.experiment.statistics.sequences import Interval, Moments
from ftray.serve.experiment.statistics.verdict import Challenge, Decision, Trip, decide
from ftray.serve.experiment.tally import Tally

SCHEMA = "ftray/experiment_report/1"
NOTHING = {"estimate": None, "low": None, "high": None}


def build_report(experiment: Experiment, tally: Tally) -> dict[str, Any]:
    """Return the report. Numbers that are not known yet are null."""
    spec = experiment.spec
    decision = reach_decision(experiment, tally)
    return jsonable(  # type: ignore[no-any-return]
        {
            "schema": SCHEMA,
            "experiment": spec.name,
            "status": experiment.status,
            "status_reason": experiment.reason,
            "verdict": decision.verdict,
            "reason": decision.reason,
            "winner": decision.winner,
            "control": spec.control,
            # The e-values are looked at after every outcome.
            "looks": tally.centre.n,
            "arms": [_arm(experiment, tally, arm.name, arm.model) for arm in spec.arms],
            "sample_ratio": {
                "e_value": tally.ratio.e_value,
                "blocked": tally.ratio.is_blocked,
                "largest_e_value": exponential(tally.ratio.largest),
                "expected": {arm.name: tally.ratio.expected.get(arm.name, 0.0) for arm in spec.arms},
            },
            "guardrails": _guardrails(tally),
            "preferences": _preferences(tally),
            "alpha": spec.alpha,
            "margin": spec.margin,
            "as_of": tally.as_of or experiment.created_at,
            "metric": spec.metric,
            "e_value_needed": (len(spec.arms) - 1) / spec.alpha,
            "weights": experiment.weights,
            "include": spec.include,
            "late": tally.late,
            "measured": {
                metric: {arm.name: _measured(tally.moments(metric, arm.name)) for arm in spec.arms}
                for metric in sorted(tally.metrics)
                if metric != spec.metric
            },
            "shadow": [
                {"name": arm.name, "model": arm.model, "digest": experiment.digests[arm.name]} for arm in spec.shadow
            ],
            "created_at": experiment.created_at,
        }
    )


def reach_decision(experiment: Experiment, tally: Tally) -> Decision:
    """Return the verdict on the sums so far."""
    spec = experiment.spec
    comparisons = {arm.name: _comparison(tally, arm.name) for arm in spec.arms if arm.name != spec.control}
    alpha = spec.alpha / len(comparisons)
    return decide(
        control=spec.control,
        challenges=[
            Challenge(arm=arm, difference=one.difference(alpha), largest_log_e=one.bet.largest, side=one.bet.side)
            for arm, one in comparisons.items()
        ],
        trips=[
            Trip(arm=arm, metric=rail.metric, limit=rail.limit, direction=rail.direction)
            for position, arm in tally.tripped
            for rail in [spec.guardrails[position]]
        ],
        ratio_blocked=tally.ratio.is_blocked,
        alpha=spec.alpha,
        margin=spec.margin,
    )


def history_point(experiment: Experiment, tally: Tally) -> dict[str, Any]:
    """Return what the report's plot over time needs of this moment."""
    spec = experiment.spec
    arms = []
    for arm in spec.arms:
        row = _arm(experiment, tally, arm.name, arm.model)
        kept = ("name", "units", "outcomes", "estimate", "low", "high",
                "difference", "difference_low", "difference_high", "e_value", "p_value")  # fmt: skip
        arms.append({key: row[key] for key in kept})
    point = {"outcomes": tally.centre.n, "at": tally.as_of, "sample_ratio": tally.ratio.e_value, "arms": arms}
    return jsonable(point)  # type: ignore[no-any-return]


def _comparison(tally: Tally, arm: str) -> Comparison:
    return tally.comparisons.get(arm) or Comparison()


def _arm(experiment: Experiment, tally: Tally, arm: str, model: str) -> dict[str, Any]:
    spec = experiment.spec
    moments = tally.moments(spec.metric, arm)
    # As if it had one more outcome, as far from the mean as can be: see Comparison.difference.
    interval = moments.interval(spec.alpha, extra_squares=1.0)
    row = {
        "name": arm,
        "model": model,
        "digest": experiment.digests[arm],
        "weight": experiment.weights[arm],
        "share": propensities(experiment.weights)[arm],
        "units": tally.ratio.seen.get(arm, 0),
        "outcomes": moments.n,
        "estimate": interval.estimate if interval else None,
        "low": max(0.0, interval.low) if interval else 0.0,
        "high": min(1.0, interval.high) if interval else 1.0,
    }
    if arm == spec.control:
        empty = dict.fromkeys(("difference", "difference_low", "difference_high", "e_value", "p_value"))
        return {**row, **empty, "largest_e_value": None}
    one = _comparison(tally, arm)
    difference = one.difference(spec.alpha / (len(spec.arms) - 1))
    return {
        **row,
        "difference": difference.estimate if difference else None,
        "difference_low": max(-1.0, difference.low) if difference else None,
        "difference_high": min(1.0, difference.high) if difference else None,
        "e_value": one.bet.e_value,
        "p_value": one.bet.p_value,
        "largest_e_value": exponential(one.bet.largest),
    }


def _guardrails(tally: Tally) -> list[dict[str, Any]]:
    rows = []
    for position, rail in enumerate(tally.spec.guardrails):
        for arm in tally.spec.arms:
            moments, interval = tally.moments(rail.metric, arm.name), tally.guardrail_interval(rail, arm.name)
            numbers = dataclasses.asdict(interval) if interval else NOTHING
            rows.append(
                {
                    "metric": rail.metric,
                    "arm": arm.name,
                    **numbers,
                    "tripped": [position, arm.name] in tally.tripped,
                    "direction": rail.direction,
                    "limit": rail.limit,
                    "action": rail.action,
                    "units": moments.n,
                }
            )
    return rows


def _measured(moments: Moments) -> dict[str, Any]:
    return {"n": moments.n, "mean": moments.mean if moments.n else None}


def _preferences(tally: Tally) -> dict[str, Any] | None:
    found = tally.preferences
    if found is None:
        return None
    names = [arm.name for arm in tally.spec.arms]
    strengths = found.strengths(names.index(tally.spec.control))
    return {
        "n": found.n,
        "wins": dict(zip(names, found.wins, strict=True)),
        "e_value": found.e_value,
        "against_control": dict(zip(names, map(_strength, strengths), strict=True)) if strengths else None,
    }


def _strength(interval: Interval) -> dict[str, float]:
    return {"value": interval.estimate, "low": interval.low, "high": interval.high}
