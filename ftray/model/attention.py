"""Attention over examples laid end to end in one row, without padding in the rest of the model.

All linear layers, norms and the head see only real tokens [1, T]; just here queries, keys and values are spread to
[N, heads, L, dim] and put back. Causal attention on right-padded rows needs no mask: a real token never looks at
the padding after it. Registered with transformers under the name `ftray`; without `flat` it is ordinary SDPA.
Shapes: T tokens, N examples, L longest example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "ftray"


@dataclass(frozen=True, slots=True)
class FlatIndex:
    """Where each example's tokens stand in the flat row, and the way back."""

    spread: Tensor  # [N*L] index into T; padding repeats its own example's last token, and nobody reads it
    gather: Tensor  # [T] index into N*L
    num_examples: int
    width: int
    is_uniform: bool  # all examples are equally long: spreading is a view, nothing is copied


def flat_index(lengths: Sequence[int], device: torch.device) -> FlatIndex:
    """Return the index for examples of these lengths, in order."""
    width = max(lengths)
    sizes = torch.tensor(lengths)
    starts = torch.cumsum(sizes, 0) - sizes
    offsets = torch.arange(width)
    inside = offsets[None, :] < sizes[:, None]  # [N, L]
    # Not another example's token: masked attention still multiplies by 0, and 0 times a broken example's NaN is NaN.
    spread = (starts[:, None] + torch.minimum(offsets[None, :], sizes[:, None] - 1)).reshape(-1)
    gather = inside.reshape(-1).nonzero().squeeze(1)
    return FlatIndex(spread.to(device), gather.to(device), len(lengths), width, is_uniform=min(lengths) == width)


class _Spread(torch.autograd.Function):
    """[T, C] -> [N*L, C]. Each token has exactly one reader, so the backward is a gather, not a scatter-add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: FlatIndex) -> Tensor:
        ctx.index = index
        return x.index_select(0, index.spread)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.index.gather), None


class _Gather(torch.autograd.Function):
    """[N*L, C] -> [T, C]; the gradient of the padding is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: FlatIndex) -> Tensor:
        ctx.index, ctx.shape = index, x.shape
        return x.index_select(0, index.gather)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.shape).index_copy_(0, ctx.index.gather, grad), None


def _spread_heads(states: Tensor, index: FlatIndex) -> Tensor:
    """[1, heads, T, dim] -> [N, heads, L, dim]."""
    heads, dim = states.shape[1], states.shape[3]
    rows = states[0].transpose(0, 1).reshape(-1, heads * dim)
    spread: Tensor = rows if index.is_uniform else _Spread.apply(rows, index)  # type: ignore[no-untyped-call]
    return spread.view(index.num_examples, index.width, heads, dim).transpose(1, 2)


def _window_mask(width: int, window: int, device: torch.device) -> Tensor:
    """Return [1, 1, L, L], true where a query may look: itself and the window - 1 tokens before it."""
    position = torch.arange(width, device=device)
    distance = position[:, None] - position[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    flat: FlatIndex | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend inside each example of a flat row, or as plain SDPA when there is no flat row."""
    if flat is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    window = kwargs.pop("sliding_window", None)
    mask = _window_mask(flat.width, window, query.device) if window is not None and window < flat.width else None
    kwargs["is_causal"] = mask is None
    queries, keys, values = (_spread_heads(states, flat) for states in (query, key, value))
    output, _ = sdpa_attention_forward(module, queries, keys, values, mask, **kwargs)  # [N, L, heads, dim]
    heads, dim = output.shape[2], output.shape[3]
    rows = output.reshape(-1, heads * dim)
    if not flat.is_uniform:
        rows = _Gather.apply(rows, flat)  # type: ignore[no-untyped-call]
    return rows.view(1, -1, heads, dim), None


def register() -> None:
    """Make `ftray` a known attention implementation of transformers."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
