"""DeepSpeed as an `Engine`: the only file that writes DeepSpeed configuration or imports DeepSpeed.

Weights stay fp32 and mixed precision is autocast, as in the reference, so that every ZeRO stage has the reference's
losses. The optimizer is torch's AdamW: it needs no compiled extension, so workers start where there is no compiler.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftray.data.collate import Batch
from ftray.group import Group, TorchGroup
from ftray.model.forward import label_losses
from ftray.train.engine import (
    MOMENTS,
    LossScaler,
    OptimizerSettings,
    ParameterState,
    autocast,
    make_optimizer,
    trainable,
    unscale,
)
from ftray.train.plan import Plan

NEVER = 2**31 - 1


def deepspeed_config(plan: Plan) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a plan; the loop owns accumulation, clipping norm and learning rate."""
    # The default buckets of 5e8 elements are allocated whatever is trained.
    bucket = max(2**16, min(2**28, plan.trained_parameters))
    zero: dict[str, Any] = {"stage": plan.stage, "reduce_bucket_size": bucket}
    if plan.offload_optimizer != "none":
        zero["offload_optimizer"] = _offload(plan.offload_optimizer, plan)
    if plan.offload_parameters != "none":
        zero["offload_param"] = _offload(plan.offload_parameters, plan)
    if plan.stage in (1, 2):
        zero["overlap_comm"] = plan.gpus_per_worker > 0
        zero["round_robin_gradients"] = False
    return {
        # One forward per call: micro-batches differ in rows, and their loss is normalised by the whole step's labels.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": plan.max_grad_norm if plan.stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": NEVER,
    }


def _offload(device: str, plan: Plan) -> dict[str, Any]:
    place: dict[str, Any] = {"device": device, "pin_memory": plan.gpus_per_worker > 0}
    if device == "nvme":
        place["nvme_path"] = plan.nvme_path
    return place


def _import_deepspeed() -> Any:
    """Import DeepSpeed, quietly, without anything that would be compiled at first use."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    module = importlib.import_module("deepspeed")
    # The shared-memory all-reduce of CPU runs is compiled at first use, for half a minute, and kills the workers where
    # there is no compiler. gloo alone was not slower.
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return module


class DeepSpeedEngine:
    """One rank of a DeepSpeed group. torch.distributed is initialised before (Ray Train does it)."""

    def __init__(self, model: nn.Module, settings: OptimizerSettings, plan: Plan, *, device: torch.device) -> None:
        deepspeed = _import_deepspeed()
        self._fragments = importlib.import_module("deepspeed.utils")
        self.settings = settings
        self.stage = plan.stage or 0
        self.device = device
        self.group: Group = TorchGroup()
        self.synchronised = self.stage == 3
        self.scaler = LossScaler(settings.precision)
        optimizer = make_optimizer(model, settings.weight_decay, fused=plan.offload_optimizer == "none")
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(plan), dist_init_required=False
        )
        self.model = self._engine.module
        self.parameters = trainable(self.model)

    def accumulate(self, batches: Sequence[Batch], *, normaliser: float) -> list[Tensor]:
        losses = []
        # DeepSpeed averages gradients over the ranks; ours are parts of one sum.
        factor = self.group.size / normaliser
        if self.stage == 0:
            factor *= self.scaler.scale
        elif self.scaler.dynamic:
            # ZeRO multiplies the loss by its scaler and divides the gradients by it; fp32 mode made that one inert.
            self._engine.optimizer.loss_scaler.cur_scale = self.scaler.scale
            self._engine.optimizer.check_grad_overflow = True
        for index, batch in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            with autocast(self.settings.precision, self.device):
                loss = label_losses(
                    self._engine, batch.to(self.device), label_smoothing=self.settings.label_smoothing
                )  # [M]
            self._engine.backward(loss.sum() * factor, scale_wrt_gas=False)
            losses.append(loss.detach())
        return losses

    def step(self, learning_rate: float) -> float:
        for group in self._base_optimizer.param_groups:
            group["lr"] = learning_rate
        if self.stage > 0:
            self._engine.step()
            norm = float(self._engine.get_global_grad_norm())
            self.scaler.update(overflowed=not math.isfinite(norm))
            return norm
        parameters = list(self.parameters.values())
        unscale(parameters, self.scaler.scale)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm or float("inf")))
        overflowed = self.scaler.dynamic and not math.isfinite(norm)
        if overflowed:
            self._engine.zero_grad()
        else:
            self._engine.step()
        self.scaler.update(overflowed=overflowed)
        return norm

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        """The AdamW underneath: ZeRO wraps it, stage 0 does not."""
        optimizer: torch.optim.Optimizer = (
            self._engine.optimizer if self.stage == 0 else self._engine.optimizer.optimizer
        )
        return optimizer

    def states(self) -> Iterator[ParameterState]:
        started = bool(self._base_optimizer.state)
        if started:
            self._link_moments()
        for name, parameter in self.parameters.items():
            if self.stage == 0:
                weight, state = parameter.detach(), self._base_optimizer.state.get(parameter)
                pair = (state[MOMENTS[0]], state[MOMENTS[1]]) if state else None
            else:
                weight = self._fragments.safe_get_full_fp32_param(parameter)
                read = self._fragments.safe_get_full_optimizer_state
                pair = (read(parameter, MOMENTS[0]), read(parameter, MOMENTS[1])) if started else None
            yield ParameterState(name=name, weight=weight, moments=pair)

    def load_states(self, states: Iterable[ParameterState], *, optimizer_step: int) -> None:
        prepared = False
        for state in states:
            parameter = self.parameters[state.name]
            self._set_weight(parameter, state.weight)
            if state.moments is None:
                continue
            if not prepared:
                self._prepare_moments(optimizer_step)
                prepared = True
            for key, moment in zip(MOMENTS, state.moments, strict=True):
                self._set_moment(parameter, key, moment)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            self._set_weight(self.parameters[name], weight)

    def optimizer_bytes(self) -> int:
        return sum(
            value.numel() * value.element_size()
            for state in self._base_optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )

    def _prepare_moments(self, optimizer_step: int) -> None:
        """Create AdamW's state, which torch makes at the first step, so that moments can be put back."""
        optimizer = self._base_optimizer
        for group in self._optimizer_parameters():
            for parameter in group:
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(optimizer_step), dtype=torch.float32, device=parameter.device),
                    **{key: torch.zeros_like(parameter) for key in MOMENTS},
                }
        self._link_moments()

    def _link_moments(self) -> None:
        """Tell ZeRO 1 and 2 where each parameter's moments are.

        DeepSpeed does this once, after the first parameter group's first step, when the second group has none yet.
        """
        if self.stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _optimizer_parameters(self) -> list[list[Tensor]]:
        """Return what AdamW's state is keyed by: parameters at stage 0, flat partitions under ZeRO."""
        if self.stage == 0:
            return [list(self.parameters.values())]
        zero = self._engine.optimizer
        return [zero.single_partition_of_fp32_groups if self.stage in (1, 2) else zero.fp32_partitioned_groups_flat]

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        if self.stage == 3:
            self._set_partition(parameter, value, None)
            return
        with torch.no_grad():
            parameter.copy_(value)
        if self.stage in (1, 2):
            self._fragments.safe_set_full_fp32_param(parameter, value.to(self.device, torch.float32))

    def _set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        value = value.to(self.device)
        if self.stage == 0:
            self._base_optimizer.state[parameter][key].copy_(value)
        elif self.stage == 3:
            self._set_partition(parameter, value, key)
        else:
            self._fragments.safe_set_full_optimizer_state(parameter, value, key)

    def _set_partition(self, parameter: Any, value: Tensor, key: str | None) -> None:
        """Write this rank's part of a ZeRO-3 parameter or moment; the last part is padded with zeros."""
        size = parameter.ds_tensor.ds_numel
        flat = value.detach().to(self.device, torch.float32).flatten()
        flat = nn.functional.pad(flat, (0, size * self.group.size - flat.numel()))
        part = flat.narrow(0, size * self.group.rank, size)
        if key is not None:
            self._fragments.safe_set_local_optimizer_state(parameter, part, key)
            return
        self._fragments.safe_set_local_fp32_param(parameter, part)
        with torch.no_grad():
            parameter.ds_tensor.data.copy_(part)
            if parameter.data.numel() == value.numel():  # small parameters stay gathered
                parameter.data.copy_(value.view(parameter.data.shape))
