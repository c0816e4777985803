"""Notice a step whose loss stands out of the steps before it, and name the rows that made it.

Median and median deviation of the recent steps are looked at beside their mean: an earlier spike hides no later one,
and the ordinary fall of a loss is none.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ftray.data.collate import Batch

DEVIATIONS = 6.0
"""A spike is so many robust deviations above the median of the recent steps; of Gaussian noise one step in 10^9 is."""
FACTOR = 1.5
"""And so many times their mean: the deviations of a very even loss are too small a measure."""
SHARE_OF_START = 0.25
"""And this share of the loss at the start above the median: one missed answer of a learned task is no spike."""
FEWEST_STEPS = 10
"""Steps that the statistics need before anything can stand out of them."""
NORMAL = 1.4826
"""Standard deviation of a Gaussian in units of its median absolute deviation."""
MOST_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """A loss that stands out, in nats per label token."""

    loss: float
    median: float
    """Of the recent steps."""
    average: float
    """Mean of the recent steps."""

    @property
    def sentence(self) -> str:
        """Say what happened."""
        return f"the loss jumped to {self.loss:.4g}; it was {self.median:.4g} on the steps before"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLoss:
    """The mean loss of one row's labels, in nats."""

    dataset: str
    row: int
    loss: float


def detect_spike(loss: float, recent: Sequence[float], *, start: float) -> Spike | None:
    """Return the spike that `loss` is after the losses `recent`, or None. `start`: the loss of the first steps."""
    if len(recent) < FEWEST_STEPS:
        return None
    average = statistics.fmean(recent)
    if not loss > FACTOR * average:
        return None
    median = statistics.median(recent)
    deviation = NORMAL * statistics.median(abs(one - median) for one in recent)
    if loss <= median + max(DEVIATIONS * deviation, SHARE_OF_START * start):
        return None
    return Spike(loss=loss, median=median, average=average)


def row_losses(batches: Sequence[Batch], losses: Sequence[Tensor]) -> list[RowLoss]:
    """Return the mean loss of every row of this worker's batches; `losses` [M] of each batch."""
    rows = []
    for batch, loss in zip(batches, losses, strict=True):
        index = batch.example_index.to(loss.device)
        sums = torch.zeros(len(batch.rows), dtype=torch.float64, device=loss.device).index_add_(0, index, loss.double())
        counts = torch.bincount(index, minlength=len(batch.rows))
        for (dataset, row), total, count in zip(batch.rows, sums.tolist(), counts.tolist(), strict=True):
            if count:
                rows.append(RowLoss(dataset=dataset, row=row, loss=total / count))
    return rows


def worst_rows(rows: Sequence[RowLoss]) -> list[RowLoss]:
    """Return the rows with the largest losses first, at most `MOST_ROWS`."""
    return sorted(rows, key=lambda one: (-one.loss, one.dataset, one.row))[:MOST_ROWS]
