"""A LoRA linear layer whose update is folded into the base product.

PEFT's layer scales and adds full [T, out] tensors; here the scale is applied to [T, r] and the update is added by the
matrix product itself, forward and backward, which takes a quarter off a small model's step. Plain LoRA only;
everything else (merged, several adapters, disabled) is PEFT's own forward. Shapes: T tokens, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor

from ftray.model.dropout import drawn_from, dropout_mask
from ftray.model.lora import ADAPTER_NAME


class _FoldedLora(torch.autograd.Function):
    """y = x W' + b + s (x A') B' with a frozen W; x [T, in], W [out, in], A [r, in], B [out, r]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, dropped: Tensor, scale: float
    ) -> Tensor:
        z = (dropped @ a.t()).mul_(scale)
        y = torch.nn.functional.linear(x, weight, bias)
        y.addmm_(z, b.t())
        ctx.save_for_backward(weight, a, b, dropped, z)
        ctx.scale = scale
        ctx.same_input = dropped is x
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, a, b, dropped, z = ctx.saved_tensors
        update = (grad @ b).mul_(ctx.scale)  # [T, r]
        grad_a = update.t() @ dropped
        grad_b = grad.t() @ z
        if not ctx.needs_input_grad[0]:
            return None, None, None, grad_a, grad_b, None, None
        grad_x = grad @ weight
        if ctx.same_input:
            return grad_x.addmm_(update, a), None, None, grad_a, grad_b, None, None
        return grad_x, None, None, grad_a, grad_b, update @ a, None


class FoldedLoraLinear(Linear):
    """PEFT's LoRA linear with a folded forward; same parameters, same names, same files."""

    index = 0
    """Its place among the model's adapted layers: each drops other inputs."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return base and update; falls back to PEFT where the update is not one plain adapter's."""
        base: Any = self.base_layer
        a, b = self.lora_A[ADAPTER_NAME].weight, self.lora_B[ADAPTER_NAME].weight
        partitioned = hasattr(a, "ds_id") or hasattr(base.weight, "ds_id")
        if self.disable_adapters or self.merged or partitioned or args or kwargs or not torch.is_grad_enabled():
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        dropped = self._dropped(rows)
        bias = None if base.bias is None else base.bias.to(dtype)
        y = _FoldedLora.apply(  # type: ignore[no-untyped-call]
            rows, base.weight.to(dtype), bias, a.to(dtype), b.to(dtype), dropped, self.scaling[ADAPTER_NAME]
        )
        return y.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]

    def _dropped(self, rows: Tensor) -> Tensor:
        """Return the adapter's input [T, in] after dropout, drawn from the batch's seed where there is one."""
        dropout: Any = self.lora_dropout[ADAPTER_NAME]
        if isinstance(dropout, torch.nn.Identity) or not dropout.training:
            return rows
        seed = drawn_from()
        if seed is None:
            return dropout(rows)  # type: ignore[no-any-return]
        return rows * dropout_mask(rows, dropout.p, seed=seed, layer=self.index)
