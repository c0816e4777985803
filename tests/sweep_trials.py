"""Trials of a ledger and models' results on rows, as the choice needs them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ftray.campaign import Point, TrialResult
from ftray.evaluate.intervals import FloatArray, RowStatistics
from ftray.sweep.comparison import Scores


def trial(trial_id: str, accuracy: float | None, loss: float = 1.0, **others: Any) -> TrialResult:
    """Return a trial whose best and last evaluation are one; without any where accuracy is None."""
    point = None if accuracy is None else Point(step=4, validation_accuracy=accuracy, validation_loss=loss)
    known: dict[str, Any] = {"config": {}, "seed": 0, "state": "completed", "reason": "", "adapter": None}
    amounts: dict[str, Any] = {"steps": 4, "epochs": 1.0, "seconds": 1.0, "tokens": 64}
    return TrialResult(**{"trial_id": trial_id, "best": point, "last": point, **known, **amounts, **others})


def ratio(sums: FloatArray) -> FloatArray:
    return sums[:, 0] / sums[:, 1]


def graded(right: list[bool]) -> Scores:
    """Return rows that are right or wrong."""
    sums = np.array([[float(one), 1.0] for one in right])
    return Scores(statistics=RowStatistics(rows=sums, value_of=ratio), correct=np.array(right))


def scored(scores: FloatArray) -> Scores:
    """Return rows with a score each, whose mean is the metric."""
    sums = np.stack([scores, np.ones(len(scores))], axis=1)
    return Scores(statistics=RowStatistics(rows=sums, value_of=ratio), correct=None)


def right_but(num_rows: int, *wrong: range) -> Scores:
    """Return `num_rows` right rows but for the ranges that are wrong."""
    missed = {row for one in wrong for row in one}
    return graded([row not in missed for row in range(num_rows)])
