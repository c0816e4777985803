"""The seam between the loop and whatever computes a step: plain torch here, DeepSpeed in `train/deepspeed.py`.

Both accumulate gradients of `sum of label losses / labels of the whole step`, so that the loss does not depend on how
a step is shared out. This one is the reference the other is tested against.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ftray.data.collate import Batch
from ftray.group import Alone, Group
from ftray.model.forward import label_losses

BETAS = (0.9, 0.999)
EPSILON = 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) and the arithmetic of a step."""

    weight_decay: float
    max_grad_norm: float
    label_smoothing: float
    precision: str  # fp32 | bf16 | fp16


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterState:
    """One trained parameter, whole: its weight and both Adam moments (None before the first step)."""

    name: str
    weight: Tensor
    moments: tuple[Tensor, Tensor] | None


class LossScaler:
    """Dynamic loss scaling for fp16 (Micikevicius et al. 2017, arXiv:1710.03740); 1 and inert otherwise."""

    GROWTH_INTERVAL = 1000

    def __init__(self, precision: str) -> None:
        self.scale = 2.0**16 if precision == "fp16" else 1.0
        self.dynamic = precision == "fp16"
        self.good_steps = 0

    def update(self, *, overflowed: bool) -> None:
        """Halve after an overflow, double after a thousand good steps."""
        if not self.dynamic:
            return
        self.good_steps = 0 if overflowed else self.good_steps + 1
        if overflowed:
            self.scale = max(1.0, self.scale / 2)
        elif self.good_steps % self.GROWTH_INTERVAL == 0:
            self.scale *= 2


class Engine(Protocol):
    """Computes gradients and steps for one model on one or more workers."""

    model: nn.Module
    group: Group
    device: torch.device
    scaler: LossScaler
    synchronised: bool  # every rank must run equally many forward passes (ZeRO-3)

    def accumulate(self, batches: Sequence[Batch], *, normaliser: float) -> list[Tensor]:
        """Add the gradients of this worker's batches; return the label losses of each batch."""

    def step(self, learning_rate: float) -> float:
        """Clip and apply the accumulated gradients over all workers; return the gradient norm before clipping."""

    def states(self) -> Iterator[ParameterState]:
        """Yield every trained parameter whole, in a fixed order, on every rank (collective)."""

    def load_states(self, states: Iterable[ParameterState], *, optimizer_step: int) -> None:
        """Put weights and moments back (collective). `optimizer_step` is Adam's own count."""

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Put weights of trained parameters back by name, for evaluation (collective)."""

    def optimizer_bytes(self) -> int:
        """Return the bytes of optimizer state this rank holds."""


def unscale(parameters: Sequence[nn.Parameter], scale: float) -> None:
    """Divide gradients by the loss scale they were computed with."""
    if scale == 1.0:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(scale)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the arithmetic of forward passes; trained weights stay fp32 underneath."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return AdamW's groups: matrices decay, vectors (norms, biases) do not."""
    parameters = trainable(model).values()
    matrices = [parameter for parameter in parameters if _dimensions(parameter) >= 2]
    vectors = [parameter for parameter in parameters if _dimensions(parameter) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _dimensions(parameter: nn.Parameter) -> int:
    # Under ZeRO-3 a parameter is an empty placeholder that remembers its shape as ds_shape.
    return len(getattr(parameter, "ds_shape", parameter.shape))


def make_optimizer(model: nn.Module, weight_decay: float, *, fused: bool = True) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters; the learning rate is set before every step."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, fused=fused)


class TorchEngine:
    """Plain torch in this process: the reference."""

    synchronised = False

    def __init__(self, model: nn.Module, settings: OptimizerSettings, *, device: torch.device) -> None:
        self.model = model.to(device)
        self.group: Group = Alone()
        self.device = device
        self.settings = settings
        self.scaler = LossScaler(settings.precision)
        self.parameters = trainable(model)
        self.optimizer = make_optimizer(model, settings.weight_decay)

    def accumulate(self, batches: Sequence[Batch], *, normaliser: float) -> list[Tensor]:
        losses = []
        for batch in batches:
            with autocast(self.settings.precision, self.device):
                loss = label_losses(
                    self.model, batch.to(self.device), label_smoothing=self.settings.label_smoothing
                )  # [M]
            (loss.sum() * (self.scaler.scale / normaliser)).backward()
            losses.append(loss.detach())
        return losses

    def step(self, learning_rate: float) -> float:
        parameters = list(self.parameters.values())
        unscale(parameters, self.scaler.scale)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm or float("inf")))
        overflowed = self.scaler.dynamic and not math.isfinite(norm)
        if not overflowed:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.update(overflowed=overflowed)
        return norm

    def states(self) -> Iterator[ParameterState]:
        for name, parameter in self.parameters.items():
            state = self.optimizer.state.get(parameter)
            moments = (state[MOMENTS[0]], state[MOMENTS[1]]) if state else None
            yield ParameterState(name=name, weight=parameter.detach(), moments=moments)

    def load_states(self, states: Iterable[ParameterState], *, optimizer_step: int) -> None:
        for state in states:
            parameter = self.parameters[state.name]
            with torch.no_grad():
                parameter.copy_(state.weight)
            if state.moments is not None:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(optimizer_step), dtype=torch.float32, device=self.device),
                    MOMENTS[0]: state.moments[0].to(self.device).clone(),
                    MOMENTS[1]: state.moments[1].to(self.device).clone(),
                }

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in weights.items():
                self.parameters[name].copy_(weight)

    def optimizer_bytes(self) -> int:
        return sum(
            value.numel() * value.element_size()
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
