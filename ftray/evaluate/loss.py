"""Mean loss over a set of examples: shared out over the processes of a group, or of many slots of a bank at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import nn

from ftray.data.collate import Layout
from ftray.data.tokenization import TokenizedExample
from ftray.evaluate.likelihood import example_losses
from ftray.evaluate.mode import keep_while_work_is_left
from ftray.group import Group
from ftray.model.bank import Bank


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


def mean_losses(
    examples: Sequence[TokenizedExample], bank: Bank, slots: Sequence[int], *, layout: Layout
) -> list[float]:
    """Return for each of these slots of a bank the mean negative log-likelihood per label in nats; in this process.

    A row's slots stand side by side: they are equally long, so that they share a batch.
    """
    rows = [example for example in examples for _ in slots]

    def asking(indices: Sequence[int], lengths: Sequence[int]) -> AbstractContextManager[None]:
        return bank.asking([slots[index % len(slots)] for index in indices], lengths)

    losses = example_losses(bank.model, rows, layout=layout, asking=asking)
    means = []
    for position in range(len(slots)):
        mine = losses[position :: len(slots)]
        means.append(sum(loss.nll for loss in mine) / sum(loss.num_labels for loss in mine))
    return means
