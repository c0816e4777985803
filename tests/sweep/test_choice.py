"""Who wins and why, in every tie; the Pareto front against its definition."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_trials import trial

from ftray.campaign import TrialResult
from ftray.sweep.choice import choose, pareto, rank

NAN, INFINITY = float("nan"), float("inf")
ids = st.integers(0, 2**48 - 1).map(lambda number: f"{number:012x}")
numbers = st.sampled_from([0.5, 0.8, 0.8, 0.9, NAN, INFINITY, -INFINITY])
trials = st.lists(
    st.builds(
        trial,
        ids,
        st.none() | numbers,
        numbers,
        config=st.sampled_from([{}, {"rank": 4}, {"rank": 8}]),
        role=st.sampled_from(["search", "search", "seed"]),
        state=st.sampled_from(["completed", "pruned", "diverged", "failed", "budget"]),
    ),
    max_size=12,
    unique_by=lambda result: result.trial_id,
)
harms = st.sampled_from([0.0, 0.1, 0.1, 0.3, NAN])


def ranked_ids(results: list[TrialResult], **options: object) -> list[str]:
    return [result.trial_id for result in rank(results, **{"higher_is_better": True, **options})]  # type: ignore[arg-type]


def test_the_best_accuracy_wins_however_the_trial_ended() -> None:
    results = [
        trial("a", 0.90, loss=0.1),
        trial("b", 0.95, loss=2.0, state="pruned"),
        trial("c", None, state="failed"),
        trial("d", 0.99, role="seed"),
    ]
    assert ranked_ids(results) == ["b", "a"]


def test_a_lower_value_wins_where_lower_is_better() -> None:
    assert ranked_ids([trial("a", 3.0), trial("b", 2.5)], higher_is_better=False) == ["b", "a"]


@pytest.mark.parametrize(
    ("first", "second", "forgetting", "by"),
    [
        (trial("b", 0.9, 0.2), trial("a", 0.8, 0.1), {}, "has the best validation accuracy of 2 trials."),
        (
            trial("b", 0.9, 0.1),
            trial("a", 0.9, 0.2),
            {},
            "wins by lower validation loss among 2 trials with equal validation accuracy.",
        ),
        (trial("b", 0.9, 0.1), trial("a", 0.9, NAN), {}, "wins by lower validation loss among 2"),
        (
            trial("b", 0.9, config={"rank": 4}),
            trial("a", 0.9, config={"rank": 8}),
            {"b": 0.5, "a": 0.1},
            "wins by smaller rank among 2",
        ),
        (
            trial("b", 0.9, config={"rank": 4}),
            trial("a", 0.9, config={"rank": 4}),
            {"b": 0.1, "a": 0.5},
            "wins by less forgetting among 2",
        ),
        (
            trial("b", 0.9, config={"rank": 8}),
            trial("a", 0.9),
            {"b": 0.1, "a": 0.5},
            "less forgetting among 2 trials with equal validation accuracy and validation loss.",
        ),
        (trial("a", 0.9), trial("b", 0.9), {"b": 0.1}, "is first by its id alone among 2 trials"),
        (trial("b", 0.1), trial("a", NAN), {}, "is the only one with a validation accuracy."),
    ],
)
def test_ties_go_by_loss_then_rank_then_forgetting_then_id(
    first: TrialResult, second: TrialResult, forgetting: dict[str, float], by: str
) -> None:
    for results in ([first, second], [second, first]):
        assert rank(results, higher_is_better=True, forgetting=forgetting) == [first, second]
        choice = choose(results, higher_is_better=True, finalists=1, forgetting=forgetting)
        assert choice.winner == first
        assert choice.finalists == (first,)
        assert by in choice.reason


def test_the_default_is_found_outside_the_finalists_and_named_when_it_wins() -> None:
    results = [trial("a", 0.7, is_default=True), trial("b", 0.8), trial("c", 0.9), trial("d", None)]
    choice = choose(results, higher_is_better=True, finalists=2)
    assert choice.default == results[0]
    assert [one.trial_id for one in choice.finalists] == ["c", "b"]
    assert choice.num_candidates == 3
    alone = choose(results[:1], higher_is_better=True, finalists=2)
    assert alone.winner == alone.default
    assert "(the default configuration)" in alone.reason


def test_a_campaign_without_any_value_has_no_winner() -> None:
    choice = choose([trial("a", None), trial("b", NAN, is_default=True)], higher_is_better=True, finalists=3)
    assert (choice.winner, choice.default, choice.finalists, choice.num_candidates) == (None, None, (), 0)
    assert "No trial" in choice.reason


@given(trials, st.dictionaries(ids, harms), st.booleans(), st.randoms(use_true_random=False))
def test_the_order_is_total_and_does_not_depend_on_who_ended_first(
    results: list[TrialResult], forgetting: dict[str, float], higher: bool, shuffle: random.Random
) -> None:
    ranked = rank(results, higher_is_better=higher, forgetting=forgetting)
    assert {one.trial_id for one in ranked} == {one.trial_id for one in results if one.role == "search" and one.best}
    shuffled = shuffle.sample(results, len(results))
    again = rank(shuffled, higher_is_better=higher, forgetting=forgetting)
    assert [one.trial_id for one in again] == [one.trial_id for one in ranked]
    values = [one.best.validation_accuracy for one in ranked if one.best]
    finite = [value for value in values if math.isfinite(value)]
    assert finite == sorted(finite, reverse=higher)
    assert all(map(math.isfinite, values[: len(finite)]))


@given(trials, st.data(), st.booleans())
def test_the_front_holds_exactly_those_that_no_other_beats(
    results: list[TrialResult], data: st.DataObject, higher: bool
) -> None:
    forgetting = {one.trial_id: data.draw(harms) for one in results if data.draw(st.booleans())}
    sign = -1 if higher else 1
    points = {
        one.trial_id: (sign * one.best.validation_accuracy, forgetting[one.trial_id])
        for one in results
        if one.role == "search" and one.best and one.trial_id in forgetting
    }
    points = {name: point for name, point in points.items() if all(map(math.isfinite, point))}
    unbeaten = {
        name
        for name, (loss, harm) in points.items()
        if not any(x <= loss and y <= harm and (x, y) != (loss, harm) for x, y in points.values())
    }
    front = pareto(results, forgetting, higher_is_better=higher)
    if points:
        assert set(front) == unbeaten
        assert [points[name][0] for name in front] == sorted(points[name][0] for name in front)
    assert len(set(front)) == len(front)


def test_without_forgetting_the_front_is_the_best_accuracy() -> None:
    results = [trial("a", 0.8), trial("b", 0.9), trial("c", 0.9), trial("d", INFINITY)]
    assert pareto(results, None, higher_is_better=True) == ["b", "c"]
    assert pareto(results, {"a": NAN}, higher_is_better=True) == ["b", "c"]
    assert pareto(results, {"a": 0.0, "b": 0.1}, higher_is_better=True) == ["b", "a"]
    assert pareto([], None, higher_is_better=True) == []
