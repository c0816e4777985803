"""Which checkpoint is chosen, and why the others are not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.errors import RunError
from ftray.selection import Candidate, select


def candidates(*numbers: tuple[float, float]) -> list[Candidate]:
    return [Candidate(step=10 * (index + 1), value=value, loss=loss) for index, (value, loss) in enumerate(numbers)]


@pytest.mark.parametrize(
    ("numbers", "step"),
    [
        ([(0.8, 0.3), (0.9, 0.5), (0.7, 0.2)], 20),  # the value, not the loss and not the last
        ([(0.9, 0.5), (0.9, 0.4), (0.9, 0.6)], 20),  # ties: lower loss
        ([(0.8, 0.1), (0.9, 0.4), (0.9, 0.4)], 20),  # ties: earlier
        ([(float("nan"), 0.1), (0.1, 9.0)], 20),
        ([(0.9, float("nan")), (0.9, 5.0)], 20),
    ],
)
def test_the_best_value_then_the_lower_loss_then_the_earlier_step(
    numbers: list[tuple[float, float]], step: int
) -> None:
    selection = select(candidates(*numbers), higher_is_better=True)
    assert selection.step == step
    assert set(selection.rejections) == {10, 20, 30}.intersection(range(10, 10 * len(numbers) + 1)) - {step}


def test_lower_values_win_where_they_are_better() -> None:
    selection = select(candidates((0.8, 0.3), (0.6, 0.5), (0.7, 0.2)), higher_is_better=False)
    assert (selection.step, selection.value, selection.last_value) == (20, 0.6, 0.7)
    assert "lowest" in selection.reason


def test_the_record_says_why_not_the_others() -> None:
    selection = select(candidates((0.8, 0.3), (0.9, 0.5), (0.9, 0.6)), higher_is_better=True)
    record = selection.to_record(metric="exact_match")
    assert record["schema"] == "ftray/selection/1"
    assert (record["step"], record["metric"], record["value"], record["last_value"]) == (20, "exact_match", 0.9, 0.9)
    first, chosen, last = record["candidates"]
    assert first["reason"] == "Its value 0.8 is worse than 0.9."
    assert chosen["selected"] is True
    assert "shared with step 30" in chosen["reason"]
    assert last["reason"] == "The same value, and its validation loss 0.6 is higher than 0.5."


def test_no_finite_value_is_a_failed_run() -> None:
    with pytest.raises(RunError) as raised:
        select(candidates((float("nan"), 1.0)), higher_is_better=True)
    assert raised.value.kind == "nonfinite"


numbers = st.floats(width=16)


@given(st.lists(st.tuples(st.floats(0, 1), numbers), min_size=1, max_size=8), st.booleans())
def test_order_does_not_matter_and_nothing_beats_the_choice(
    drawn: list[tuple[float, float]], higher_is_better: bool
) -> None:
    made = candidates(*drawn)
    selection = select(made, higher_is_better=higher_is_better)
    assert select(made[::-1], higher_is_better=higher_is_better) == selection
    values = [candidate.value for candidate in made]
    assert selection.value == (max(values) if higher_is_better else min(values))
    json.dumps(selection.to_record(metric="exact_match"), allow_nan=False)
