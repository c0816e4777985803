"""Who shares this work: one process alone, or the ranks of a torch.distributed group.

The evaluation and the checkpoints talk to their peers only through this, so they run unchanged in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Group(Protocol):
    """A set of processes that call the same methods in the same order."""

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order, on every rank."""

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums over the ranks, in float64, the same on every rank."""


class Alone:
    """The group of one."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def any(self, flag: bool) -> bool:
        return flag

    def total(self, values: Sequence[float]) -> list[float]:
        return [float(value) for value in values]


class TorchGroup:
    """The default torch.distributed group. Objects are pickled between ranks of one run, never read from disk."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def gather(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        return self.total([float(flag)])[0] > 0

    def total(self, values: Sequence[float]) -> list[float]:
        import torch
        import torch.distributed as dist

        sums = torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(sums)
        return [float(value) for value in sums.tolist()]
