"""Put a model into evaluation mode and leave it as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
