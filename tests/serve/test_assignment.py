"""Assignment: uniform, independent, sticky by its hash, and a function of salt, weights and unit alone."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from ftray.serve.experiment.assignment import assign
from ftray.serve.experiment.spec import Arm, Experiment, ExperimentSpec, propensities

UNITS = 20_000
UNLIKELY = 1e-6
"""A test that fails by chance this rarely, for a salt that is fixed, does not fail."""


def experiment(
    weights: dict[str, float], *, include: float = 1.0, salt: str = "salt", name: str = "colours"
) -> Experiment:
    arms = [Arm(name=arm, model="base", weight=weight) for arm, weight in weights.items()]
    spec = ExperimentSpec(name=name, arms=arms, control=next(iter(weights)), include=include, minimum_propensity=0.01)
    return Experiment(
        spec=spec,
        digests=dict.fromkeys(weights),
        weights=weights,
        status="running",
        reason="",
        salt=salt,
        created_at="2026-01-01T00:00:00.000Z",
    )


def chi_square(seen: dict[str, int], shares: dict[str, float]) -> float:
    total = sum(seen.values())
    statistic = sum((seen[name] - total * share) ** 2 / (total * share) for name, share in shares.items())
    return float(chi2.sf(statistic, len(shares) - 1))


@pytest.mark.parametrize(
    "weights",
    [{"red": 1.0, "blue": 1.0}, {"red": 9.0, "blue": 1.0}, {"red": 2.0, "blue": 0.5, "green": 1.5, "grey": 6.0}],
)
def test_arms_get_their_shares(weights: dict[str, float]) -> None:
    given_to = experiment(weights)
    seen = dict.fromkeys(weights, 0)
    for unit in range(UNITS):
        seen[assign(given_to, f"user-{unit}").arm] += 1
    assert chi_square(seen, propensities(weights)) > UNLIKELY


def test_the_propensity_is_the_arms_share_now() -> None:
    weights = {"red": 3.0, "blue": 1.0}
    for unit in range(50):
        found = assign(experiment(weights), str(unit))
        assert found.propensity == {"red": 0.75, "blue": 0.25}[found.arm]
        assert found.is_included


def test_inclusion_says_nothing_of_the_arm() -> None:
    given_to = experiment({"red": 1.0, "blue": 1.0}, include=0.3)
    whole = dataclasses.replace(given_to, spec=given_to.spec.model_copy(update={"include": 1.0}))
    table = {(included, arm): 0 for included in (True, False) for arm in ("red", "blue")}
    for unit in map(str, range(UNITS)):
        found = assign(given_to, unit)
        if not found.is_included:
            assert (found.arm, found.propensity) == ("red", 1.0)
        table[found.is_included, assign(whole, unit).arm] += 1
    shares = {(included, arm): (0.3 if included else 0.7) / 2 for included, arm in table}
    total = sum(table.values())
    statistic = sum((table[cell] - total * share) ** 2 / (total * share) for cell, share in shares.items())
    assert chi2.sf(statistic, 3) > UNLIKELY


@pytest.mark.parametrize("other", [{"salt": "pepper"}, {"name": "shapes"}])
def test_another_salt_or_experiment_shuffles_anew(other: dict[str, str]) -> None:
    first, second = experiment({"red": 1.0, "blue": 1.0}), experiment({"red": 1.0, "blue": 1.0}, **other)
    same = sum(assign(first, str(unit)).arm == assign(second, str(unit)).arm for unit in range(UNITS))
    assert abs(same - UNITS / 2) < 5 * math.sqrt(UNITS / 4)


def test_neighbouring_units_are_independent() -> None:
    given_to = experiment({"red": 1.0, "blue": 1.0})
    arms = [assign(given_to, str(unit)).arm for unit in range(UNITS)]
    same = sum(one == other for one, other in itertools.pairwise(arms))
    assert abs(same - UNITS / 2) < 5 * math.sqrt(UNITS / 4)


@settings(deadline=None)
@given(
    unit=st.text(min_size=1),
    weights=st.lists(st.floats(min_value=0.5, max_value=5), min_size=2, max_size=6),
    salt=st.text(max_size=8),
)
def test_the_same_unit_gets_the_same_arm(unit: str, weights: list[float], salt: str) -> None:
    named = {f"arm{index}": weight for index, weight in enumerate(weights)}
    first, second = (assign(experiment(named, salt=salt), unit) for _ in range(2))
    assert first == second
    assert first.propensity == propensities(named)[first.arm]


@settings(deadline=None)
@given(unit=st.text(min_size=1), grown=st.floats(min_value=1, max_value=50))
def test_a_first_arm_that_grows_loses_nobody(unit: str, grown: float) -> None:
    before, after = experiment({"red": 1.0, "blue": 1.0}), experiment({"red": grown, "blue": 1.0})
    if assign(before, unit).arm == "red":
        assert assign(after, unit).arm == "red"


def test_names_that_run_into_their_units_are_not_mixed_up() -> None:
    weights = {f"arm{index}": 1.0 for index in range(16)}
    first, second = experiment(weights, name="abc"), experiment(weights, name="ab")
    same = sum(assign(first, f"d{unit}").arm == assign(second, f"cd{unit}").arm for unit in range(1600))
    assert 50 < same < 150
