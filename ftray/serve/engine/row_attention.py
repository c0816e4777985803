"""Attention of one new token of each row over its cached tokens, on CPUs: three batched products, nothing copied.

torch's own kernel takes several times as long for one query, and spreads grouped keys first. Whatever else a pass
wants (several new tokens, other devices) goes to transformers' SDPA. Registered under the name `ftray_rows`.
Shapes: R rows, H key heads, G query heads for each, W cached tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "ftray_rows"


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend; the mask [R, 1, q, W] is added to the scores."""
    rows, heads, size = key.shape[0], key.shape[1], query.shape[-1]
    is_plain = attention_mask is not None and kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    if query.shape[2] != 1 or query.device.type != "cpu" or not is_plain:
        answer: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return answer
    groups = query.shape[1] // heads
    keys, values = key.flatten(0, 1), value.flatten(0, 1)  # [R*H, W, D]: views of the cache
    assert attention_mask is not None
    mask = attention_mask.expand(rows, heads, 1, -1).reshape(rows * heads, 1, -1)
    scores = torch.baddbmm(
        mask,
        query.reshape(rows * heads, groups, size),
        keys.transpose(1, 2),
        alpha=size**-0.5 if scaling is None else scaling,
    )
    output = torch.bmm(scores.softmax(dim=-1), values)  # [R*H, G, D]
    return output.view(rows, 1, heads * groups, -1), None


def register() -> None:
    """Make `ftray_rows` a known attention implementation of transformers."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
