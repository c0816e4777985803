"""Which field mattered, where it is known which did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sweep_trials import trial

from ftray.campaign import TrialResult
from ftray.sweep.importance import importance


def campaign(num_trials: int = 20, scale: float = 1.0) -> list[TrialResult]:
    """Return trials whose accuracy is decided by the learning rate, a little by the schedule and not by the rank."""
    random = np.random.default_rng(0)
    results = []
    for number in range(num_trials):
        exponent = random.uniform(-5, -3)
        config: dict[str, Any] = {
            "rank": int(random.choice([4, 8, 16])),
            "learning_rate": float(10**exponent),
            "schedule": str(random.choice(["constant", "cosine"])),
            "epochs": 1,
        }
        accuracy = 0.9 - 0.3 * (exponent + 4) ** 2 - 0.05 * (config["schedule"] == "constant")
        results.append(trial(f"{number:012x}", scale * accuracy, config=config))
    return results


def test_the_field_that_decides_comes_first_and_shares_sum_to_one() -> None:
    shares = importance(campaign(), higher_is_better=True)
    assert list(shares) == sorted(shares, key=lambda name: -shares[name])
    assert set(shares) == {"learning_rate", "rank", "schedule"}
    assert shares["learning_rate"] > 0.6
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(type(share) is float for share in shares.values())


def test_the_shares_are_the_same_again_and_in_any_unit() -> None:
    shares = importance(campaign(), higher_is_better=True)
    assert importance(campaign(), higher_is_better=False) == pytest.approx(shares)
    assert importance(campaign(scale=1e300), higher_is_better=False)["learning_rate"] > 0.6


def test_trials_without_a_number_and_other_seeds_count_for_nothing() -> None:
    results = campaign()
    noise = [
        trial("x", float("nan"), config={"rank": 4}),
        trial("y", None, config={"rank": 8}),
        trial("z", 0.1, config={"rank": 8}, role="seed"),
    ]
    assert importance([*results, *noise], higher_is_better=True) == importance(results, higher_is_better=True)


def test_a_field_that_some_trials_lack_is_left_out() -> None:
    results = [*campaign(), trial("x", 0.5, config={"learning_rate": 2e-4, "schedule": "cosine"})]
    assert set(importance(results, higher_is_better=True)) == {"learning_rate", "schedule"}


def test_categories_of_several_types_are_kept_apart() -> None:
    values = [True, "none", 1.5, "none", True, 1.5]
    results = [trial(f"{i}", 0.5 + 0.1 * (value == "none"), config={"clip": value}) for i, value in enumerate(values)]
    assert importance(results, higher_is_better=True) == {"clip": 1.0}


@pytest.mark.parametrize(
    "results",
    [
        [],
        campaign(3),
        [trial(f"{i}", 0.5, config={"rank": 2**i}) for i in range(6)],
        [trial(f"{i}", i / 10, config={"rank": 8}) for i in range(6)],
    ],
    ids=["none", "three", "equal values", "one configuration"],
)
def test_nothing_is_said_where_nothing_can_be_known(results: list[TrialResult]) -> None:
    assert importance(results, higher_is_better=True) == {}
