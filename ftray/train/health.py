"""Checks that a run is really training: stop early and say what is wrong, rather than end well with nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ftray.data.collate import Batch
from ftray.errors import RunError
from ftray.group import Group


def nonfinite_examples(batches: Sequence[Batch], losses: Sequence[Tensor]) -> list[tuple[str, int]]:
    """Return (dataset, row) of every example that has a label whose loss is not a finite number."""
    rows: list[tuple[str, int]] = []
    for batch, loss in zip(batches, losses, strict=True):
        bad = batch.example_index.to(loss.device)[~torch.isfinite(loss)].unique().tolist()
        rows.extend(batch.rows[index] for index in bad)
    return rows


def require_finite_loss(
    loss: float, *, step: int, batches: Sequence[Batch], losses: Sequence[Tensor], group: Group
) -> None:
    """Raise RunError `nonfinite` before the optimizer step, naming the examples (collective when it fires)."""
    if math.isfinite(loss):
        return
    rows = sorted({row for part in group.gather(nonfinite_examples(batches, losses)) for row in part})
    names = ", ".join(f"{dataset} row {row}" for dataset, row in rows[:8])
    raise RunError(
        f"the loss of step {step + 1} is not a finite number; the weights were not touched. Examples: {names}",
        kind="nonfinite",
        given=[list(row) for row in rows[:32]],
        allowed="a finite loss",
        hint="Look at these rows; lower train.learning_rate; use precision bf16 or fp32 instead of fp16.",
    )


def require_finite_norm(norm: float, *, step: int, precision: str) -> None:
    """Raise RunError `nonfinite` when the gradient exploded (fp16 skips such a step and lowers its loss scale)."""
    if math.isfinite(norm) or precision == "fp16":
        return
    raise RunError(
        f"the gradient norm of step {step + 1} is not a finite number",
        kind="nonfinite",
        given=str(norm),
        allowed="a finite gradient norm (0.1-10 is normal, above 100 is unstable)",
        hint="Lower train.learning_rate. The last checkpoint is whole: the same command goes on from it.",
    )


def require_group(group: Group, *, least: int, most: int, told: int) -> None:
    """Raise RunError `communication` unless every worker sees as many peers as there are.

    N processes that each think they are alone train N identical models and report success.
    """
    ranks = group.gather(group.rank)
    if group.size == told == len(ranks) and sorted(ranks) == list(range(told)) and least <= told <= most:
        return
    raise RunError(
        f"the workers do not see each other: this one is rank {group.rank} of {group.size}, the cluster started {told}",
        kind="communication",
        given={"group_size": group.size, "ranks": ranks, "started": told},
        allowed=f"{least} to {most} workers in one group",
        hint="The process group was not initialised; ftray doctor checks the installation.",
    )
