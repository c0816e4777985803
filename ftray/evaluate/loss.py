"""Mean loss over a set of examples, shared out over the processes of a group."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ftray.data.collate import Layout
from ftray.data.tokenization import TokenizedExample
from ftray.evaluate.likelihood import example_losses
from ftray.evaluate.mode import keep_while_work_is_left
from ftray.group import Group


def mean_loss(
    examples: Sequence[TokenizedExample], model: nn.Module, *, group: Group, layout: Layout, synchronised: bool
) -> float:
    """Return the mean negative log-likelihood per label in nats (collective)."""
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].tokens))
    mine = [examples[index] for index in order[group.rank :: group.size]]
    keep_going = group.any if synchronised else keep_while_work_is_left
    losses = example_losses(model, mine, layout=layout, keep_going=keep_going)
    nll, labels = group.total([sum(loss.nll for loss in losses), sum(loss.num_labels for loss in losses)])
    return nll / labels
