"""When a training is stopped, and when it must not be."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.train.config import EarlyStopping
from ftray.train.early_stopping import PLATEAU, EvaluationPoint, StopDecision, should_stop


def history(
    losses: Sequence[float], train_losses: Sequence[float] | None = None, values: Sequence[float | None] | None = None
) -> list[EvaluationPoint]:
    train = train_losses or [1.0 / (index + 1) for index in range(len(losses))]
    task = values or [None] * len(losses)
    return [
        EvaluationPoint(step=10 * (index + 1), validation_loss=loss, train_loss=train[index], value=task[index])
        for index, loss in enumerate(losses)
    ]


def decide(points: Sequence[EvaluationPoint], *, warmup_steps: int = 0, **changes: object) -> StopDecision:
    config = EarlyStopping(**changes)  # type: ignore[arg-type]
    return should_stop(points, config, warmup_steps=warmup_steps, higher_is_better=True)


def test_validation_loss_that_leaves_training_loss_behind_has_diverged() -> None:
    decision = decide(history([1.0, 0.8, 0.9, 1.0, 1.1]))
    assert (decision.stop, decision.kind) == (True, "diverged")
    assert "step 20" in decision.reason
    assert "37.5%" in decision.reason


def test_one_evaluation_less_goes_on() -> None:
    assert not decide(history([1.0, 0.8, 0.9, 1.0])).stop


def test_a_rise_within_the_margin_is_a_stall_not_a_divergence() -> None:
    losses = [1.0, 0.800, 0.806, 0.809, 0.812]
    assert not decide(history(losses)).stop
    assert decide(history([*losses, *[0.81] * 6])).kind == "stalled"
    assert decide(history(losses), margin=0.001).kind == "diverged"


def test_both_losses_rising_together_is_a_stall() -> None:
    decision = decide(history([1.0, 0.8, 0.9, 1.0, 1.1], [0.9, 0.7, 0.85, 1.0, 1.2]))
    assert (decision.stop, decision.kind) == (True, "stalled")


def test_a_loss_that_still_comes_down_from_a_spike_goes_on() -> None:
    train = [0.9, 0.7, 1.4, 1.3, 1.2, 1.1]
    assert not decide(history([1.0, 0.8, 1.5, 1.4, 1.3, 1.2], train)).stop
    assert decide(history([1.0, 0.8, 1.5, 1.4, 1.5, 1.4], train)).kind == "stalled"


def test_new_best_answers_outweigh_a_rising_loss() -> None:
    losses = [1.0, 0.8, 0.9, 1.0, 1.1]
    assert not decide(history(losses, values=[0.1, 0.5, 0.6, 0.6, 0.6])).stop
    assert decide(history(losses, values=[0.1, 0.6, 0.6, 0.6, 0.6])).stop
    assert decide(history(losses, values=[0.1, 0.6, 0.5, 0.6, 0.4])).stop


def test_lower_task_values_count_as_best_where_they_are_better() -> None:
    points = history([1.0, 0.8, 0.9, 1.0, 1.1], values=[0.9, 0.8, 0.8, 0.7, 0.8])
    config = EarlyStopping()
    assert not should_stop(points, config, warmup_steps=0, higher_is_better=False).stop
    assert should_stop(points, config, warmup_steps=0, higher_is_better=True).stop


def test_a_loss_that_is_no_number_stops_at_once() -> None:
    decision = decide(history([1.0, float("nan")]))
    assert (decision.stop, decision.kind) == (True, "diverged")
    assert decide(history([1.0, float("inf")])).stop


def test_warm_up_counts_only_when_asked_to() -> None:
    points = history([1.0, 0.8, 0.9, 1.0, 1.1])
    assert decide(points, warmup_steps=10).stop
    assert not decide(points, warmup_steps=20).stop
    assert decide(points, warmup_steps=20, after="start").stop


@given(
    st.lists(st.floats(0.01, 0.5), min_size=1, max_size=12),
    st.lists(st.floats(0.0, 5.0), min_size=12, max_size=12),
    st.integers(1, 4),
    st.floats(0, 0.2),
)
def test_falling_losses_are_never_stopped(falls: list[float], train: list[float], patience: int, margin: float) -> None:
    losses = [10.0 - sum(falls[: index + 1]) for index in range(len(falls))]
    assert not decide(history(losses, train), patience=patience, margin=margin).stop


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.integers(1, 4))
def test_rising_values_are_never_stopped(losses: list[float], patience: int) -> None:
    values = [0.01 * index for index in range(len(losses))]
    assert not decide(history(losses, values=values), patience=patience).stop


points = st.lists(
    st.builds(
        EvaluationPoint,
        step=st.just(0),
        validation_loss=st.floats(0, 10) | st.just(float("nan")),
        train_loss=st.floats(0, 10),
        value=st.none() | st.floats(0, 1),
    ),
    max_size=8,
)


@given(points, st.lists(st.floats(0, 10), min_size=1, max_size=8), st.integers(1, 3))
def test_evaluations_before_the_start_change_nothing(
    early: list[EvaluationPoint], losses: list[float], patience: int
) -> None:
    late = history(losses)
    assert decide([*early, *late], patience=patience) == decide(late, patience=patience)


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_a_flat_run_stops_after_exactly_three_times_patience(patience: int) -> None:
    assert not decide(history([0.5] * PLATEAU * patience), patience=patience).stop
    assert decide(history([0.5] * (PLATEAU * patience + 1)), patience=patience).kind == "stalled"


def test_a_noisy_plateau_in_the_middle_of_a_schedule_goes_on() -> None:
    losses = [0.44, 0.17, 0.18, 0.17, 0.1184, 0.154, 0.134, 0.1186]
    values = [0.56, 0.76, 0.78, 0.83, 0.87, 0.81, 0.82, 0.84]
    assert not decide(history(losses, values=values)).stop
