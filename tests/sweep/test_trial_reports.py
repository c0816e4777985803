"""What a trial tells Tune: the best so far in the metric's sense, and only numbers that Tune can compute with."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ftray.errors import RunError
from ftray.sweep.trial import TrialSpec
from ftray.sweep.trial_reports import WORST, TrialReports


def reports(*, higher_is_better: bool = True) -> TrialReports:
    spec = SimpleNamespace(trial_id="abc", plan=SimpleNamespace(schedule=SimpleNamespace(warmup_steps=3)))
    return TrialReports(cast("TrialSpec", spec), higher_is_better=higher_is_better)


def line(step: int, value: float | None, loss: float | None = 1.0) -> dict[str, Any]:
    return {
        "step": step, "epoch": step / 10, "kind": "evaluation", "val/accuracy": value, "val/loss": loss,
        "train/loss_average": 0.5, "train/tokens": 100 * step,
    }  # fmt: skip


@pytest.mark.parametrize(("higher", "best"), [(True, (0.9, 2)), (False, (0.3, 1))])
def test_the_best_so_far_is_the_best_in_the_metrics_sense(higher: bool, best: tuple[float, int]) -> None:
    trial = reports(higher_is_better=higher)
    for step, value in enumerate((0.3, 0.9, 0.5), start=1):
        report = trial.evaluated(line(step, value), seconds=step)
    assert (report["best_validation_accuracy"], report["best_step"]) == best
    assert (report["validation_accuracy"], report["step"], report["tokens"], report["epoch"]) == (0.5, 3, 300, 0.3)
    assert (report["trial"], report["warmup_steps"], report["seconds"], report["done"]) == ("abc", 3, 3, False)


def test_of_equal_values_the_lower_loss_is_the_best() -> None:
    trial = reports()
    trial.evaluated(line(1, 0.5, loss=2.0), seconds=1)
    report = trial.evaluated(line(2, 0.5, loss=1.0), seconds=2)
    assert (report["best_step"], report["best_validation_loss"]) == (2, 1.0)


def test_a_loss_that_is_no_number_is_told_as_such_and_the_best_stays() -> None:
    trial = reports()
    trial.evaluated(line(1, 0.5, loss=2.0), seconds=1)
    report = trial.evaluated(line(2, 0.1, loss=None), seconds=2)
    assert math.isnan(report["validation_loss"])
    assert (report["best_validation_accuracy"], report["best_validation_loss"]) == (0.5, 2.0)


def test_an_error_before_any_evaluation_is_the_worst_value_with_a_reason() -> None:
    error = RunError("out of memory: 3 GiB", kind="oom", hint="Lower it.")
    report = reports().failed(error, seconds=7)
    assert (report["failure"], report["nonfinite"]) == ("out of memory: 3 GiB. Lower it", "")
    assert (report["best_validation_accuracy"], report["done"], report["finished"]) == (-WORST, True, False)
    assert report["tokens"] > 0
    assert reports(higher_is_better=False).failed(error, seconds=7)["best_validation_accuracy"] == WORST


def test_a_training_that_breaks_keeps_its_best_and_its_last_numbers() -> None:
    trial = reports()
    trial.evaluated(line(4, 0.5), seconds=1)
    report = trial.failed(RunError("the loss of step 6 is not a finite number", kind="nonfinite"), seconds=2)
    assert (report["nonfinite"], report["failure"]) == ("the loss of step 6 is not a finite number", "")
    assert (report["step"], report["best_step"], report["seconds"]) == (4, 4, 2)


def test_a_last_evaluation_is_finished_and_done() -> None:
    report = reports().evaluated(line(4, 0.5), seconds=1, finished=True)
    assert report["finished"]
    assert report["done"]
