"""Who answers: names of models, the arms of units, and what is remembered; and when a report ends an experiment."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from api_world import BASE, World, experiment, tell
from hypothesis import given
from hypothesis import strategies as st

from ftray.serve.api import router as router_module
from ftray.serve.api.catalogue import base_name, experiment_name, spelling
from ftray.serve.api.limits import MOST_CALLERS, Limits, Rate
from ftray.serve.api.problems import Problem
from ftray.serve.api.router import Router
from ftray.serve.api.watch import Action, decide
from ftray.serve.experiment.assignment import assign
from ftray.serve.experiment.spec import Experiment, ExperimentSpec, Exposure


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("tiny", ("tiny", None, None)),
        ("tiny:tuned", ("tiny", "tuned", None)),
        ("tiny:tuned@" + "a" * 12, ("tiny", "tuned", "a" * 12)),
        ("tiny:tuned@" + "a" * 64, ("tiny", "tuned", "a" * 64)),
        ("tiny:tuned@" + "a" * 11, None),
        ("tiny:tuned@" + "A" * 12, None),
        ("tiny:", None),
        ("tiny:x", None),
        ("tiny:../../etc", None),
        ("tiny/tuned", None),
        ("tiny:tuned\n", None),
        ("", None),
    ],
)
def test_spellings(model: str, parts: tuple[str, str | None, str | None] | None) -> None:
    found = spelling(model)
    assert (None if found is None else (found.base, found.name, found.digest)) == parts


@given(st.text(max_size=80))
def test_no_text_of_a_request_becomes_a_path(text: str) -> None:
    for model in (text, f"tiny:{text}", f"tiny:tuned@{text}", f"exp:{text}"):
        found = spelling(model)
        for part in (found.base, found.name or "", found.digest or "") if found else (experiment_name(model) or "",):
            assert not set(part) & set("/\\.\0 \n")


@pytest.mark.parametrize(
    ("model", "name"),
    [("Qwen/Qwen2.5-0.5B-Instruct", "qwen2-5-0-5b-instruct"), ("/models/tiny/", "tiny"), ("./stories3M", "stories3m"),
     ("exp", "base"), ("...", "base"), ("a" * 100, "a" * 64)],
)  # fmt: skip
def test_the_base_s_name(model: str, name: str) -> None:
    assert base_name(model) == name
    assert spelling(name) is not None


async def begin(here: World, name: str = "greeting", **more: Any) -> Experiment:
    await here.serve("tuned")
    spec = ExperimentSpec.model_validate(experiment(name, **more))
    return await here.outcomes.create(spec, {"base": None, "tuned": here.digests["tuned"]})


def test_an_experiment_is_looked_up_once_a_moment_whoever_asks(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await begin(here)
        looked, now = 0, 0.0
        inner = here.outcomes.experiment

        async def counting(name: str) -> Experiment:
            nonlocal looked
            looked += 1
            return await inner(name)

        here.outcomes.experiment = counting  # type: ignore[method-assign]
        router = Router(here.catalogue, here.outcomes, clock=lambda: now)
        await asyncio.gather(*(router.target("exp:greeting", f"u{number}") for number in range(20)))
        assert looked == 1
        now = 2.0
        await router.target("exp:greeting", "u")
        assert looked == 2
        router.forget("greeting")
        await router.target("exp:greeting", "u")
        assert looked == 3
        for _ in range(2):
            with pytest.raises(Problem) as missing:
                await router.target("exp:nothing", "u")
            assert missing.value.status == 404
        assert looked == 5, "what is not there is not remembered"

    tell(tmp_path, story)


def test_a_unit_s_arm_is_remembered_whatever_the_weights_say(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        current = await begin(here)
        router = Router(here.catalogue, here.outcomes)
        arm = assign(current, "u").arm
        other = "tuned" if arm == "base" else "base"
        router.know(Exposure(experiment="greeting", unit="u", arm=other, propensity=0.3, is_new=False))
        target = await router.target("exp:greeting", "u")
        assert (target.arm, target.propensity, target.is_counted) == (other, 0.3, True)
        assert target.digest == current.digests[other]
        assert (await router.target("exp:greeting", "v")).arm == assign(current, "v").arm

    tell(tmp_path, story)


def test_as_many_units_are_remembered_as_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "MOST_UNITS", 2)

    async def story(here: World) -> None:
        current = await begin(here)
        router = Router(here.catalogue, here.outcomes)
        for unit in ("a", "b", "c"):
            other = "tuned" if assign(current, unit).arm == "base" else "base"
            router.know(Exposure(experiment="greeting", unit=unit, arm=other, propensity=0.5, is_new=True))
        remembered = [
            unit
            for unit in ("a", "b", "c")
            if (await router.target("exp:greeting", unit)).arm != assign(current, unit).arm
        ]
        assert remembered == ["b", "c"]

    tell(tmp_path, story)


def test_models_have_a_fingerprint_and_experiments_none(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await begin(here)
        router = Router(here.catalogue, here.outcomes)
        assert (await router.target(BASE, None)).fingerprint == "base"
        assert (await router.target("tiny:tuned", None)).fingerprint == here.digests["tuned"][:12]
        assert (await router.target("exp:greeting", "u")).fingerprint is None
        with pytest.raises(Problem) as refused:
            await router.target("exp:greeting", None)
        assert refused.value.status == 400

    tell(tmp_path, story)


SPEC = ExperimentSpec.model_validate(experiment(promote={"alias": "champion"}))
RAILS = [
    {"metric": "cost", "arm": "base", "tripped": False, "action": "rollback"},
    {"metric": "cost", "arm": "tuned", "tripped": True, "action": "rollback"},
]


def report(verdict: str, *, status: str = "running", winner: str | None = None, rails: Any = ()) -> dict[str, Any]:
    return {"status": status, "verdict": verdict, "reason": "so it is", "winner": winner, "guardrails": list(rails)}


@pytest.mark.parametrize("verdict", ["collecting", "no_difference", "blocked_sample_ratio"])
def test_people_decide_what_is_no_winner(verdict: str) -> None:
    assert decide(report(verdict), SPEC) is None


def test_a_winner_is_promoted_where_that_was_asked_for_and_it_still_runs() -> None:
    won = report("winner", winner="tuned")
    assert decide(won, SPEC) == Action(status="promoted", reason="so it is", promote="tuned")
    assert decide(won, SPEC.model_copy(update={"promote": None})) is None
    assert decide(won | {"status": "stopped"}, SPEC) is None


def test_a_guardrail_ends_it_and_says_who_must_go() -> None:
    tripped = report("stopped_guardrail", rails=RAILS)
    assert decide(tripped, SPEC) == Action(status="stopped", reason="so it is", roll_back=("tuned",))
    assert decide(tripped, SPEC.model_copy(update={"promote": None})) == Action(status="stopped", reason="so it is")
    stop = report("stopped_guardrail", rails=[rail | {"action": "stop"} for rail in RAILS])
    assert decide(stop, SPEC) == Action(status="stopped", reason="so it is")


def test_a_bucket_fills_at_its_rate_and_no_further() -> None:
    now = 0.0
    rate = Rate(Limits(requests_per_second=2.0, burst=3), clock=lambda: now)

    def refused() -> float | None:
        try:
            rate.take("ann")
        except Problem as problem:
            return problem.retry_after
        return None

    assert [refused() for _ in range(4)] == [None, None, None, 0.5]
    now = 0.25
    assert refused() == 0.25
    now = 0.5
    assert [refused() for _ in range(2)] == [None, 0.5], "being refused costs nothing"
    now = 1000.0
    assert [refused() for _ in range(4)] == [None, None, None, 0.5]


def test_no_rate_and_a_bounded_number_of_buckets() -> None:
    free = Rate(Limits(requests_per_second=None, burst=1))
    for _ in range(10):
        free.take("ann")
    rate = Rate(Limits(requests_per_second=1.0, burst=1), clock=lambda: 0.0)
    for number in range(MOST_CALLERS + 5):
        rate.take(f"caller-{number}")
    assert len(rate._buckets) == MOST_CALLERS
