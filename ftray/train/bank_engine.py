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
from torch import Tensor, nn

from ftray.data.collate import Batch
from ftray.errors import InputError
from ftray.model.bank import Adapter, Bank, Factors
from ftray.model.config import MethodConfig
from ftray.model.forward import label_losses
from ftray.model.lora import train_adapter_only
from ftray.train.engine import BETAS, EPSILON, MOMENTS, autocast


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """One training's numbers, free of the bank they were in: to be saved, and put into any slot of any bank."""

    adapter: Adapter
    weights: Factors
    exp_avg: Factors
    exp_avg_sq: Factors
    steps: int
    weight_decay: float


class BankEngine:
    """Computes gradients and steps for every slot of a bank."""

    def __init__(self, bank: Bank, *, precision: str = "fp32") -> None:
        """Take a bank over. Raises InputError for fp16, which needs a loss scale for every slot."""
        if precision == "fp16":
            raise InputError(
                "trainings that share a base cannot run in fp16",
                kind="incompatible",
                given=precision,
                allowed=["fp32", "bf16"],
                hint="Set train.precision: bf16.",
                path="train.precision",
            )
        self.bank = bank
        self.precision = precision
        self.exp_avg = torch.zeros_like(bank.weights)  # [S, P]
        self.exp_avg_sq = torch.zeros_like(bank.weights)  # [S, P]
        self.steps = torch.zeros(bank.slots, device=bank.device)  # [S]
        # One parameter a slot, its row: the optimizer works on the bank's own numbers.
        rows = [nn.Parameter(row) for row in bank.weights]
        groups = [{"params": [row], "lr": 0.0, "weight_decay": 0.0} for row in rows]
        self._optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON, fused=True)
        for row, step, exp_avg, exp_avg_sq in zip(rows, self.steps, self.exp_avg, self.exp_avg_sq, strict=True):
            self._optimizer.state[row] = {"step": step, MOMENTS[0]: exp_avg, MOMENTS[1]: exp_avg_sq}
        self._training: dict[int, Adapter] = {}
        train_adapter_only(bank.model)

    def accumulate(
        self,
        batch: Batch,
        slots: Sequence[int],
        *,
        normalisers: Mapping[int, float],
        dropout_seeds: Mapping[int, int] | None = None,
        label_smoothing: Mapping[int, float] | None = None,
    ) -> dict[int, float]:
        """Add the gradients of a batch; return the sum of the label losses in nats of each slot in it.

        As `accumulate_examples`, whose sums these are.
        """
        sums = dict.fromkeys(sorted(set(slots)), 0.0)
        losses = self.accumulate_examples(
            batch, slots, normalisers=normalisers, dropout_seeds=dropout_seeds, label_smoothing=label_smoothing
        )
        for slot, loss in zip(slots, losses, strict=True):
            sums[slot] += loss
        return sums

    def accumulate_examples(
        self,
        batch: Batch,
        slots: Sequence[int],
        *,
        normalisers: Mapping[int, float],
        dropout_seeds: Mapping[int, int] | None = None,
        label_smoothing: Mapping[int, float] | None = None,
    ) -> list[float]:
        """Add the gradients of a batch; return the sum of the label losses in nats of each example.

        `slots`: the slot of each example. `normalisers`: what each slot's losses are divided by, its labels of the
        whole step. `dropout_seeds`: as `Bank.asking`, another seed for every call; slots with dropout must have one.
        `label_smoothing`: each slot's; none where it is not named.
        """
        bank = self.bank
        self._require_training(slots)
        for slot in set(slots):
            seeded = dropout_seeds is not None and slot in dropout_seeds
            assert seeded or not bank.adapters[slot].dropout, f"slot {slot} has dropout, and no seed for it was given"
        owners = batch.example_index.to(bank.device)
        shares = torch.tensor([1.0 / normalisers[slot] for slot in slots], dtype=bank.dtype, device=bank.device)
        smoothing: float | Tensor = 0.0
        if label_smoothing and any(label_smoothing.get(slot) for slot in slots):
            each = [label_smoothing.get(slot, 0.0) for slot in slots]
            smoothing = torch.tensor(each, dtype=bank.dtype, device=bank.device)[owners]
        with bank.asking(slots, batch.padded_lengths, dropout_seeds=dropout_seeds):
            with autocast(self.precision, bank.device):
                losses = label_losses(bank.model, batch.to(bank.device), label_smoothing=smoothing)  # [M]
            (losses * shares[owners]).sum().backward()
        sums = torch.zeros(len(slots), dtype=torch.float64)
        sums.index_add_(0, batch.example_index.cpu(), losses.detach().double().cpu())
        told: list[float] = sums.tolist()
        return told

    def forget_gradients(self, slots: Sequence[int]) -> None:
        """Drop what has been added for these slots since their last step."""
        gradients = self.bank.ensure_gradients()
        for slot in slots:
            gradients[slot - 1].zero_()

    def step(
        self, learning_rates: Mapping[int, float], *, max_grad_norm: Mapping[int, float] | float = 0.0
    ) -> dict[int, float]:
        """Clip and apply the gradients of these slots; return each one's norm before clipping.

        A slot whose norm is not finite keeps its weights and its state: its caller decides what becomes of it. These
        slots' gradients are zero afterwards; a slot that is not named is left as it is. A `max_grad_norm` of 0 clips
        nothing.
        """
        bank, slots = self.bank, sorted(learning_rates)
        self._require_training(slots)
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
        self.forget_gradients(slots)
        return {slot: told[slot - 1] for slot in slots}

    def _require_training(self, slots: Sequence[int]) -> None:
        """A slot that was filled without the engine would go on with another training's moments."""
        for slot in set(slots):
            known = self._training.get(slot)
            assert known is not None, f"slot {slot} is not in training"
            assert known is self.bank.adapters.get(slot), f"slot {slot} was filled behind the engine's back"

    # One training, in and out

    def join(self, slot: int, method: MethodConfig, *, seed: int, weight_decay: float) -> None:
        """Begin a training with a fresh adapter, as `Bank.join`."""
        self.bank.join(slot, method, seed=seed)
        self.start(slot, weight_decay=weight_decay)

    def start(self, slot: int, *, weight_decay: float) -> None:
        """Begin a training with the adapter that the slot holds."""
        adapter = self.bank.adapters.get(slot)
        assert adapter is not None, f"slot {slot} holds no adapter to train"
        for state in (self.exp_avg, self.exp_avg_sq, self.steps, self.bank.ensure_gradients()):
            state[slot - 1] = 0.0
        self._optimizer.param_groups[slot - 1]["weight_decay"] = weight_decay
        self._training[slot] = adapter

    def leave(self, slot: int) -> None:
        """End a training and empty its slot."""
        self.bank.leave(slot)
        self._training.pop(slot, None)

    def fork(self, source: int, target: int) -> None:
        """Copy one slot's training, adapter and all, into another slot."""
        self._require_training([source])
        self.bank.fork(source, target)
        self.start(target, weight_decay=self._optimizer.param_groups[source - 1]["weight_decay"])
        for state in (self.exp_avg, self.exp_avg_sq, self.steps):
            state[target - 1] = state[source - 1]

    def state(self, slot: int) -> SlotState:
        """Return one training's numbers, copied to the host."""
        self._require_training([slot])
        bank = self.bank
        return SlotState(
            adapter=bank.adapters[slot],
            weights=_on_the_host(bank.take(slot)),
            exp_avg=_on_the_host(bank.take(slot, rows=self.exp_avg)),
            exp_avg_sq=_on_the_host(bank.take(slot, rows=self.exp_avg_sq)),
            steps=int(self.steps[slot - 1]),
            weight_decay=self._optimizer.param_groups[slot - 1]["weight_decay"],
        )

    def restore(self, slot: int, state: SlotState) -> None:
        """Put one training's numbers into a slot."""
        bank = self.bank
        bank.put(slot, state.adapter, state.weights)
        self.start(slot, weight_decay=state.weight_decay)
        bank.write(slot, state.exp_avg, rows=self.exp_avg)
        bank.write(slot, state.exp_avg_sq, rows=self.exp_avg_sq)
        self.steps[slot - 1] = float(state.steps)


def _on_the_host(factors: Factors) -> Factors:
    return {layer: (a.cpu(), b.cpu()) for layer, (a, b) in factors.items()}
