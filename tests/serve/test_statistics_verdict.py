"""The verdict as a function of the numbers, and the report that the contract asks for."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcome_world import digests, guardrails, spec

from ftray.serve.experiment.report import build_report
from ftray.serve.experiment.spec import Experiment, ExperimentSpec, propensities
from ftray.serve.experiment.statistics.sequences import Interval
from ftray.serve.experiment.statistics.verdict import Challenge, Decision, Trip, decide
from ftray.serve.experiment.tally import Tally

AT = "2026-01-02T03:04:05.678Z"


def challenge(
    arm: str = "tuned", *, low: float = -0.1, high: float = 0.1, log_e: float = 0.0, side: int = 0
) -> Challenge:
    between = Interval(estimate=(low + high) / 2, low=low, high=high)
    return Challenge(arm=arm, difference=between, largest_log_e=log_e, side=side)


def verdict(*challenges: Challenge, trips: tuple[Trip, ...] = (), blocked: bool = False) -> Decision:
    return decide(control="base", challenges=challenges, trips=trips, ratio_blocked=blocked, alpha=0.05, margin=0.02)


TRIP = Trip(arm="tuned", metric="latency_seconds", limit=2.0, direction="lower")
BETTER = challenge(low=0.01, high=0.2, log_e=4.0, side=1)
WORSE = challenge(low=-0.2, high=-0.01, log_e=4.0, side=-1)
SAME = challenge(low=-0.019, high=0.019)


def test_a_challenger_that_is_better_wins() -> None:
    found = verdict(BETTER)
    assert (found.verdict, found.winner) == ("winner", "tuned")
    assert "tuned is better than base: +10.5 points (+1.0 to +20.0)" in found.reason
    assert "20 was needed" in found.reason


def test_two_comparisons_need_twice_the_evidence() -> None:
    barely = challenge(low=0.01, high=0.2, log_e=3.2, side=1)
    assert verdict(barely).verdict == "winner"
    assert verdict(barely, challenge("other")).verdict == "collecting"


def test_the_best_of_two_better_ones_wins_and_the_other_is_named() -> None:
    best = challenge("other", low=0.1, high=0.3, log_e=5.0, side=1)
    found = verdict(BETTER, best)
    assert found.winner == "other"
    assert "So is tuned" in found.reason


def test_the_control_wins_when_every_challenger_is_worse() -> None:
    assert verdict(WORSE).winner == "base"
    assert verdict(WORSE, challenge("other")).verdict == "collecting"
    assert verdict(WORSE, BETTER).winner == "tuned"


def test_no_difference_needs_every_interval_within_the_margin() -> None:
    assert verdict(SAME).verdict == "no_difference"
    assert verdict(SAME, challenge("other", low=-0.021, high=0.01)).verdict == "collecting"
    assert verdict(challenge(low=-0.02, high=0.01)).verdict == "collecting"


def test_a_real_difference_within_the_margin_is_said_to_be_small() -> None:
    found = verdict(challenge(low=0.001, high=0.015, log_e=9.0, side=1))
    assert found.verdict == "winner"
    assert "smaller than the margin" in found.reason


@pytest.mark.parametrize("one", [BETTER, WORSE, SAME, challenge()])
def test_guardrail_and_sample_ratio_come_before_everything(one: Challenge) -> None:
    blocked = verdict(one, blocked=True)
    assert (blocked.verdict, blocked.winner) == ("blocked_sample_ratio", None)
    tripped = verdict(one, trips=(TRIP,), blocked=True)
    assert (tripped.verdict, tripped.winner) == ("stopped_guardrail", None)
    assert "tuned: latency_seconds is above 2" in tripped.reason
    assert "sample ratio is off, too" in tripped.reason


def test_nothing_is_said_before_there_is_something() -> None:
    nothing = Challenge(arm="tuned", difference=None, largest_log_e=0.0, side=0)
    assert verdict(nothing) == Decision(verdict="collecting", reason="No outcomes yet.")


def experiment(one: ExperimentSpec) -> Experiment:
    return Experiment(
        spec=one,
        digests=digests(one),
        weights={arm.name: arm.weight for arm in one.arms},
        status="running",
        reason="",
        salt="salt",
        created_at=AT,
    )


def report(
    one: ExperimentSpec, rates: Mapping[str, float], units: int, *, seed: int = 0, **broken: float
) -> dict[str, Any]:
    """Return the report of simulated units; `broken` is the share of an arm's units that are lost."""
    dice, tally = random.Random(0), Tally(spec=one)
    shares = propensities({arm.name: arm.weight for arm in one.arms})
    for _ in range(units):
        arm = dice.choices(list(shares), list(shares.values()))[0]
        if dice.random() < broken.get(arm, 0.0):
            continue
        tally.expose(arm, shares, at=AT)
        tally.outcome("latency_seconds", arm, dice.expovariate(1.0), shares, at=AT)
        tally.outcome(one.metric, arm, float(dice.random() < rates[arm]), shares, at=AT)
    again = Tally.from_record(one, json.loads(json.dumps(tally.to_record())))
    found = build_report(experiment(one), tally)
    assert build_report(experiment(one), again) == found
    json.dumps(found, allow_nan=False)
    return found


def test_a_plain_difference_ends_with_a_winner() -> None:
    found = report(spec(), {"base": 0.4, "tuned": 0.6}, 1500)
    assert (found["verdict"], found["winner"]) == ("winner", "tuned")
    tuned = found["arms"][1]
    assert tuned["p_value"] <= 0.05
    assert tuned["difference_low"] < 0.2 < tuned["difference_high"]
    assert tuned["low"] < 0.6 < tuned["high"]
    assert report(spec(), {"base": 0.6, "tuned": 0.4}, 1500)["winner"] == "base"


def test_arms_that_are_alike_end_with_no_difference() -> None:
    found = report(spec(margin=0.15), {"base": 0.9, "tuned": 0.9}, 1500)
    assert (found["verdict"], found["winner"]) == ("no_difference", None)


def test_lost_units_block_a_winner() -> None:
    found = report(spec(), {"base": 0.4, "tuned": 0.6}, 2500, tuned=0.3)
    assert found["verdict"] == "blocked_sample_ratio"
    assert found["sample_ratio"]["blocked"]
    assert found["arms"][1]["p_value"] <= 0.05


def test_a_slow_arm_trips_the_guardrail() -> None:
    strict = [{"metric": "latency_seconds", "direction": "lower", "limit": 0.5}]
    found = report(spec(guardrails=strict), {"base": 0.5, "tuned": 0.5}, 400)
    assert found["verdict"] == "stopped_guardrail"
    assert all(one["tripped"] and one["low"] > 0.5 for one in found["guardrails"])


def test_few_units_trip_nothing() -> None:
    strict = [{"metric": "latency_seconds", "direction": "lower", "limit": 0.001}]
    found = report(spec(guardrails=strict), {"base": 0.5, "tuned": 0.5}, 60)
    assert found["verdict"] == "collecting"
    assert [one["low"] for one in found["guardrails"]] == [None, None]


NUMBER, MAYBE = (float, int), (float, int, type(None))
ARM = {
    "name": str, "model": str, "digest": (str, type(None)), "weight": NUMBER, "units": int, "outcomes": int,
    "estimate": MAYBE, "low": NUMBER, "high": NUMBER, "difference": MAYBE, "difference_low": MAYBE,
    "difference_high": MAYBE, "e_value": MAYBE, "p_value": MAYBE,
}  # fmt: skip
GUARDRAIL = {"metric": str, "arm": str, "estimate": MAYBE, "low": MAYBE, "high": MAYBE, "tripped": bool}
REPORT = {
    "schema": str, "experiment": str, "status": str, "verdict": str, "reason": str, "winner": (str, type(None)),
    "control": str, "looks": int, "arms": list, "sample_ratio": dict, "guardrails": list,
    "preferences": (dict, type(None)), "alpha": NUMBER, "margin": NUMBER, "as_of": str,
}  # fmt: skip


@pytest.mark.parametrize("units", [0, 1, 3, 200])
@pytest.mark.parametrize("arms", [("base", "tuned"), ("base", "tuned", "other")])
def test_the_report_is_the_contracts(units: int, arms: tuple[str, ...]) -> None:
    found = report(spec(arms=arms, guardrails=guardrails()), dict.fromkeys(arms, 0.5), units)
    for record, kinds in ((found, REPORT), *((arm, ARM) for arm in found["arms"])):
        assert {key: isinstance(record[key], kind) for key, kind in kinds.items()} == dict.fromkeys(kinds, True)
    for guardrail in found["guardrails"]:
        assert all(isinstance(guardrail[key], kind) for key, kind in GUARDRAIL.items())
    assert found["schema"] == "ftray/experiment_report/1"
    assert isinstance(found["sample_ratio"]["e_value"], float)
    assert found["sample_ratio"]["blocked"] is False
    assert len(found["guardrails"]) == 2 * len(arms)
    control = found["arms"][0]
    assert all(
        control[key] is None for key in ("difference", "difference_low", "difference_high", "e_value", "p_value")
    )
    assert found["looks"] == sum(arm["outcomes"] for arm in found["arms"]) == units


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["base", "tuned"]), st.floats(min_value=0, max_value=1)), max_size=80))
def test_numbers_stay_where_they_belong(events: list[tuple[str, float]]) -> None:
    one, shares = spec(), {"base": 0.5, "tuned": 0.5}
    tally = Tally(spec=one)
    for arm, value in events:
        tally.expose(arm, shares, at=AT)
        tally.outcome("outcome", arm, value, shares, at=AT)
    found = build_report(experiment(one), tally)
    for arm in found["arms"]:
        if arm["outcomes"]:
            assert 0 <= arm["low"] <= arm["estimate"] <= arm["high"] <= 1
    tuned = found["arms"][1]
    assert tuned["e_value"] > 0
    assert 0 < tuned["p_value"] <= 1
    if events:
        assert -1 <= tuned["difference_low"] <= tuned["difference_high"] <= 1


def test_a_measured_metric_cannot_be_the_outcome() -> None:
    with pytest.raises(ValueError, match="make it a guardrail"):
        spec(metric="latency_seconds")
