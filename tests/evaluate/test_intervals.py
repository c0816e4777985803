"""Intervals and p-values against published or hand-computed numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.evaluate.intervals import (
    Estimate,
    FloatArray,
    RowStatistics,
    bootstrap,
    mcnemar,
    newcombe,
    percentile_estimate,
    randomisation,
    resample,
    wilson,
)


def mean_of(scores: list[float]) -> RowStatistics:
    def ratio(sums: FloatArray) -> FloatArray:
        return sums[:, 0] / sums[:, 1]

    return RowStatistics(rows=np.array([[score, 1.0] for score in scores]), value_of=ratio)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 10, 0.4901625, 0.9433178),  # statsmodels proportion_confint(8, 10, method="wilson")
        (0, 20, 0.0, 0.1611252),  # z^2 / (n + z^2)
        (20, 20, 0.8388748, 1.0),
        (1, 1, 0.2065493, 1.0),
    ],
)
def test_wilson_gives_the_published_bounds(successes: int, trials: int, low: float, high: float) -> None:
    estimate = wilson(successes, trials)
    assert estimate.value == successes / trials
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_value_inside_zero_and_one(counts: tuple[int, int]) -> None:
    estimate = wilson(*counts)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [(2, 10, 158 / 4096), (10, 2, 158 / 4096), (0, 5, 2 / 32), (3, 3, 1.0), (0, 0, 1.0), (0, 679, 2.0**-678)],
)
def test_mcnemar_is_the_exact_binomial(first: int, second: int, p_value: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p_value, rel=1e-12)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Fagerland, Lydersen and Laake 2017, Statistical Analysis of Contingency Tables, chapter 8 (first - second).
        ((59, 6, 16, 80), -0.1186, -0.0046),
    ],
)
def test_newcombe_gives_the_published_bounds(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    both, only_first, only_second, neither = counts
    estimate = newcombe(both, only_first, only_second, neither)
    assert estimate.value == pytest.approx((only_second - only_first) / sum(counts))
    assert (-estimate.high, -estimate.low) == pytest.approx((low, high), abs=1e-4)


@given(st.tuples(*[st.integers(0, 300)] * 4).filter(any), st.sampled_from([0.5, 0.95, 0.999]))
def test_newcombe_turns_with_its_sides_and_holds_the_value(counts: tuple[int, int, int, int], level: float) -> None:
    both, only_first, only_second, neither = counts
    estimate = newcombe(both, only_first, only_second, neither, level=level)
    turned = newcombe(both, only_second, only_first, neither, level=level)
    assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert (estimate.low, estimate.high) == pytest.approx((-turned.high, -turned.low), abs=1e-12)


def test_models_that_agree_on_every_row_may_still_differ_a_little_elsewhere() -> None:
    estimate = newcombe(80, 0, 0, 20)
    assert estimate.value == 0
    assert -0.05 < estimate.low < 0 < estimate.high < 0.05


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_newcombe_holds_the_true_difference_as_often_as_it_says(level: float) -> None:
    random = np.random.default_rng(3)
    tables = random.multinomial(300, [0.70, 0.06, 0.10, 0.14], size=2000).tolist()
    estimates = [newcombe(*table, level=level) for table in tables]
    held = np.mean([estimate.low <= 0.04 <= estimate.high for estimate in estimates])
    assert held == pytest.approx(level, abs=0.01)


def test_a_surer_interval_is_wider_and_holds_the_others() -> None:
    draws = np.random.default_rng(0).normal(size=20_000)
    usual, surer = (percentile_estimate(0.0, draws, level=level) for level in (0.95, 0.99))
    assert (usual.low, usual.high) == pytest.approx((-1.96, 1.96), abs=0.05)
    assert (surer.low, surer.high) == pytest.approx((-2.576, 2.576), abs=0.1)
    assert (
        wilson(80, 100, level=0.99).low < wilson(80, 100).low < wilson(80, 100).high < wilson(80, 100, level=0.99).high
    )
    assert wilson(80, 100, level=0.99).low == pytest.approx(0.6799, abs=1e-4)


def test_the_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    scores = [1.0] * 120 + [0.0] * 280
    estimate = bootstrap(mean_of(scores))
    half_width = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert estimate.value == pytest.approx(0.3)
    assert estimate.low == pytest.approx(0.3 - half_width, abs=0.006)
    assert estimate.high == pytest.approx(0.3 + half_width, abs=0.006)


def test_resampling_is_paired_and_repeatable() -> None:
    scores = list(np.random.default_rng(1).random(50))
    shifted = mean_of([score + 0.25 for score in scores])
    first, second = resample([mean_of(scores), shifted])
    np.testing.assert_allclose(second - first, 0.25, atol=1e-12)
    np.testing.assert_array_equal(first, resample([mean_of(scores)])[0])


def test_many_rows_are_resampled_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftray.evaluate.intervals.CHUNK_ELEMENTS", 70)
    (values,) = resample([mean_of([0.0, 1.0] * 10)], resamples=101)
    assert values.shape == (101,)
    assert values.mean() == pytest.approx(0.5, abs=0.1)


def test_randomisation_sees_a_difference_and_no_difference() -> None:
    random = np.random.default_rng(2)
    scores = list(random.random(60))
    better = [score + 0.2 + 0.05 * random.standard_normal() for score in scores]
    assert randomisation(mean_of(scores), mean_of(better)) == pytest.approx(1 / 2001)
    assert randomisation(mean_of(scores), mean_of(scores)) == 1.0


def test_randomisation_agrees_with_the_exact_sign_flip_test() -> None:
    # Five differences of one sign: only all-plus and all-minus are as extreme, 2 of 32 arrangements.
    p_value = randomisation(mean_of([0.0] * 5), mean_of([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert p_value == pytest.approx(2 / 32, abs=0.02)


def test_a_number_json_cannot_hold_becomes_null() -> None:
    record = Estimate(value=float("inf"), low=1.0, high=float("nan")).to_record()
    assert record == {"value": None, "low": 1.0, "high": None}
