"""A training that is saved and restored goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import math
from types import ModuleType
from typing import Any

import pytest

from ftray.artifacts import jsonable
from ftray.errors import RunError
from ftray.train.early_stopping import EvaluationPoint
from ftray.train.state import TRAIN_LOSS_SMOOTHING, ZERO_GRADIENT_STEPS, Progress, Training


def make(tiny: ModuleType, **changes: Any) -> Training:
    return Training(tiny.plan(**changes), tiny.examples(), metric="exact")


def advance(training: Training, *, loss: float = 1.0, grad_norm: float = 1.0) -> None:
    training.advance(training.upcoming(), loss=loss, grad_norm=grad_norm)


def saved(progress: Progress) -> Progress:
    """Return the progress after its way through a checkpoint's JSON."""
    return Progress.from_record(json.loads(json.dumps(jsonable(progress.to_record()))))


def test_inputs_of_a_step(tiny: ModuleType) -> None:
    training = make(tiny, warmup=2, max_steps=10, learning_rate=1e-2)
    inputs = training.upcoming()
    assert (inputs.step, len(inputs.examples), inputs.learning_rate) == (0, 8, 5e-3)
    assert inputs.num_tokens == sum(len(one.tokens) for one in inputs.examples)
    assert inputs.num_labels == sum(int(one.is_label[1:].sum()) for one in inputs.examples)
    assert training.upcoming() is not inputs
    assert training.upcoming().seed == inputs.seed


def test_what_a_step_counts(tiny: ModuleType) -> None:
    training = make(tiny)
    tokens = labels = 0
    for step in range(6):
        inputs = training.upcoming()
        tokens, labels = tokens + inputs.num_tokens, labels + inputs.num_labels
        training.advance(inputs, loss=2.0, grad_norm=1.0)
        assert training.progress.step == step + 1
    assert (training.progress.tokens, training.progress.label_tokens) == (tokens, labels)
    assert training.epoch == 6 / 5
    assert training.progress.optimizer_steps == 6


def test_the_training_loss_is_a_moving_average(tiny: ModuleType) -> None:
    training = make(tiny)
    advance(training, loss=4.0)
    assert training.progress.train_loss == 4.0
    advance(training, loss=2.0)
    assert training.progress.train_loss == pytest.approx(TRAIN_LOSS_SMOOTHING * 4 + (1 - TRAIN_LOSS_SMOOTHING) * 2)


def test_seeds_differ_by_step_and_by_seed(tiny: ModuleType) -> None:
    seeds = []
    for seed in (0, 1):
        training = make(tiny, seed=seed)
        for _ in range(5):
            seeds.append(training.upcoming().seed)
            advance(training)
    assert len(set(seeds)) == 10
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("at", [1, 4, 5, 13])
def test_a_restored_training_has_the_same_next_steps(tiny: ModuleType, at: int) -> None:
    training = make(tiny)
    for _ in range(at):
        advance(training, loss=1 / 3)
    other = make(tiny)
    other.restore(saved(training.progress))
    for _ in range(4):
        mine, theirs = training.upcoming(), other.upcoming()
        assert [one.digest for one in mine.examples] == [one.digest for one in theirs.examples]
        assert (mine.learning_rate, mine.seed, mine.num_labels) == (
            theirs.learning_rate,
            theirs.seed,
            theirs.num_labels,
        )
        training.advance(mine, loss=0.1, grad_norm=1.0)
        other.advance(theirs, loss=0.1, grad_norm=1.0)
    assert other.progress == training.progress


def test_it_ends_with_the_last_step(tiny: ModuleType) -> None:
    training = make(tiny, max_steps=2)
    assert not training.finished
    advance(training)
    assert not training.finished
    advance(training)
    assert training.finished


# Nothing is training


def test_first_gradients_of_exactly_zero_are_an_error(tiny: ModuleType) -> None:
    training = make(tiny)
    for _ in range(ZERO_GRADIENT_STEPS - 1):
        advance(training, grad_norm=0.0)
    with pytest.raises(RunError, match="nothing is training") as caught:
        advance(training, grad_norm=0.0)
    assert caught.value.kind == "nothing_learned"


def test_a_zero_gradient_later_or_once_is_none(tiny: ModuleType) -> None:
    training = make(tiny)
    for norm in (0.0, 0.0, 1e-12, 0.0, 0.0, 0.0, 0.0):
        advance(training, grad_norm=norm)
    assert training.progress.step == 7


def test_zero_gradients_are_counted_across_a_restart(tiny: ModuleType) -> None:
    training = make(tiny)
    advance(training, grad_norm=0.0)
    other = make(tiny)
    other.restore(saved(training.progress))
    advance(other, grad_norm=0.0)
    with pytest.raises(RunError):
        advance(other, grad_norm=0.0)


# fp16


def test_an_overflow_is_a_step_without_an_update(tiny: ModuleType) -> None:
    training = make(tiny, precision="fp16", warmup=4)
    rate = training.upcoming().learning_rate
    advance(training, grad_norm=math.inf)
    assert (training.progress.step, training.progress.optimizer_steps) == (1, 0)
    assert training.upcoming().learning_rate == rate
    advance(training)
    assert training.progress.optimizer_steps == 1
    assert training.upcoming().learning_rate == 2 * rate


# Evaluations


def evaluate(training: Training, *losses: float, value: float = 0.5) -> list[bool]:
    stops = []
    for loss in losses:
        advance(training)
        stops.append(training.evaluated(value=value, validation_loss=loss).stop)
    return stops


def test_early_stopping_ends_a_training_with_its_reason(tiny: ModuleType) -> None:
    training = make(tiny, warmup=0, early_stopping={"patience": 2})
    assert evaluate(training, 1.0, 1.5, 2.0) == [False, False, True]
    assert training.finished
    assert training.progress.stopped is not None
    assert "Validation loss" in training.progress.stopped
    assert saved(training.progress).stopped == training.progress.stopped


def test_early_stopping_can_be_off(tiny: ModuleType) -> None:
    training = make(tiny, warmup=0, early_stopping=None)
    assert not any(evaluate(training, 1.0, 2.0, 3.0, 4.0, 5.0, math.nan))
    assert not training.finished
    assert len(training.progress.evaluations) == 6


def test_evaluations_go_on_counting_after_a_restart(tiny: ModuleType) -> None:
    training = make(tiny, warmup=0, early_stopping={"patience": 2})
    evaluate(training, 1.0, 1.5)
    other = make(tiny, warmup=0, early_stopping={"patience": 2})
    other.restore(saved(training.progress))
    assert evaluate(other, 2.0) == [True]


def test_the_last_evaluation_stops_nothing(tiny: ModuleType) -> None:
    training = make(tiny, warmup=0, max_steps=3, early_stopping={"patience": 2})
    assert not any(evaluate(training, 1.0, 1.5, 2.0))
    assert training.progress.stopped is None


def test_values_under_another_metric_are_forgotten(tiny: ModuleType) -> None:
    training = make(tiny)
    evaluate(training, 1.0, 0.9)
    other = Training(tiny.plan(), tiny.examples(), metric="f1")
    other.restore(saved(training.progress))
    assert (other.progress.evaluations, other.progress.metric) == ([], "f1")
    assert other.progress.step == 2
    same = make(tiny)
    same.restore(saved(training.progress))
    assert len(same.progress.evaluations) == 2


def test_a_loss_that_is_no_number_survives_json(tiny: ModuleType) -> None:
    progress = Progress(
        step=1,
        evaluations=[
            EvaluationPoint(step=1, validation_loss=math.nan, train_loss=1.5, value=None),
            EvaluationPoint(step=2, validation_loss=math.inf, train_loss=1.5, value=0.25),
        ],
    )
    first, second = saved(progress).evaluations
    assert math.isnan(first.validation_loss)
    assert not math.isfinite(second.validation_loss)
    assert (first.value, second.value) == (None, 0.25)
    training = make(tiny, warmup=0, early_stopping={"patience": 1})
    training.restore(saved(progress))
    advance(training)
    assert not training.evaluated(value=0.5, validation_loss=1.0).stop


# Replay


def rehearsing(tiny: ModuleType) -> Training:
    rows = [dataclasses.replace(row, dataset="replay") if row.row % 3 == 0 else row for row in tiny.examples()]
    return Training(tiny.plan(), rows, metric="exact")


def test_the_moving_average_is_of_the_task_alone(tiny: ModuleType) -> None:
    training = rehearsing(tiny)
    assert training.rehearses
    assert not make(tiny).rehearses
    inputs = training.upcoming()
    assert 0 < inputs.num_task_labels < inputs.num_labels
    training.advance(inputs, loss=9.0, grad_norm=1.0, task_loss=1.0)
    assert training.progress.train_loss == 1.0
    training.advance(training.upcoming(), loss=9.0, grad_norm=1.0, task_loss=2.0)
    assert training.progress.train_loss == pytest.approx(TRAIN_LOSS_SMOOTHING + (1 - TRAIN_LOSS_SMOOTHING) * 2)


def test_steps_of_replay_alone_say_nothing_about_the_task(tiny: ModuleType) -> None:
    training = rehearsing(tiny)
    alone = dataclasses.replace(training.upcoming(), num_task_labels=0)
    training.advance(alone, loss=9.0, grad_norm=1.0)
    training.evaluated(value=0.5, validation_loss=3.0)
    assert training.progress.train_loss is None
    assert training.progress.evaluations[0].train_loss == 3.0
    training.advance(training.upcoming(), loss=9.0, grad_norm=1.0, task_loss=1.0)
    training.advance(alone, loss=9.0, grad_norm=1.0)
    assert training.progress.train_loss == 1.0


def test_replay_that_gets_better_does_not_make_a_task_diverge(tiny: ModuleType) -> None:
    """Validation and task loss rise together: that is no divergence, whatever the replay rows' loss does."""
    training = Training(
        tiny.plan(warmup=0, early_stopping={"patience": 2}),
        [dataclasses.replace(row, dataset="replay") if row.row % 3 == 0 else row for row in tiny.examples()],
    )
    for step, loss in enumerate((1.0, 8.0, 16.0)):
        training.advance(training.upcoming(), loss=9.0 - step, grad_norm=1.0, task_loss=40 * loss)
        decision = training.evaluated(value=0.5, validation_loss=loss)
    assert decision.kind == "stalled"
