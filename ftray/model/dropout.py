"""Dropout on an adapter's input that depends on a seed, the layer and the place of a token, and on nothing else.

A run of its own and a trial that shares its base draw the same masks, however many trials are beside it, and a
recomputed forward pass draws what the first one drew.
"""

from __future__ import annotations

import torch
from torch import Tensor

SEEDS_PER_LAYER = 1_000_003
MOST_SEED = 2**63


class _Drawn:
    """The seed of the batch that this process computes: set before its forward pass, in force in its backward pass."""

    seed: int | None = None


def draw_from(seed: int | None) -> None:
    """Let the masks of the next forward pass, and of its recomputation, be drawn from this seed."""
    _Drawn.seed = seed


def drawn_from() -> int | None:
    """Return the seed in force; None where nobody has set one."""
    return _Drawn.seed


def dropout_mask(x: Tensor, rate: float, *, seed: int, layer: int) -> Tensor:
    """Return what inputs x [t, in] are multiplied with: 0 with probability `rate`, else 1/(1 - rate)."""
    generator = torch.Generator(device=x.device)
    generator.manual_seed((seed * SEEDS_PER_LAYER + layer) % MOST_SEED)
    keep = 1.0 - rate
    return torch.empty_like(x).bernoulli_(keep, generator=generator).div_(keep)
