"""Forgetting as the page says it: which probe keeps its limit, and which items are worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import run_records
from hypothesis import given
from hypothesis import strategies as st

from ftray.artifacts import RunDirectory
from ftray.evaluate.compare import PairedCounts, TaskComparison
from ftray.evaluate.config import EvaluateConfig
from ftray.evaluate.forgetting import measure_forgetting
from ftray.evaluate.intervals import Estimate
from ftray.report.forgetting_view import ForgottenItem, forgetting_view, forgotten_item, worst_items
from ftray.report.records import Records, read_records

Json = dict[str, Any]
LIMITS = EvaluateConfig()


def task(name: str, metric: str, *, base: float, tuned: float, n: int = 100, forgotten: int | None = None) -> Json:
    paired = None if forgotten is None else {"both": 0, "only_base": forgotten, "only_tuned": 0, "neither": 0}
    one = run_records.compared(name, "general", base, tuned, bits=metric == "bits_per_byte")
    return {**one, "metric": metric, "n": n, "paired": paired, "degraded": forgotten or 0}


def line(probe: str, row: int, **keys: Any) -> Json:
    ends = {"base": "yes", "tuned": "no", "base_score": 1.0, "tuned_score": 0.0}
    graded = {"base_correct": None, "tuned_correct": None}
    return {"task": probe, "row": row, "prompt": f"prompt {row}", "expected": "yes", **ends, **graded, **keys}


def records(tasks: list[Json], lines: Sequence[Json] = (), **forgetting: Any) -> Records:
    return run_records.records(answers=lines, compared_on=run_records.evaluation(*tasks) | {"forgetting": forgetting})


def test_a_run_without_probes_has_no_such_section() -> None:
    assert forgetting_view(run_records.records()) is None
    assert forgetting_view(run_records.records(failure={"kind": "oom", "message": ""})) is None


def test_one_probe_beyond_a_limit_that_all_share_is_not_called_lost() -> None:
    few = task("few", "exact_match", base=1.0, tuned=0.9, n=10, forgotten=1)
    many = task("many", "exact_match", base=1.0, tuned=1.0, n=990, forgotten=0)
    view = forgetting_view(records([few, many]))
    assert view is not None
    assert [(probe.mark, probe.tone) for probe in view.probes] == [("more than that alone", "warn"), ("kept", "good")]
    alone = forgetting_view(records([few]))
    assert alone is not None
    assert alone.probes[0].mark == "lost"


def test_parts_say_what_is_counted_and_what_is_held_against_a_limit() -> None:
    counts = {"score": 0.5, "low": 0.4, "high": 0.6, "n": 100, "degraded": 50}
    parts = {"likelihood": counts, "right_or_wrong": counts, "score": counts}
    tasks = [
        task("facts", "exact_match", base=0.9, tuned=0.4, forgotten=50),
        task("words", "token_f1", base=0.9, tuned=0.88),
        task("stories", "bits_per_byte", base=1.0, tuned=1.05),
    ]
    drop = {"value": 0.02, "low": 0.0, "high": 0.05}
    view = forgetting_view(records(tasks, parts=parts, mean_drop=drop))
    assert view is not None
    assert [part.passed for part in view.parts] == [False, True, True]
    right, score, likelihood = view.parts
    assert "right before and are wrong now" in right.what
    assert right.limit == "5% of these items, all such probes together"
    assert "5 points" in score.limit
    assert "0.1 bits per byte" in likelihood.limit
    assert "over 10% more bits" in likelihood.what
    assert "\N{MINUS SIGN}2.0 points (\N{MINUS SIGN}5.0 to +0.0)" in view.drop


def test_a_number_that_is_missing_is_not_called_kept() -> None:
    broken = {**task("stories", "bits_per_byte", base=1.0, tuned=1.0), "bits_per_byte_change": None}
    view = forgetting_view(records([broken]))
    assert view is not None
    assert (view.probes[0].grading, view.probes[0].mark) == ("likelihood", "not measured")


@pytest.mark.parametrize(
    ("grading", "metric", "keys", "harm"),
    [
        ("right_or_wrong", "exact_match", {"base_correct": True, "tuned_correct": False}, 0.0),
        ("right_or_wrong", "exact_match", {"base_correct": True, "tuned_correct": True}, None),
        ("right_or_wrong", "exact_match", {"base_correct": False, "tuned_correct": False}, None),
        ("score", "token_f1", {"base_score": 0.75, "tuned_score": 0.25}, 0.5),
        ("score", "token_f1", {"base_score": 0.75, "tuned_score": 0.7}, None),
        ("likelihood", "bits_per_byte", {"base_score": 0.5, "tuned_score": 1.0}, 2.0),
        ("likelihood", "bits_per_byte", {"base_score": 0.5, "tuned_score": 0.54}, None),
        ("likelihood", "perplexity", {"base_score": math.e, "tuned_score": math.e**3}, 3.0),
        ("likelihood", "nll", {"base_score": 0.0, "tuned_score": 0.1}, math.inf),
        ("likelihood", "nll", {"base_score": 1.0, "tuned_score": None}, None),
    ],
)
def test_an_item_counts_as_forgotten_as_the_evaluation_counts_it(
    grading: Any, metric: str, keys: Json, harm: float | None
) -> None:
    item = forgotten_item(line("probe", 3, **keys), grading, metric)
    assert (None if item is None else item.harm) == (None if harm is None else pytest.approx(harm))


def test_items_that_lost_more_instructions_come_first() -> None:
    wrong = {"base_correct": True, "tuned_correct": False, "instructions": ["a", "b"], "base_followed": [True, True]}
    lines = [line("talk", row, **wrong, tuned_followed=[True, False]) for row in range(20)]
    lines[13]["tuned_followed"] = [False, False]
    talk = {**task("talk", "instructions", base=1.0, tuned=0.0, n=20, forgotten=20), "role": "instruction"}
    view = forgetting_view(records([talk], lines))
    assert view is not None
    (probe,) = view.forgotten
    assert probe.count == 20
    assert len(probe.items) == 6
    assert (probe.items[0].row, probe.items[0].broken) == (13, ("a", "b"))
    assert probe.items[1].broken == ("b",)


def item(row: int, harm: float) -> ForgottenItem:
    texts = dict.fromkeys(("prompt", "expected", "base", "tuned"), "")
    return ForgottenItem(row=row, **texts, base_score=None, tuned_score=None, harm=harm, broken=())


@given(st.lists(st.integers(0, 3)), st.integers(1, 8))
def test_the_worst_are_shown_worst_first_and_none_twice(harms: list[int], count: int) -> None:
    shown = worst_items([item(row, float(harm)) for row, harm in enumerate(harms)], count)
    assert [one.harm for one in shown] == sorted(map(float, harms), reverse=True)[:count]
    assert len({one.row for one in shown}) == len(shown)


def test_equally_bad_items_are_spread_over_the_file() -> None:
    assert [one.row for one in worst_items([item(row, 1.0) for row in range(60)], 3)] == [10, 30, 50]


def compared(grading: Any, only_base: int, n: int, harm: float) -> TaskComparison:
    """Return a comparison with these numbers; what is not looked at is left plain."""
    none = Estimate(value=0.0, low=0.0, high=0.0)
    paired = PairedCounts(both=0, only_base=only_base, only_tuned=0, neither=0) if grading == "right_or_wrong" else None
    metric = {"right_or_wrong": "exact_match", "score": "token_f1", "likelihood": "bits_per_byte"}[grading]
    return TaskComparison(
        name="probe", role="general", metric=metric, higher_is_better=True, n=n, difference=none, paired=paired,
        base=Estimate(value=0.5, low=0.0, high=1.0), tuned=Estimate(value=0.5 - harm, low=0.0, high=1.0), p_value=1.0,
        bits_per_byte_change=harm if grading == "likelihood" else None, collapse=None, grading=grading,
        degraded=only_base, ended=None, resampled_harm=np.zeros(10),
    )  # fmt: skip


GRADINGS = st.sampled_from(["right_or_wrong", "score", "likelihood"])


@given(st.lists(st.tuples(GRADINGS, st.integers(0, 8), st.integers(8, 200), st.floats(-0.3, 0.3)), min_size=1))
def test_the_parts_pass_together_exactly_when_the_evaluation_passes(
    drawn: list[tuple[str, int, int, float]],
) -> None:
    probes = [compared(*one) for one in drawn]
    forgetting = measure_forgetting(probes, LIMITS)
    assert forgetting is not None
    view = forgetting_view(records([probe.to_record() for probe in probes], **forgetting.to_record()))
    assert view is not None
    assert all(part.passed for part in view.parts) == forgetting.passed
    assert ("lost" in {probe.mark for probe in view.probes}) <= (not forgetting.passed)


def test_a_real_run_shows_as_many_items_as_were_counted(real_run: RunDirectory) -> None:
    run = read_records(real_run)
    view = forgetting_view(run)
    assert view is not None
    assert run.evaluation is not None
    assert {probe.grading for probe in view.probes} == {"right_or_wrong", "score", "likelihood"}
    counted = {one["name"]: one["degraded"] for one in run.evaluation["tasks"] if one["role"] != "task"}
    shown = {probe.name: probe.count for probe in view.forgotten}
    assert shown == {name: count for name, count in counted.items() if count and name != "format"}
    assert shown
