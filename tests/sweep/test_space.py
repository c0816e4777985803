"""A space is refused where it is wrong, before anything starts, and has the points that it says."""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep.campaign import job

from ftray.errors import InputError
from ftray.model.config import MethodConfig
from ftray.presets import PRESETS, PresetName
from ftray.space import Range, SweepConfig
from ftray.sweep.fields import FIELDS, RATIO, UNSWEEPABLE
from ftray.sweep.space import Sample, choose_scheduler, choose_searcher, grid, resolve_space
from ftray.train.config import TrainConfig


def refusal(space: dict[str, Any] | None, **how: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        resolve_space(job(space, **how))
    assert caught.value.hint
    assert caught.value.path is not None
    return caught.value


def test_every_field_of_both_sections_can_be_swept_or_says_why_not() -> None:
    fields = set(MethodConfig.model_fields) | set(TrainConfig.model_fields)
    assert fields == (set(FIELDS) | set(UNSWEEPABLE)) - {RATIO, "seed"}
    assert not set(FIELDS) & set(UNSWEEPABLE)


@pytest.mark.parametrize(
    ("space", "kind", "path"),
    [
        ({}, "empty_space", "sweep.space"),
        ({"learningrate": [1e-4, 1e-3]}, "unsweepable_field", "sweep.space.learningrate"),
        ({"method.rank": [8, 16]}, "unsweepable_field", "sweep.space.method.rank"),
        ({"precision": ["fp32", "bf16"]}, "unsweepable_field", "sweep.space.precision"),
        ({"target_modules": ["all-linear"]}, "unsweepable_field", "sweep.space.target_modules"),
        ({"alpha": [8.0], "alpha_over_rank": [1, 2]}, "contradictory_space", "sweep.space.alpha_over_rank"),
        ({"epochs": [1, 2], "max_steps": [10, 20]}, "contradictory_space", "sweep.space.epochs"),
        ({"min_learning_rate": [0, 1e-5], "schedule": ["constant"]}, "contradictory_space",
         "sweep.space.min_learning_rate"),
        ({"rank": [8, 0]}, "bad_value", "sweep.space.rank"),
        ({"rank": [8, 8.5]}, "bad_value", "sweep.space.rank"),
        ({"rank": {"uniform": [4, 16]}}, "bad_value", "sweep.space.rank"),
        ({"rank": {"int": [0, 16]}}, "bad_value", "sweep.space.rank"),
        ({"learning_rate": {"int": [1, 2]}}, "bad_value", "sweep.space.learning_rate"),
        ({"learning_rate": ["high", "low"]}, "bad_value", "sweep.space.learning_rate"),
        ({"dropout": {"uniform": [0, 1]}}, "bad_value", "sweep.space.dropout"),
        ({"schedule": {"uniform": [0, 1]}}, "bad_value", "sweep.space.schedule"),
        ({"schedule": ["cosine", "square"]}, "bad_value", "sweep.space.schedule"),
        ({"rslora": [1, 0]}, "bad_value", "sweep.space.rslora"),
        ({"rank": [16]}, "space_too_small", "sweep.space"),
        ({"alpha_over_rank": [2]}, "space_too_small", "sweep.space"),
    ],
)  # fmt: skip
def test_a_wrong_space_is_refused(space: dict[str, Any], kind: str, path: str) -> None:
    error = refusal(space)
    assert (error.kind, error.path) == (kind, path)


def test_a_refusal_names_what_was_meant_and_which_value_is_wrong() -> None:
    assert "learning_rate" in refusal({"learningrate": [1]}).hint
    assert "`rank`" in refusal({"method.rank": [8]}).hint
    error = refusal({"weight_decay": [0.0, -0.1]})
    assert error.given == -0.1
    assert "greater than or equal to 0" in error.allowed
    assert "int: [4, 16]" in refusal({"rank": {"loguniform": [4, 16]}}).hint


def test_a_space_that_the_rest_of_the_job_forbids_is_refused() -> None:
    assert refusal({"epochs": [1, 2]}, train={"max_steps": 5}).kind == "contradictory_space"
    error = refusal({"rank": [8, 16]}, method={"kind": "full"})
    assert (error.kind, error.path) == ("unsweepable_field", "sweep.space.rank")
    assert "rank" not in error.allowed


def test_a_grid_needs_lists_and_enough_trials() -> None:
    ranged = {"learning_rate": {"loguniform": [1e-5, 1e-3]}, "rank": [8, 16]}
    error = refusal(ranged, sweep={"searcher": "grid"})
    assert (error.kind, error.path) == ("contradictory_space", "sweep.space.learning_rate")
    listed = {"rank": [4, 8, 16], "epochs": [1, 2]}
    error = refusal(listed, sweep={"searcher": "grid", "trials": 5})
    assert (error.kind, error.path, error.given) == ("contradictory_space", "sweep.trials", 5)
    assert resolve_space(job(listed, sweep={"searcher": "grid", "trials": 6})).size == 6
    many = {"rank": list(range(1, 31))}
    assert resolve_space(job(many, sweep={"searcher": "grid"})).size == 30


def test_values_are_spelled_as_their_section_does() -> None:
    space = resolve_space(job({"epochs": [1, 2, 2.0], "warmup": [0.05, 5]}))
    assert space.dimensions == {"epochs": [1.0, 2.0], "warmup": [0.05, 5]}
    assert space.size == 4


@pytest.mark.parametrize("preset", [None, *get_args(PresetName)])
@pytest.mark.parametrize("own", [{}, {"learning_rate": 3e-3, "epochs": 7}, {"max_steps": 9}])
def test_every_presets_space_holds_the_job_itself(preset: PresetName | None, own: dict[str, Any]) -> None:
    sections = PRESETS.get(preset, {}) if preset else {}
    made = job(None, preset=preset, method=sections.get("method", {}), train={**sections.get("train", {}), **own})
    space = resolve_space(made)
    default = {"rank": made.method.rank, "alpha_over_rank": 2.0, "learning_rate": made.train.learning_rate}
    if "max_steps" in own:
        assert "epochs" not in space.dimensions
    else:
        default["epochs"] = made.train.epochs
    assert default in space


def test_full_fine_tuning_has_a_space_of_its_own() -> None:
    space = resolve_space(job(None, method={"kind": "full"}, preset="code"))
    assert list(space.dimensions) == ["learning_rate", "epochs"]
    assert {"learning_rate": 2e-5, "epochs": 2.0} in space


def test_the_grid_is_every_combination_once() -> None:
    points = list(grid(resolve_space(job({"rank": [4, 8], "schedule": ["cosine", "wsd", "constant"]}))))
    assert len({tuple(point.items()) for point in points}) == 6
    assert points[0] == {"rank": 4, "schedule": "cosine"}


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_points_are_in_the_space_and_come_again_with_the_seed(seed: int) -> None:
    space = resolve_space(
        job(
            {
                "rank": {"int": [4, 9]},
                "learning_rate": {"loguniform": [1.23456789e-5, 1e-3]},
                "dropout": {"uniform": [0, 0.3]},
                "schedule": ["cosine", "wsd"],
            }
        )
    )
    drawn = list(itertools.islice(Sample(space, seed=seed), 20))
    assert all(point in space for point in drawn)
    assert drawn == list(itertools.islice(Sample(space, seed=seed), 20))
    assert drawn != list(itertools.islice(Sample(space, seed=seed + 1), 20))


def test_random_rates_are_as_likely_in_every_order_of_magnitude() -> None:
    space = resolve_space(job({"learning_rate": {"loguniform": [1e-5, 1e-3]}}))
    rates = [float(point["learning_rate"]) for point in itertools.islice(Sample(space, seed=0), 2000)]
    below = sum(math.log10(rate) < -4 for rate in rates) / len(rates)
    assert 0.45 < below < 0.55


def test_what_is_in_a_space() -> None:
    space = resolve_space(job({"rank": {"int": [4, 8]}, "rslora": [True, False]}))
    assert {"rank": 8, "rslora": True} in space
    assert {"rank": 9, "rslora": True} not in space
    assert {"rank": 4.5, "rslora": True} not in space
    assert {"rank": 4} not in space
    assert {"rank": True, "rslora": True} not in space


@pytest.mark.parametrize(
    ("space", "sweep", "searcher"),
    [
        ({"rank": [4, 8]}, {}, "grid"),
        ({"rank": list(range(1, 18))}, {}, "optuna"),
        ({"rank": list(range(1, 18))}, {"trials": 9}, "random"),
        ({"dropout": Range(uniform=[0, 0.1])}, {"trials": 10}, "optuna"),
        ({"dropout": Range(uniform=[0, 0.1])}, {"searcher": "hyperopt"}, "hyperopt"),
    ],
)
def test_the_searcher_follows_from_the_space(space: dict[str, Any], sweep: dict[str, Any], searcher: str) -> None:
    made = job(space, sweep=sweep)
    assert made.sweep is not None
    name, reason = choose_searcher(made.sweep, resolve_space(made))
    assert name == searcher
    assert reason


def test_the_scheduler_follows_from_the_number_of_trials() -> None:
    assert [choose_scheduler(SweepConfig(), trials)[0] for trials in (2, 7, 8, 200)] == ["none", "none", "asha", "asha"]
    assert choose_scheduler(SweepConfig(scheduler="median"), 2) == ("median", "the job says so")
