"""Which tokens of a batch belong to which slots of a bank, and how they are laid out to be multiplied together.

Each slot's tokens become one or more equally long runs, so that all slots are one batched product; a slot with far more
tokens than the others is cut into several runs, so that padding never doubles the work.
Shapes: K runs of t tokens, n tokens of slots in a batch of T; the base's tokens are in none of the indices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

BASE = 0
"""The slot that is the untouched base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The runs of a batch."""

    rows: slice | Tensor  # the bank's row (slot - 1) of each run
    counts: Mapping[int, int]  # tokens of each slot present
    num_runs: int
    width: int  # t
    first: int | None  # where the slots' tokens begin, when they stand in order and fill all runs: nothing is copied
    tokens: Tensor  # [n] index into T, slot after slot
    places: Tensor  # [n] index into K*t
    fill: Tensor  # [K*t] index into T; padding repeats a token of its own run, so that another slot's NaN stays away
    num_tokens: int
    dropout: Mapping[int, int]
    picked: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    """A' [K, in, r], B' [K, r, out] and scale [K, 1, 1] of layers by their index, left there by a forward pass."""

    def spread(self, x: Tensor) -> Tensor:
        """[T, C] -> [K, t, C]."""
        if self.first is not None:
            return x[self.first : self.first + len(self.tokens)].view(self.num_runs, self.width, -1)
        return x.index_select(0, self.fill).view(self.num_runs, self.width, -1)

    def spread_gradient(self, x: Tensor) -> Tensor:
        """[T, C] -> [K, t, C], the padding zero."""
        if self.first is not None:
            return self.spread(x)
        spread = x.new_zeros((len(self.fill), x.shape[1]))
        spread.index_copy_(0, self.places, x.index_select(0, self.tokens))
        return spread.view(self.num_runs, self.width, -1)

    def add_product(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Add left [K, t, r] · right [K, r, C] to the tokens of x [T, C], in place."""
        if self.first is not None:
            self.spread(x).baddbmm_(left, right)
            return x
        return self.add(x, torch.bmm(left, right))

    def add(self, x: Tensor, runs: Tensor) -> Tensor:
        """Add runs [K, t, C] to the tokens of x [T, C], in place."""
        return x.index_add_(0, self.tokens, runs.view(-1, x.shape[1]).index_select(0, self.places))


def make_route(
    slots: Sequence[int], lengths: Sequence[int], *, device: torch.device, dropout: Mapping[int, int]
) -> Route | None:
    """Return the route of a batch, or None where all of it is the base's."""
    owner = np.repeat(np.asarray(slots), np.asarray(lengths))  # [T]
    present, counts = np.unique(owner, return_counts=True)
    present, counts = present[present != BASE], counts[present != BASE]
    if not len(present):
        return None
    num = int(counts.sum())
    tokens = np.argsort(owner, kind="stable")[len(owner) - num :]
    width = int(counts.max())
    if len(present) * width > 2 * num:
        # Runs of the mean length: at most twice the tokens, however unequal the slots are.
        width = max(1, num // len(present))
    runs = -(-counts // width)  # of each slot
    begins = np.cumsum(counts) - counts  # of each slot, in `tokens`
    run_slot = np.repeat(present, runs)
    position = np.arange(len(run_slot)) - np.repeat(np.cumsum(runs) - runs, runs)  # of a run among its slot's
    start = np.repeat(begins, runs) + position * width
    size = np.minimum(width, np.repeat(begins + counts, runs) - start)
    inside = np.arange(width)[None, :] < size[:, None]  # [K, t]
    fill = tokens[start[:, None] + np.minimum(np.arange(width)[None, :], size[:, None] - 1)].reshape(-1)
    in_order = bool(inside.all() and (np.diff(tokens) == 1).all())
    rows: slice | Tensor = slice(int(run_slot[0]) - 1, int(run_slot[-1]))
    if not (np.diff(run_slot) == 1).all():
        rows = torch.from_numpy(run_slot - 1).to(device)
    return Route(
        rows=rows,
        counts=dict(zip(present.tolist(), counts.tolist(), strict=True)),
        num_runs=len(run_slot),
        width=width,
        first=int(tokens[0]) if in_order else None,
        tokens=torch.from_numpy(tokens).to(device),
        places=torch.from_numpy(np.flatnonzero(inside.reshape(-1))).to(device),
        fill=torch.from_numpy(fill).to(device),
        num_tokens=len(owner),
        dropout=dropout,
    )
