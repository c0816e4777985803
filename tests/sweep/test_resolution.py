"""The rows that a difference needs, against simulated pairs of trials."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.errors import InputError
from ftray.evaluate.intervals import mcnemar
from ftray.space import SweepConfig
from ftray.sweep.resolution import require_resolution, rows_needed, validation_resolution


@pytest.mark.parametrize("difference", [0.02, 0.05, 0.1])
def test_so_many_rows_show_the_difference_four_times_in_five(difference: float) -> None:
    rows, random = rows_needed(difference), np.random.default_rng(1)
    only_better = random.binomial(rows, 1.5 * difference, size=400)
    only_worse = random.binomial(rows, 0.5 * difference, size=400)
    shown = np.mean([mcnemar(int(b), int(w)) < 0.05 for b, w in zip(only_better, only_worse, strict=True)])
    # The exact test is a little stricter than the normal approximation that the formula is of.
    assert 0.65 < shown < 0.88


def test_the_formula_by_hand() -> None:
    # (1.96 * 0.5477 + 0.8416 * 0.5385)² / 0.01 = 233.1 pairs.
    assert rows_needed(0.1, discordance=3.0) == 234


@settings(deadline=None)
@given(rows=st.integers(1, 20_000))
def test_the_resolution_is_the_smallest_difference_shown(rows: int) -> None:
    seen = validation_resolution(rows)
    if seen is None:
        assert rows < rows_needed(1.0)
        return
    assert rows_needed(seen) <= rows
    assert seen <= 1e-4 or rows_needed(seen - 1e-4) > rows


def test_more_disagreement_needs_more_rows() -> None:
    assert rows_needed(0.02, discordance=4.0) > 1.9 * rows_needed(0.02)


def test_too_few_rows_are_refused_only_where_a_resolution_is_set() -> None:
    assert "2 points need" in require_resolution(SweepConfig(), 100)
    assert "need" not in require_resolution(SweepConfig(), 100_000)
    assert "no difference" in require_resolution(SweepConfig(), 2)
    with pytest.raises(InputError) as caught:
        require_resolution(SweepConfig(resolution=0.02), rows_needed(0.02) - 1)
    assert (caught.value.kind, caught.value.path) == ("few_validation_rows", "sweep.resolution")
    assert str(rows_needed(0.02)) in caught.value.allowed
    require_resolution(SweepConfig(resolution=0.02), rows_needed(0.02))


def test_no_validation_rows_are_no_objective() -> None:
    with pytest.raises(InputError) as caught:
        require_resolution(SweepConfig(), 0)
    assert caught.value.path == "data.validation"
