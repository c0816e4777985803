"""A configuration makes the job that it says, and those that train the same weights are one trial."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep.campaign import PER_RANK, configurations

from ftray.errors import InputError
from ftray.sweep.prefixes import is_prefixable, ordered, recipe, shared_steps


def test_neither_ray_nor_torch_is_imported() -> None:
    code = "import sys, ftray.sweep.configurations; print({'ray', 'torch'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "set()"


def test_the_default_is_the_job_without_its_sweep_section() -> None:
    made = configurations({"rank": [4, 8], "learning_rate": [1e-3, 1e-2], "max_steps": [5, 9]})
    default = made.default()
    assert default.is_default
    assert default.job == made.loaded.job.model_copy(update={"sweep": None})
    assert default.config == {"rank": 16, "learning_rate": 1e-4, "max_steps": 20}
    assert default.plan.total_steps == 20
    assert made.spec(default.config) == default


def test_a_configuration_is_in_the_job_and_in_the_plan() -> None:
    made = configurations({"rank": [4, 8], "alpha_over_rank": [1, 2, 4], "epochs": [1, 3], "batch_size": [8, 16]})
    spec = made.spec({"rank": 4, "alpha_over_rank": 4, "epochs": 3, "batch_size": 8})
    assert (spec.job.method.rank, spec.job.method.alpha) == (4, 16)
    assert (spec.job.train.epochs, spec.plan.total_steps, spec.plan.batch_size) == (3, 60, 8)
    assert spec.plan.trained_parameters == 4 * PER_RANK
    assert spec.config["epochs"] == 3.0
    assert not spec.is_default
    assert len(spec.trial_id) == 12


@settings(deadline=None)
@given(alpha=st.floats(0.1, 500), rank=st.integers(1, 64))
def test_any_ratio_of_the_default_comes_back_as_the_default(alpha: float, rank: int) -> None:
    made = configurations({"alpha_over_rank": [0.01, 0.02]}, method={"alpha": alpha, "rank": rank})
    assert made.spec(made.default().config) == made.default()
    assert made.spec(made.default().config).job.method.alpha == alpha


def test_equal_trials_are_one() -> None:
    space = {"rank": [4, 16], "alpha": [8.0, 16.0], "rslora": [True, False], "warmup": [0.1, 2], "dropout": [0, 0.1]}
    made = configurations(space, train={"warmup": 2})
    rslora = {"rank": 4, "alpha": 8.0, "rslora": True, "warmup": 2, "dropout": 0}
    assert made.key(rslora) == made.key({**rslora, "rslora": False, "alpha": 16.0})
    # A tenth of 20 steps.
    assert made.key(rslora) == made.key({**rslora, "warmup": 0.1})
    for field, value in {"rank": 16, "alpha": 16.0, "dropout": 0.1}.items():
        assert made.key(rslora) != made.key({**rslora, field: value}), field


def test_a_constant_schedule_takes_no_minimum() -> None:
    made = configurations({"schedule": ["constant", "linear"], "min_learning_rate": [0.0, 1e-5]})
    made.require_feasible()
    assert made.key({"schedule": "constant", "min_learning_rate": 1e-5}) == made.key(
        {"schedule": "constant", "min_learning_rate": 0.0}
    )
    assert [spec.is_default for spec in made.grid()] == [True, False, False, False]


def test_another_seed_is_another_trial_of_the_same_split() -> None:
    made = configurations({"rank": [4, 8]})
    spec, other = made.spec({"rank": 4}), made.spec({"rank": 4}, seed=7)
    assert spec.trial_id != other.trial_id
    assert (other.seed, other.plan.seed, other.job.seed) == (7, 7, made.loaded.job.seed)
    assert not made.spec(made.default().config, seed=7).is_default


@pytest.mark.parametrize(
    ("space", "sections", "field", "kind"),
    [
        ({"warmup": [1, 19, 20]}, {}, "warmup", "contradictory_space"),
        ({"warmup": {"int": [1, 15]}, "epochs": [1, 2]}, {}, "warmup", "contradictory_space"),
        ({"epochs": {"uniform": [0.3, 3]}}, {"train": {"warmup": 5}}, "epochs", "contradictory_space"),
        ({"learning_rate": {"loguniform": [1e-5, 1e-3]}, "min_learning_rate": [0.0, 5e-5]}, {}, "learning_rate",
         "contradictory_space"),
        ({"max_steps": [20]}, {}, None, "space_too_small"),
        ({"rslora": [True, False]}, {"method": {"rank": 1}}, None, "space_too_small"),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_trained_is_refused(
    space: dict[str, Any], sections: dict[str, Any], field: str | None, kind: str
) -> None:
    made = configurations(space, **sections)
    with pytest.raises(InputError) as caught:
        made.require_feasible()
    assert caught.value.kind == kind
    assert caught.value.path == (f"sweep.space.{field}" if field else "sweep.space")


@pytest.mark.parametrize("preset", [None, "style", "domain", "support", "code", "classification"])
@pytest.mark.parametrize("method", [{}, {"kind": "full"}])
def test_every_presets_space_can_be_trained(preset: str | None, method: dict[str, Any]) -> None:
    configurations(None, preset=preset, method=method).require_feasible()


def test_a_full_fine_tune_has_one_method() -> None:
    made = configurations({"learning_rate": [1e-5, 5e-5]}, method={"kind": "full"})
    assert [spec.plan.schedule.peak for spec in made.grid()] == [2e-5, 1e-5, 5e-5]
    assert made.grid()[1].plan.trained_parameters == made.trained_parameters


def test_configurations_cross_process_borders() -> None:
    made = configurations({"rank": [4, 8]})
    assert pickle.loads(pickle.dumps(made)).spec({"rank": 4}) == made.spec({"rank": 4})


# Prefixes

SCHEDULES = st.sampled_from(["cosine", "linear", "constant", "wsd"])
WARMUPS = st.one_of(st.integers(0, 9), st.floats(0, 0.4))


@settings(deadline=None)
@given(
    schedule=SCHEDULES,
    warmup=WARMUPS,
    lengths=st.tuples(st.integers(10, 60), st.integers(10, 60)),
    minimum=st.sampled_from([0.0, 1e-5]),
)
def test_shared_steps_are_those_with_equal_rates(
    schedule: str, warmup: float, lengths: tuple[int, int], minimum: float
) -> None:
    minimum = 0.0 if schedule == "constant" else minimum
    made = configurations(
        {"max_steps": [1, 2]}, train={"schedule": schedule, "warmup": warmup, "min_learning_rate": minimum}
    )
    first, second = (made.spec({"max_steps": length}) for length in lengths)
    rates = [[spec.plan.schedule.at(step) for step in range(spec.plan.total_steps)] for spec in (first, second)]
    common = 0
    while common < min(lengths) and rates[0][common] == rates[1][common]:
        common += 1
    assert shared_steps(first, second) == shared_steps(second, first) == common
    if is_prefixable(made.loaded.job) and schedule == "constant":
        assert common == min(lengths)
    if is_prefixable(made.loaded.job):
        assert common >= min(lengths) - -(-min(lengths) // 5)


@pytest.mark.parametrize(
    ("schedule", "warmup", "shared"), [("constant", 3, 10), ("constant", 0.0, 10), ("wsd", 3, 9), ("cosine", 3, 4)]
)
def test_what_an_epoch_shares_with_three(schedule: str, warmup: float, shared: int) -> None:
    made = configurations({"epochs": [1, 3]}, train={"schedule": schedule, "warmup": warmup})
    assert shared_steps(made.spec({"epochs": 1}), made.spec({"epochs": 3})) == shared


@pytest.mark.parametrize(
    "other",
    [{"rank": 8}, {"batch_size": 8}, {"weight_decay": 0.1}, {"learning_rate": 2e-4}, {"dropout": 0.1}],
)
def test_trials_that_differ_in_more_than_their_length_share_nothing(other: dict[str, Any]) -> None:
    space = {field: [value, value * 2] for field, value in other.items()}
    made = configurations(space, train={"schedule": "constant", "warmup": 2})
    assert shared_steps(made.default(), made.spec(other)) == 0
    assert shared_steps(made.default(), made.spec(made.default().config, seed=1)) == 0


@settings(deadline=None)
@given(
    points=st.lists(
        st.tuples(st.sampled_from([4, 8]), st.sampled_from([1, 2, 3]), st.sampled_from([0.0, 0.1])), max_size=12
    )
)
def test_families_stand_together_longest_first(points: list[tuple[int, int, float]]) -> None:
    made = configurations({"rank": [4, 8], "epochs": [1, 2, 3], "dropout": [0.0, 0.1]}, train={"warmup": 0.1})
    specs = [made.spec({"rank": rank, "epochs": epochs, "dropout": dropout}) for rank, epochs, dropout in points]
    after = ordered(specs)
    assert sorted(spec.trial_id for spec in after) == sorted(spec.trial_id for spec in specs)
    families = [recipe(spec.job, spec.plan) for spec in after]
    changes = [family for before, family in zip([None, *families], families, strict=False) if family != before]
    assert len(changes) == len({str(family) for family in families})
    for one, two in itertools.pairwise(after):
        if recipe(one.job, one.plan) == recipe(two.job, two.plan):
            assert one.plan.total_steps >= two.plan.total_steps
