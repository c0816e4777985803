"""Gradients and AdamW steps for the slots of an adapter bank: every slot a training of its own, in one pass for all.

Learning rate, step count, clipping and the guard against non-finite gradients are per slot; a slot that does not take
part in a step is left as it is. The optimizer is torch's AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), with each
slot's row as a parameter.
Shapes: S slots, P numbers of a slot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ftray.data.collate import Batch
from ftray.model.bank import Adapter, Bank, Factors
from ftray.model.forward import label_losses
from ftray.train.engine import BETAS, EPSILON, MOMENTS, autocast


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """One training's numbers, free of the bank they were in: to be saved, and put into any slot of any bank."""

    adapter: Adapter
    weights: Factors
    exp_avg: Factors
    exp_avg_sq: Factors
    steps: int


class BankEngine:
    """Computes gradients and steps for every slot of a bank."""

    def __init__(self, bank: Bank, *, precision: str = "fp32", weight_decay: float = 0.0) -> None:
        self.bank = bank
        self.precision = precision
        self.exp_avg = torch.zeros_like(bank.weights)  # [S, P]
        self.exp_avg_sq = torch.zeros_like(bank.weights)  # [S, P]
        self.steps = torch.zeros(bank.slots, device=bank.device)  # [S]
        # One parameter a slot, its row: the optimizer works on the bank's own numbers.
        rows = [nn.Parameter(row) for row in bank.weights]
        groups = [{"params": [row], "lr": 0.0, "weight_decay": weight_decay} for row in rows]
        self._optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON, fused=True)
        for row, step, exp_avg, exp_avg_sq in zip(rows, self.steps, self.exp_avg, self.exp_avg_sq, strict=True):
            self._optimizer.state[row] = {"step": step, MOMENTS[0]: exp_avg, MOMENTS[1]: exp_avg_sq}

    def accumulate(
        self,
        batch: Batch,
        slots: Sequence[int],
        *,
        normalisers: Mapping[int, float],
        dropout_seeds: Mapping[int, int] | None = None,
    ) -> dict[int, float]:
        """Add the gradients of a batch; return the sum of the label losses in nats of each slot in it.

        `slots`: the slot of each example. `normalisers`: what each slot's losses are divided by, its labels of the
        whole step. `dropout_seeds`: as `Bank.asking`. Base examples are not trained on.
        """
        bank = self.bank
        _train_adapters_only(bank.model)
        example_slots = torch.tensor(slots, device=bank.device)
        shares = torch.tensor([1.0 / normalisers[slot] for slot in slots], dtype=bank.dtype, device=bank.device)
        with bank.asking(slots, batch.padded_lengths, dropout_seeds=dropout_seeds):
            with autocast(self.precision, bank.device):
                losses = label_losses(bank.model, batch.to(bank.device))  # [M]
            owners = batch.example_index.to(bank.device)
            (losses * shares[owners]).sum().backward()
        sums = torch.zeros(bank.slots + 1, dtype=torch.float64)
        sums.index_add_(0, example_slots[owners].cpu(), losses.detach().double().cpu())
        return {slot: float(sums[slot]) for slot in sorted(set(slots))}

    def step(
        self, learning_rates: Mapping[int, float], *, max_grad_norm: Mapping[int, float] | float = 0.0
    ) -> dict[int, float]:
        """Clip and apply the gradients of these slots; return each one's norm before clipping.

        A slot whose norm is not finite keeps its weights and its state: its caller decides what becomes of it. The
        gradients of all slots are zero afterwards. A `max_grad_norm` of 0 clips nothing.
        """
        bank, slots = self.bank, sorted(learning_rates)
        gradients = bank.ensure_gradients()
        norms = torch.linalg.vector_norm(gradients, dim=1)  # [S]
        limits = [max_grad_norm if isinstance(max_grad_norm, int | float) else max_grad_norm[slot] for slot in slots]
        told = norms.tolist()
        for slot, limit in zip(slots, limits, strict=True):
            group, norm, row = self._optimizer.param_groups[slot - 1], told[slot - 1], slot - 1
            if not math.isfinite(norm):
                continue
            group["lr"] = learning_rates[slot]
            (parameter,) = group["params"]
            parameter.grad = gradients[row]
            if limit and norm > limit:
                # As torch.nn.utils.clip_grad_norm_ does.
                parameter.grad.mul_(limit / (norms[row] + 1e-6))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        gradients.zero_()
        return {slot: told[slot - 1] for slot in slots}

    # One training, in and out

    def start(self, slot: int, *, weight_decay: float = 0.0) -> None:
        """Begin a training with what the slot holds now."""
        for state in (self.exp_avg, self.exp_avg_sq, self.steps):
            state[slot - 1] = 0.0
        self._optimizer.param_groups[slot - 1]["weight_decay"] = weight_decay

    def fork(self, source: int, target: int) -> None:
        """Copy one slot's training, adapter and all, into another slot."""
        self.bank.fork(source, target)
        for state in (self.exp_avg, self.exp_avg_sq, self.steps):
            state[target - 1] = state[source - 1]
        groups = self._optimizer.param_groups
        groups[target - 1]["weight_decay"] = groups[source - 1]["weight_decay"]

    def state(self, slot: int) -> SlotState:
        """Return copies of one training's numbers."""
        bank = self.bank
        return SlotState(
            adapter=bank.adapters[slot],
            weights=bank.take(slot),
            exp_avg=bank.take(slot, rows=self.exp_avg),
            exp_avg_sq=bank.take(slot, rows=self.exp_avg_sq),
            steps=int(self.steps[slot - 1]),
        )

    def restore(self, slot: int, state: SlotState, *, weight_decay: float = 0.0) -> None:
        """Put one training's numbers into a slot."""
        bank = self.bank
        bank.put(slot, state.adapter, state.weights)
        self.start(slot, weight_decay=weight_decay)
        bank.write(slot, state.exp_avg, rows=self.exp_avg)
        bank.write(slot, state.exp_avg_sq, rows=self.exp_avg_sq)
        self.steps[slot - 1] = float(state.steps)


def _train_adapters_only(model: nn.Module) -> None:
    """Switch the base's own dropout off: its masks would depend on who else is in the batch.

    Layers that recompute their activations do so in training mode only; they themselves drop nothing.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
