"""Every searcher suggests each trial once, the points first, and goes on from what is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search import Searcher
from sweep.campaign import configurations

from ftray.campaign import Config
from ftray.errors import InputError
from ftray.sweep.configurations import Configurations
from ftray.sweep.search import Distinct, make_searcher

LISTED = {"rank": [4, 8], "alpha": [8.0, 16.0], "rslora": [True, False], "dropout": [0.0, 0.1]}
RANGED = {
    "rank": [4, 8, 16],
    "learning_rate": {"loguniform": [1e-5, 1e-2]},
    "dropout": {"uniform": [0.0, 0.3]},
    "warmup": {"int": [0, 9]},
}


class Repeating(Searcher):
    """Suggests the same few configurations over and over; keeps what it is told."""

    def __init__(self, metric: str | None = None, mode: str | None = None, seed: int = 0) -> None:
        super().__init__(metric=metric, mode=mode)
        self.count, self.told = 0, []

    def suggest(self, trial_id: str) -> Config:
        self.count += 1
        return {"rank": (4, 8, 16)[self.count % 3]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.told.append(None if error or not result else result["best_validation_accuracy"])


def value_of(config: Config) -> float:
    rate = float(config.get("learning_rate", 1e-4))
    return 1 - 0.2 * abs(math.log10(rate) + 3) - float(config.get("dropout", 0.0))


def drive(searcher: Distinct, made: Configurations, *, concurrent: int = 3) -> list[Config]:
    """Run the searcher to its end with so many trials at a time, as Tune does; return its suggestions."""
    given, live, number = [], [], 0
    while True:
        suggestion = searcher.suggest(f"t{number}")
        if suggestion == Searcher.FINISHED:
            return given
        assert isinstance(suggestion, dict)
        given.append(suggestion)
        live.append((f"t{number}", suggestion))
        number += 1
        while len(live) >= concurrent:
            trial_id, config = live.pop(0)
            result = {"best_validation_accuracy": value_of(config), "training_iteration": 1}
            searcher.on_trial_result(trial_id, result)
            searcher.on_trial_complete(trial_id, result)


def searcher(name: str, made: Configurations, *, trials: int = 12, seed: int = 0, **how: Any) -> Distinct:
    points = how.pop("points", [made.default().config])
    return make_searcher(name, made.space, points=points, trials=trials, seed=seed, mode="max", key_of=made.key, **how)


@pytest.mark.parametrize("name", ["random", "optuna", f"{__name__}:Repeating"])
@given(seed=st.integers(0, 1000), trials=st.integers(2, 20))
@settings(max_examples=10, deadline=None)
def test_suggestions_are_different_trials(name: str, seed: int, trials: int) -> None:
    for space in (LISTED, RANGED) if ":" not in name else ({"rank": [4, 8, 16, 32]},):
        made = configurations(space)
        search = searcher(name, made, trials=trials, seed=seed)
        given = drive(search, made)
        keys = [made.key(config) for config in given]
        assert len(keys) == len(set(keys)) <= trials
        assert given[0] == made.default().config
        assert len(keys) == trials or search.exhausted


@pytest.mark.parametrize("name", ["grid", "random", "optuna"])
def test_a_small_space_is_tried_whole(name: str) -> None:
    made = configurations(LISTED)
    search = searcher(name, made, trials=40)
    different = {made.key(config) for config in drive(search, made)}
    # Rank 4 with rslora and alpha 8 is rank 4 with alpha 16: 2 of 16 points, with either dropout.
    assert different == {spec.trial_id for spec in made.grid()}
    assert len(different) == 14 + 1
    assert search.exhausted
    assert search.deduplicated >= 2


def test_a_grid_comes_in_its_order_after_the_default() -> None:
    made = configurations({"rank": [4, 16, 8], "dropout": [0.0, 0.1]})
    search = searcher("grid", made, trials=6)
    given = drive(search, made)
    assert given[0] == {"rank": 16, "dropout": 0.0}
    assert [config["rank"] for config in given[1:]] == [4, 4, 16, 8, 8]
    assert (search.deduplicated, search.exhausted) == (0, False)


@pytest.mark.parametrize("name", ["random", "optuna"])
def test_the_seed_decides_the_suggestions(name: str) -> None:
    made = configurations(RANGED)
    first, again, other = (drive(searcher(name, made, seed=seed), made) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_optuna_finds_better_rates_than_chance() -> None:
    made = configurations({"learning_rate": {"loguniform": [1e-7, 1e-2]}})

    def late(name: str) -> float:
        values = [
            value_of(config)
            for seed in range(5)
            for config in drive(searcher(name, made, trials=30, seed=seed), made, concurrent=1)[15:]
        ]
        return sum(values) / len(values)

    assert late("optuna") > late("random") + 0.1


@pytest.mark.parametrize("name", ["grid", "random", "optuna"])
def test_what_finished_before_is_not_suggested_again(name: str) -> None:
    made = configurations({"rank": [4, 8, 16], "dropout": [0.0, 0.1]})
    whole = drive(searcher(name, made, trials=6), made)
    known = [(config, value_of(config)) for config in whole[:3]]
    search = searcher(name, made, trials=6, known=known)
    given = drive(search, made)
    assert {made.key(config) for config in given} == {made.key(config) for config in whole[3:]}
    assert search.deduplicated == 0 or name != "grid"


def test_optuna_learns_from_what_is_known() -> None:
    made = configurations({"learning_rate": {"loguniform": [1e-7, 1e-2]}})
    known = [({"learning_rate": 10 ** (-6.9 + number / 4)}, 0.0) for number in range(20)]
    known = [(config, value_of(config)) for config, _ in known]
    search = searcher("optuna", made, trials=26, known=known)
    finished = [trial for trial in search.inner._ot_study.trials if trial.state.is_finished()]
    assert [trial.value for trial in finished] == pytest.approx([value for _, value in known])
    given = drive(search, made, concurrent=1)
    assert given[0] == made.default().config
    assert len(given) == 6


def test_a_default_that_finished_before_is_no_point_again() -> None:
    made = configurations({"learning_rate": {"loguniform": [1e-5, 1e-2]}, "rank": [8, 16]})
    default = made.default().config
    interrupted = {"learning_rate": 3e-4, "rank": 8}
    for name in ("random", "optuna"):
        known = [(default, 0.5), ({"learning_rate": 2e-5, "rank": 16}, 0.4)]
        search = searcher(name, made, trials=5, points=[default, interrupted, interrupted], known=known)
        given = drive(search, made)
        assert given[0] == interrupted
        assert default not in given
        assert len(given) == 3


def test_a_default_outside_the_space_is_tried_first() -> None:
    made = configurations({"learning_rate": {"loguniform": [1e-3, 1e-2]}})
    search = searcher("optuna", made)
    given = drive(search, made)
    assert given[0] == {"learning_rate": 1e-4}
    assert all(1e-3 <= config["learning_rate"] <= 1e-2 for config in given[1:])
    assert len(search.inner._ot_study.trials) == 11


def test_interrupted_points_come_before_new_ones() -> None:
    made = configurations(RANGED)
    points = [made.default().config | {"rank": 8, "learning_rate": rate, "warmup": 3} for rate in (1e-4, 2e-4, 1e-3)]
    for name in ("random", "optuna"):
        assert drive(searcher(name, made, points=points), made)[:3] == points


def test_a_repeated_suggestion_is_answered_with_what_it_came_to() -> None:
    made = configurations({"rank": [4, 8, 16, 32]})
    search = searcher(f"{__name__}:Repeating", made, trials=4)
    given = drive(search, made, concurrent=1)
    # The fourth it never says itself.
    assert [config["rank"] for config in given] == [16, 8, 4, 32]
    assert isinstance(search.inner, Repeating)
    assert set(search.inner.told) == {value_of({})}
    assert search.deduplicated > 90


def test_a_trial_without_a_number_is_an_error_to_the_searcher() -> None:
    made = configurations({"learning_rate": {"loguniform": [1e-5, 1e-2]}})
    search = searcher("optuna", made)
    assert search.suggest("a") == made.default().config
    result = {"best_validation_accuracy": math.nan, "training_iteration": 1}
    search.on_trial_result("a", result)
    search.on_trial_complete("a", result)
    assert isinstance(search.suggest("b"), dict)
    search.on_trial_complete("b")
    search.on_trial_complete("never suggested")
    assert [trial.state.name for trial in search.inner._ot_study.trials] == ["FAIL", "FAIL"]


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("optunna", "unknown_searcher", "optuna"),
        ("nothing:Here", "unknown_searcher", "PYTHONPATH"),
        ("math:sqrt", "unknown_searcher", "Searcher"),
        ("hyperopt", "missing_package", "optuna"),
        ("hebo", "missing_package", "optuna"),
        ("ax", "missing_package", "optuna"),
    ],
)
def test_a_searcher_that_there_is_not_is_refused(name: str, kind: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        searcher(name, configurations(RANGED))
    assert (caught.value.kind, caught.value.path) == (kind, "sweep.searcher")
    assert says in caught.value.hint


def test_tune_may_save_it_and_say_the_objective_again(tmp_path: Path) -> None:
    search = searcher("optuna", configurations(RANGED))
    search.save_to_dir(str(tmp_path))
    search.restore(str(tmp_path / "nothing"))
    assert search.set_search_properties("best_validation_accuracy", "max", {})
    assert not search.set_search_properties("loss", "max", {})
