"""Who shares this work: one process alone, or the ranks of a torch.distributed group.

The evaluation and the checkpoints talk to their peers only through this, so they run unchanged in one process.
"""

from __future__ import annotations

from typing import Any, Protocol


class Group(Protocol):
    """A set of processes that call the same methods in the same order."""

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order, on every rank."""

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""


class Alone:
    """The group of one."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def any(self, flag: bool) -> bool:
        return flag


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
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor([int(flag)], device=device)
        dist.all_reduce(total)
        return bool(total.item())
