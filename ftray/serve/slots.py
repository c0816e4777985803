"""A bank that grows while it answers: more slots, larger ranks, without anybody waiting for the copy.

What is loaded is only read by who answers, so that a larger bank is filled beside the running passes, and taken up
between two of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ftray.model.bank import Adapter, Bank

SMALLEST_RANK = 8


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
    offsets, total = {}, 0
    for name, layer in bank.layers.items():
        offsets[name] = total
        total += rank * (layer.in_features + layer.out_features)
    weights = torch.zeros((slots, total), dtype=bank.dtype, device=bank.device)
    scales = torch.zeros((len(bank.layers), slots), dtype=bank.dtype, device=bank.device)
    scales[:, : bank.slots] = bank.scales
    for name, layer in bank.layers.items():
        old_a, old_b = layer.a(bank.weights), layer.b(bank.weights)  # [S, r, in], [S, out, r]
        start = offsets[name]
        end_of_a = start + rank * layer.in_features
        end_of_b = end_of_a + rank * layer.out_features
        a = weights[:, start:end_of_a].view(slots, rank, layer.in_features)
        b = weights[:, end_of_a:end_of_b].view(slots, layer.out_features, rank)
        a[: bank.slots, : bank.rank] = old_a
        b[: bank.slots, :, : bank.rank] = old_b

    def take_up() -> None:
        bank.slots, bank.rank, bank.num_parameters = slots, rank, total
        bank.weights, bank.scales = weights, scales
        for name, layer in bank.layers.items():
            layer.offset = offsets[name]
            layer.num_parameters = rank * (layer.in_features + layer.out_features)

    return take_up
