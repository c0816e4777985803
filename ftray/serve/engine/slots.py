"""A bank that grows while it answers: more slots, larger ranks, without anybody waiting for the copy.

What is loaded is only read by who answers, so that a larger bank is filled beside the running passes, and taken up
between two of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ftray.model.bank import Adapter, Bank, BankLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class _Larger:
    """What a layer asks of its bank to find its place."""

    rank: int


def free_slot(bank: Bank) -> int | None:
    """Return a slot that holds nothing."""
    return next((slot for slot in range(1, bank.slots + 1) if slot not in bank.adapters), None)


def room_for(bank: Bank, adapter: Adapter) -> tuple[int, int]:
    """Return how many slots and which rank a bank needs to take one more adapter, ahead of need."""
    slots = bank.slots if free_slot(bank) is not None else 2 * bank.slots
    largest = max((adapter.rank_of(name) for name in adapter.layers), default=0)
    rank = bank.rank
    while rank < largest:
        rank *= 2
    return slots, rank


def grown(bank: Bank, *, slots: int, rank: int) -> Callable[[], None]:
    """Copy what the bank holds into a larger one; return what makes the bank use it, to be called between passes.

    Until then nothing may be put into the bank, and nothing may leave it.
    """
    larger: dict[str, BankLinear] = {}
    total = 0
    for name, layer in bank.layers.items():
        # The same layer with its place in the larger rows: where A and B lie in them, it knows itself.
        larger[name] = copy.copy(layer)
        object.__setattr__(larger[name], "bank", _Larger(rank=rank))
        larger[name].offset = total
        larger[name].num_parameters = rank * (layer.in_features + layer.out_features)
        total += larger[name].num_parameters
    weights = torch.zeros((slots, total), dtype=bank.dtype, device=bank.device)
    scales = torch.zeros((len(bank.layers), slots), dtype=bank.dtype, device=bank.device)
    scales[:, : bank.slots] = bank.scales
    for name, layer in bank.layers.items():
        larger[name].a(weights)[: bank.slots, : bank.rank] = layer.a(bank.weights)
        larger[name].b(weights)[: bank.slots, :, : bank.rank] = layer.b(bank.weights)

    def take_up() -> None:
        bank.slots, bank.rank, bank.num_parameters = slots, rank, total
        bank.weights, bank.scales = weights, scales
        for name, layer in bank.layers.items():
            layer.offset, layer.num_parameters = larger[name].offset, larger[name].num_parameters

    return take_up
