"""The default is never stopped, each stop has its reason, and a campaign that goes on decides as it would have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.sweep.schedulers import SchedulerName, Sparing, make_scheduler, replay

NAMES: list[SchedulerName] = ["asha", "median", "none"]
CONTROLLER = SimpleNamespace(get_live_trials=list)


class Trial:
    """What schedulers see of Tune's trials."""

    def __init__(self, name: str) -> None:
        self.trial_id, self.name = f"tune-{name}", name


def scheduler(name: SchedulerName = "asha", *, mode: str = "max", grace: int = 10) -> Sparing:
    return make_scheduler(name, max_tokens=90, grace_tokens=grace, mode=mode, default_trial_id="default")  # type: ignore[arg-type]


def result(name: str, tokens: int, value: float, **more: Any) -> dict[str, Any]:
    return {"trial": name, "trial_id": f"tune-{name}", "tokens": tokens, "best_validation_accuracy": value, **more}


def run(rule: Sparing, name: str, values: list[float]) -> list[str]:
    """Report an evaluation each 10 tokens, as Tune does, until the trial is stopped; return the decisions."""
    trial, decisions = Trial(name), []
    rule.on_trial_add(CONTROLLER, trial)
    for number, value in enumerate(values, start=1):
        reported = result(name, 10 * number, value)
        if number == 9:
            rule.on_trial_complete(CONTROLLER, trial, {**reported, "finished": True, "done": True})
            return decisions
        decisions.append(rule.on_trial_result(CONTROLLER, trial, reported))
        if decisions[-1] == "STOP":
            rule.on_trial_complete(CONTROLLER, trial, {**reported, "done": True})
            return decisions
    return decisions


@pytest.mark.parametrize("name", NAMES)
def test_the_default_goes_on_and_a_trial_as_bad_is_stopped(name: SchedulerName) -> None:
    rule = scheduler(name)
    for good in ("a", "b", "c", "d"):
        run(rule, good, [0.9] * 9)
    assert run(rule, "default", [0.1] * 9) == ["CONTINUE"] * 8
    assert rule.reasons == {}
    bad = run(rule, "bad", [0.1] * 9)
    if name == "none":
        assert bad == ["CONTINUE"] * 8
    else:
        assert bad[-1] == "STOP"
        assert rule.reasons["bad"].startswith(f"{name}: 0.1 after ")
        assert "0.9" in rule.reasons["bad"]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_others_are_compared_with_the_default(name: SchedulerName) -> None:
    rule = scheduler(name)
    run(rule, "default", [0.9] * 9)
    if name == "median":
        for other in ("a", "b"):
            run(rule, other, [0.9] * 9)
    assert run(rule, "bad", [0.1] * 9) == ["STOP"]


def test_lower_can_be_better() -> None:
    rule = scheduler(mode="min")
    run(rule, "a", [0.1] * 9)
    assert run(rule, "b", [0.05] * 9) == ["CONTINUE"] * 8
    assert run(rule, "c", [0.5] * 9) == ["STOP"]
    assert "best of the others so far: 0.05" in rule.reasons["c"]


def test_nothing_is_stopped_before_the_grace() -> None:
    rule = scheduler(grace=45)
    run(rule, "a", [0.9] * 9)
    assert run(rule, "b", [0.1] * 9) == ["CONTINUE"] * 4 + ["STOP"]


def test_a_trial_that_has_finished_is_not_stopped() -> None:
    rule = scheduler()
    run(rule, "a", [0.9] * 9)
    trial = Trial("short")
    rule.on_trial_add(CONTROLLER, trial)
    assert rule.on_trial_result(CONTROLLER, trial, result("short", 10, 0.1, finished=True)) == "CONTINUE"
    # Not even the longest, by asha's own max_t.
    trial = Trial("long")
    rule.on_trial_add(CONTROLLER, trial)
    assert rule.on_trial_result(CONTROLLER, trial, result("long", 90, 0.95)) == "CONTINUE"
    assert rule.on_trial_result(CONTROLLER, trial, result("long", 900, 0.95)) == "CONTINUE"


@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation_reported_twice_counts_once(name: SchedulerName) -> None:
    rule = scheduler(name)
    for good in ("a", "b", "c"):
        run(rule, good, [0.5, 0.6, 0.7])
    trial = Trial("again")
    rule.on_trial_add(CONTROLLER, trial)
    decisions = [
        rule.on_trial_result(CONTROLLER, trial, result("again", tokens, 0.8)) for tokens in (10, 10, 20, 10, 20, 30)
    ]
    assert decisions == ["CONTINUE"] * 6


def test_an_evaluation_that_is_no_number_decides_nothing() -> None:
    rule = scheduler()
    run(rule, "a", [0.9] * 9)
    trial = Trial("nan")
    rule.on_trial_add(CONTROLLER, trial)
    assert rule.on_trial_result(CONTROLLER, trial, result("nan", 10, float("nan"))) == "CONTINUE"
    rule.on_trial_complete(CONTROLLER, trial, {})


CURVES = st.lists(st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.7]), min_size=9, max_size=9), min_size=2, max_size=10)


@settings(deadline=None)
@given(curves=CURVES, split=st.integers(1, 9), name=st.sampled_from(NAMES), mode=st.sampled_from(["max", "min"]))
def test_a_campaign_that_goes_on_decides_as_it_would_have(
    curves: list[list[float]], split: int, name: SchedulerName, mode: str
) -> None:
    whole, restarted = scheduler(name, mode=mode), scheduler(name, mode=mode)
    names = ["default", *(f"trial{number}" for number in range(1, len(curves)))]
    histories = {}
    for trial, curve in list(zip(names, curves, strict=True))[:split]:
        decisions = run(whole, trial, curve)
        seen = len(decisions) if decisions[-1] == "STOP" else 9
        histories[trial] = [result(trial, 10 * number, curve[number - 1]) for number in range(1, seen + 1)]
    replay(restarted, dict(reversed(histories.items())))
    assert restarted.reasons == {}
    for trial, curve in list(zip(names, curves, strict=True))[split:]:
        assert run(restarted, trial, curve) == run(whole, trial, curve)


def test_tune_may_say_the_objective_again() -> None:
    rule = scheduler()
    assert rule.set_search_properties("best_validation_accuracy", "max")
    assert rule.set_search_properties(None, None)
    assert not rule.set_search_properties("loss", "max")
    assert rule.metric == "best_validation_accuracy"


@pytest.mark.parametrize("name", ["asha", "median"])
def test_what_an_earlier_attempt_let_go_on_is_heard_and_not_decided_again(name: SchedulerName) -> None:
    rule = scheduler(name)
    for good in ("a", "b", "c", "d"):
        run(rule, good, [0.9] * 9)
    rule.approved = {"bad": 30.0}
    assert run(rule, "bad", [0.1] * 9) == ["CONTINUE", "CONTINUE", "STOP"]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_no_trial_is_stopped_in_its_warm_up(name: SchedulerName) -> None:
    rule = scheduler(name)
    for good in ("a", "b", "c", "d"):
        run(rule, good, [0.9] * 9)
    trial = Trial("slow")
    rule.on_trial_add(CONTROLLER, trial)
    warm = [result("slow", 10 * step, 0.1, step=step, warmup_steps=3) for step in (1, 2, 3)]
    decisions = [rule.on_trial_result(CONTROLLER, trial, one) for one in warm]
    assert decisions == ["CONTINUE", "CONTINUE", "STOP"]
