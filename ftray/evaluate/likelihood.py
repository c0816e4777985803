"""The log-likelihood a model gives to the labelled tokens of examples, in batches of similar length.

Under ZeRO-3 every rank runs equally many forward passes: each asks `keep_going` first, and a rank without work runs an
empty one while others have some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ftray.data.collate import Batch, Layout, collate
from ftray.data.tokenization import TokenizedExample
from ftray.evaluate.mode import Asking, ask_the_model, evaluating, keep_while_work_is_left
from ftray.model.forward import label_losses

MAX_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleLoss:
    """What one example cost: nats over all its labels."""

    nll: float
    num_labels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceLosses:
    """What each answer of one row cost, and the cheapest."""

    losses: tuple[ExampleLoss, ...]

    @property
    def chosen(self) -> int:
        """The index of the likeliest answer, the first of several."""
        return min(range(len(self.losses)), key=lambda index: self.losses[index].nll)


def example_losses(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    *,
    layout: Layout,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    keep_going: Callable[[bool], bool] = keep_while_work_is_left,
    asking: Asking = ask_the_model,
) -> list[ExampleLoss]:
    """Return the negative log-likelihood in nats of every example, in the order given."""
    device = next(model.parameters()).device
    batches = length_batches([len(example.tokens) for example in examples], max_batch_tokens, layout=layout)
    losses: list[ExampleLoss | None] = [None] * len(examples)
    done = 0
    with evaluating(model):
        while keep_going(done < len(batches)):
            if done == len(batches):
                label_losses(model, _empty_pass(layout).to(device))
                continue
            indices = batches[done]
            batch = collate([examples[index] for index in indices], layout)
            with asking(indices, batch.padded_lengths):
                found = _batch_losses(model, batch, device)
            for index, loss in zip(indices, found, strict=True):
                losses[index] = loss
            done += 1
    assert done == len(batches), "keep_going ended before the work did"
    return [loss for loss in losses if loss is not None]


def choice_losses(
    model: nn.Module,
    candidates: Sequence[Sequence[TokenizedExample]],
    *,
    layout: Layout,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    keep_going: Callable[[bool], bool] = keep_while_work_is_left,
    asking: Asking = ask_the_model,
) -> list[ChoiceLosses]:
    """Return, for each row, the loss of each of its answers.

    An answer's score is the sum of the log-likelihoods of its tokens, the end of the turn included: its probability,
    not divided by its length, so that the scores of answers that exclude each other are comparable.
    """
    flat = [example for row in candidates for example in row]
    row_of = [row for row, answers in enumerate(candidates) for _ in answers]
    losses = iter(
        example_losses(
            model,
            flat,
            layout=layout,
            max_batch_tokens=max_batch_tokens,
            keep_going=keep_going,
            asking=lambda indices, lengths: asking([row_of[index] for index in indices], lengths),
        )
    )
    return [ChoiceLosses(losses=tuple(next(losses) for _ in row)) for row in candidates]


def length_batches(lengths: Sequence[int], max_tokens: int, *, layout: Layout) -> list[list[int]]:
    """Group indices by similar length, longest first, so that a batch costs at most `max_tokens` (or is one row)."""
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        # When padded, every row of a batch is as wide as its first.
        cost = lengths[batches[-1][0]] if layout == "padded" and batches else lengths[index]
        if not batches or cost > room:
            batches.append([])
            room, cost = max_tokens, lengths[index]
        batches[-1].append(index)
        room -= cost
    return batches


def _batch_losses(model: nn.Module, batch: Batch, device: torch.device) -> list[ExampleLoss]:
    num_labels = np.bincount(batch.example_index.numpy(), minlength=len(batch.lengths)).tolist()
    on_device = batch.to(device)
    # Summed in float64 on the host: MPS has none, and the order of the sum must not depend on the device.
    token_losses = label_losses(model, on_device).cpu().double()
    sums = torch.zeros(len(batch.lengths), dtype=torch.float64).index_add_(0, batch.example_index, token_losses)
    return [ExampleLoss(nll=nll, num_labels=count) for nll, count in zip(sums.tolist(), num_labels, strict=True)]


def _empty_pass(layout: Layout) -> Batch:
    """Return two tokens, one a label: the smallest batch that runs every layer."""
    pair = TokenizedExample(
        tokens=np.zeros(2, dtype=np.int32),
        is_label=np.array([False, True]),
        prompt_length=1,
        dataset="",
        row=0,
        digest="",
    )
    return collate([pair], layout)
