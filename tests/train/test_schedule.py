"""Learning rates, against values worked out by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.train.schedule import Schedule


def schedule(kind: Any, *, total: int, warmup: int = 0, peak: float = 1.0, minimum: float = 0.0) -> Schedule:
    return Schedule(kind=kind, peak=peak, minimum=minimum, warmup_steps=warmup, total_steps=total)


def values(kind: str, **settings: Any) -> list[float]:
    made = schedule(kind, **settings)
    return [made.at(step) for step in range(made.total_steps)]


HALF = 0.5**0.5  # cos(45°)


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("constant", {"total": 4}, [1, 1, 1, 1]),
        ("constant", {"total": 4, "warmup": 2}, [0.5, 1, 1, 1]),
        ("linear", {"total": 5}, [1, 0.75, 0.5, 0.25, 0]),
        ("linear", {"total": 5, "minimum": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
        ("linear", {"total": 7, "warmup": 4}, [0.25, 0.5, 0.75, 1, 1, 0.5, 0]),
        ("cosine", {"total": 5}, [1, (1 + HALF) / 2, 0.5, (1 - HALF) / 2, 0]),
        ("cosine", {"total": 5, "minimum": 0.5, "warmup": 2}, [0.5, 1, 1, 0.75, 0.5]),
        ("wsd", {"total": 10}, [1] * 9 + [0]),
        ("wsd", {"total": 20, "minimum": 0.1, "warmup": 1}, [1] * 17 + [0.7, 0.4, 0.1]),
        ("wsd", {"total": 5}, [1, 1, 1, 1, 0]),
        ("linear", {"total": 2, "warmup": 1}, [1, 0]),
        ("cosine", {"total": 1}, [1]),
    ],
)
def test_values_by_hand(kind: str, settings: dict[str, Any], expected: list[float]) -> None:
    assert values(kind, **settings) == pytest.approx(expected)


def test_the_peak_is_a_factor() -> None:
    assert values("linear", total=3, peak=2e-4) == pytest.approx([2e-4, 1e-4, 0])


def test_steps_past_the_end_stay_at_the_minimum() -> None:
    made = schedule("cosine", total=10, minimum=0.1)
    assert made.at(10) == made.at(1000) == 0.1


@given(
    st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    st.integers(1, 300),
    st.floats(0, 0.99),
    st.floats(1e-7, 1.0),
    st.floats(0, 1),
)
def test_it_rises_to_the_peak_then_never_rises_and_ends_at_the_minimum(
    kind: Any, total: int, share: float, peak: float, share_of_peak: float
) -> None:
    warmup, minimum = int(share * total), peak * share_of_peak
    made = schedule(kind, total=total, warmup=warmup, peak=peak, minimum=minimum)
    rates = [made.at(step) for step in range(total)]
    rising, falling = rates[:warmup], rates[warmup:]
    above = peak * (1 + 1e-12)
    assert all(0 < rate <= above for rate in rising)
    assert rising == sorted(rising)
    assert all(minimum <= rate <= above for rate in falling)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(falling))
    if warmup:
        assert rising[-1] == pytest.approx(peak)
    if kind == "constant" or total == 1:
        assert rates[-1] == peak
    else:
        assert rates[-1] == minimum
