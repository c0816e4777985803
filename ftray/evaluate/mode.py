"""How a model is asked: in evaluation mode, left as it was found, and by whom where several adapters share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

Asking = Callable[[Sequence[int], Sequence[int]], AbstractContextManager[None]]
"""Called around a forward pass with the indices of its examples and the positions each takes in the batch."""


def ask_the_model(indices: Sequence[int], lengths: Sequence[int]) -> AbstractContextManager[None]:
    """Ask a model that answers as itself."""
    return nullcontext()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch off dropout and gradients inside the block.

    no_grad, not inference mode: ZeRO-3 gathers weights in hooks that write to tensors which training goes on using.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def keep_while_work_is_left(has_work: bool) -> bool:
    """Answer `keep_going` for a process that works alone: go on while there is something to do."""
    return has_work
