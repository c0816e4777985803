"""Adapters of several ranks, scales and targets over one random base: as PEFT models of their own, and in a bank."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from ftray.model.bank import Adapter, Bank, Factors
from ftray.model.base import load_model
from ftray.model.config import MethodConfig
from ftray.model.lora import disk_name

EQUAL_FAMILIES = ["llama", "qwen2", "mistral", "gemma", "gpt2"]
METHODS = {
    1: MethodConfig(rank=3, alpha=6.0),
    2: MethodConfig(rank=5, alpha=7.5, rslora=True),
    3: MethodConfig(rank=2, alpha=8.0, target_modules=["q_proj", "down_proj", "c_attn"]),
}
RANK = 6
"""Of the bank: more than any slot's."""


def method_of(model: nn.Module, slot: int) -> MethodConfig:
    """Return a slot's method, with the targets this family has."""
    method = METHODS[slot]
    if isinstance(method.target_modules, str):
        return method
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    return method.model_copy(update={"target_modules": [name for name in method.target_modules if name in names]})


def peft_model(base: nn.Module, slot: int) -> Any:
    """Return a model of its own for one slot, by PEFT alone, with random non-zero factors."""
    method = method_of(base, slot)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=method.rank, lora_alpha=method.alpha, use_rslora=method.rslora,  # type: ignore[arg-type]
        target_modules=method.target_modules, fan_in_fan_out=hasattr(base, "transformer"),
    )  # fmt: skip
    model: Any = get_peft_model(copy.deepcopy(base), config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(slot)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def factors_of(model: Any) -> Factors:
    """Return a PEFT model's factors by layer."""
    weights = {disk_name(name): parameter.detach() for name, parameter in model.named_parameters() if "lora_" in name}
    layers = [name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")]
    return {
        layer.removeprefix("base_model.model."): (weights[f"{layer}.lora_A.weight"], weights[f"{layer}.lora_B.weight"])
        for layer in layers
    }


def fill(bank: Bank, models: dict[int, Any]) -> None:
    """Put what PEFT's models hold into the slots of the same numbers."""
    for slot, model in models.items():
        factors = factors_of(model)
        method = METHODS[slot]
        adapter = Adapter(rank=method.rank, alpha=method.alpha, rslora=method.rslora, layers=tuple(factors))
        bank.put(slot, adapter, factors)


def compute_norms_in_own_dtype(model: nn.Module) -> None:
    """Let RMS norms compute in the dtype of their input: transformers' go through float32, which hides what is equal.

    Rounding to float32 in between, 1e-16 becomes 1e-8 in one step, and the optimizer amplifies it.
    """
    for module in model.modules():
        kind = type(module)
        if kind.__name__.endswith("RMSNorm"):
            offset = 1.0 if kind.__name__.startswith("Gemma") else 0.0

            def forward(self: Any, x: torch.Tensor, offset: float = offset) -> torch.Tensor:
                epsilon = self.eps if hasattr(self, "eps") else self.variance_epsilon
                return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * (self.weight + offset)

            module.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def world(folder: Path, *, dtype: torch.dtype = torch.float64, slots: int = 3) -> tuple[Bank, dict[int, Any], Any]:
    """Return a bank filled from slot 1 on, the separate models of its slots, and the base."""
    base: Any = load_model(str(folder)).to(dtype)  # type: ignore[arg-type]
    if dtype == torch.float64:
        compute_norms_in_own_dtype(base)
    models = {slot: peft_model(base, slot) for slot in METHODS}
    bank = Bank(copy.deepcopy(base), slots=slots, rank=RANK)
    bank.model.eval()
    fill(bank, models)
    return bank, models, base.eval()
