"""A loss that stands out of its neighbours is a spike; the fall, the noise and the odd missed answer are none."""

from __future__ import annotations

import dataclasses
import json
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftray.artifacts import jsonable
from ftray.data.collate import collate
from ftray.train.loss_spike import FEWEST_STEPS, MOST_ROWS, RowLoss, detect_spike, row_losses, worst_rows
from ftray.train.state import MOST_LISTED, Progress, Training

EVEN = [1.0 + 0.05 * (-1) ** step for step in range(20)]


def test_a_loss_far_above_its_neighbours_is_a_spike() -> None:
    spike = detect_spike(3.0, EVEN, start=4.0)
    assert spike is not None
    assert (spike.loss, spike.average) == (3.0, pytest.approx(1.0))
    assert "3" in spike.sentence


@pytest.mark.parametrize(
    ("loss", "recent", "start"),
    [
        (1.2, EVEN, 4.0),  # noise
        (1.4, EVEN, 1.0),  # beyond the deviations, not far enough above the average
        (0.3, [0.01] * 20, 4.0),  # a missed answer of a task that is learned
        (3.0, EVEN[: FEWEST_STEPS - 1], 4.0),  # too little to compare with
        (3.0, [1.0, 3.0] * 10, 4.0),  # as noisy as ever
    ],
)
def test_what_is_no_spike(loss: float, recent: list[float], start: float) -> None:
    assert detect_spike(loss, recent, start=start) is None


@given(st.floats(0.01, 10), st.floats(0.5, 0.999), st.integers(FEWEST_STEPS, 60))
def test_a_falling_loss_has_no_spike(start: float, rate: float, steps: int) -> None:
    losses = [start * rate**step for step in range(steps)]
    assert detect_spike(losses[-1] * rate, losses, start=start) is None


def test_an_earlier_spike_hides_no_later_one() -> None:
    recent = [*EVEN[:10], 9.0, *EVEN[:9]]
    assert detect_spike(9.0, recent, start=4.0) is not None


def test_the_rows_of_a_step_by_their_own_loss(tiny: ModuleType) -> None:
    rows = tiny.examples(6)
    batches = [collate(rows[:4], "flat"), collate(rows[4:], "flat")]
    losses = [torch.tensor([float(index) for index in batch.example_index.tolist()]) for batch in batches]
    found = row_losses(batches, losses)
    assert [(one.row, one.loss) for one in found] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 0.0), (5, 1.0)]
    assert [one.row for one in worst_rows(found)] == [3, 2, 1, 5, 0, 4]
    many = [RowLoss(dataset="train", row=row, loss=float(row)) for row in range(40)]
    assert [one.row for one in worst_rows(many)] == list(range(39, 39 - MOST_ROWS, -1))


def trained(tiny: ModuleType, losses: list[float], **changes: Any) -> tuple[Training, list[int]]:
    training = Training(tiny.plan(max_steps=200, **changes), tiny.examples())
    return training, spikes(training, losses)


def spikes(training: Training, losses: list[float]) -> list[int]:
    found = []
    for loss in losses:
        if training.advance(training.upcoming(), loss=loss, grad_norm=1.0):
            found.append(training.progress.step)
    return found


def test_a_training_names_its_spikes(tiny: ModuleType) -> None:
    losses = [4.0, 4.0, 4.0, *EVEN, 5.0, *EVEN[:5]]
    training, found = trained(tiny, losses, warmup=2)
    assert found == [24]
    assert training.progress.start_loss == 4.0


def test_nothing_stands_out_during_warm_up(tiny: ModuleType) -> None:
    _, found = trained(tiny, [4.0, 4.0, 4.0, *EVEN, 5.0], warmup=30)
    assert found == []


def test_spikes_are_found_after_a_restart_and_with_an_older_checkpoint(tiny: ModuleType) -> None:
    training, _ = trained(tiny, [4.0, 4.0, 4.0, *EVEN], warmup=0)
    record = json.loads(json.dumps(jsonable(training.progress.to_record())))
    other = Training(training.plan, tiny.examples())
    other.restore(Progress.from_record(record))
    assert spikes(other, [5.0]) == [24]
    for key in ("recent_losses", "recent_norms", "start_loss"):
        del record[key]
    older = Training(training.plan, tiny.examples())
    older.restore(Progress.from_record(record))
    assert spikes(older, [5.0, *EVEN]) == []


@pytest.mark.parametrize("every", [1, 3, 10, 100, 5000])
def test_the_lines_list_every_step_once(tiny: ModuleType, every: int) -> None:
    steps = 2 * MOST_LISTED + 60
    training = Training(tiny.plan(max_steps=steps, log_every=every), tiny.examples())
    listed: list[float] = []
    for step in range(1, steps + 1):
        training.advance(training.upcoming(), loss=float(step), grad_norm=1.0)
        if training.has_line:
            listed += training.progress.recent_losses[training.since_last_line()]
        else:
            assert step % every != 0
    assert listed == [float(step) for step in range(1, steps + 1)]


# Replay: its rows have hundreds of labels, the task's a few


def rehearsing(tiny: ModuleType) -> Training:
    rows = [dataclasses.replace(row, dataset="replay") if row.row % 3 == 0 else row for row in tiny.examples()]
    return Training(tiny.plan(max_steps=200, warmup=0), rows)


def rehearse(training: Training, steps: list[tuple[float, float | None]]) -> list[int]:
    found = []
    for loss, task_loss in steps:
        inputs = training.upcoming()
        share = {"num_task_labels": 0} if task_loss is None else {"num_task_labels": inputs.num_labels // 2}
        inputs = dataclasses.replace(inputs, **share)
        if training.advance(inputs, loss=loss, grad_norm=1.0, task_loss=task_loss):
            found.append(training.progress.step)
    return found


TASK = [(1.0, None), (4.0, 4.0), (4.0, 4.0), (1.0, 4.0), *((one, one) for one in EVEN)]


def test_more_replay_in_a_step_is_no_spike_of_the_task(tiny: ModuleType) -> None:
    training = rehearsing(tiny)
    assert rehearse(training, [*TASK, (9.0, 1.0), (9.0, None), (1.0, 5.0)]) == [len(TASK) + 3]
    assert training.progress.start_loss == 4.0


def test_spikes_of_a_task_are_found_after_a_restart_and_with_an_older_checkpoint(tiny: ModuleType) -> None:
    training = rehearsing(tiny)
    rehearse(training, TASK)
    record = json.loads(json.dumps(jsonable(training.progress.to_record())))
    other = rehearsing(tiny)
    other.restore(Progress.from_record(record))
    assert rehearse(other, [(1.0, 5.0)]) == [len(TASK) + 1]
    del record["start_loss"]
    del record["recent_task_losses"]
    older = rehearsing(tiny)
    older.restore(Progress.from_record(record))
    assert rehearse(older, [*TASK[4:], (1.0, 5.0)]) == []
