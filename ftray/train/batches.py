"""Which examples make up an optimizer step, and which worker computes them in which forward pass.

A step is always the same `batch_size` examples, in an order that depends on (seed, epoch, row content) alone; workers,
micro-batches and packing only share them out, so they change the result by rounding and nothing else. Every worker
runs equally many forward passes: a collective needs all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ftray.data.packing import best_fit
from ftray.data.split import data_order
from ftray.data.tokenization import TokenizedExample


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How one step's examples are shared out."""

    workers: int
    micro_batch_size: int
    packed_length: int | None  # row length in tokens when packing, else None


class StepSampler:
    """Gives the examples of any optimizer step by its number: nothing to save, nothing to fast-forward."""

    def __init__(self, examples: Sequence[TokenizedExample], *, batch_size: int, seed: int) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = math.ceil(len(examples) / batch_size)
        self._digests = [example.digest for example in examples]
        self._order: tuple[int, list[int]] = (-1, [])

    def step(self, step: int) -> list[TokenizedExample]:
        """Return the examples of optimizer step `step` (0-based); an epoch's last step may have fewer."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, data_order(self._digests, seed=self.seed, epoch=epoch))
        first = position * self.batch_size
        return [self.examples[index] for index in self._order[1][first : first + self.batch_size]]


def share_out(examples: Sequence[TokenizedExample], sharing: Sharing) -> list[list[list[TokenizedExample]]]:
    """Return for every worker its micro-batches: equally many for each, tokens balanced.

    A worker without work left gets a micro-batch with no labels, whose loss and gradient are zero.
    """
    shares = _balance(examples, sharing.workers)
    micro_batches = [_micro_batches(share, sharing) for share in shares]
    most = max(len(batches) for batches in micro_batches)
    idle = _without_labels(min(examples, key=lambda example: len(example.tokens)))
    return [batches + [[idle]] * (most - len(batches)) for batches in micro_batches]


def _balance(examples: Sequence[TokenizedExample], workers: int) -> list[list[TokenizedExample]]:
    """Deal the longest first to the worker with the fewest tokens among those with room for one more example."""
    room = math.ceil(len(examples) / workers)
    shares: list[list[TokenizedExample]] = [[] for _ in range(workers)]
    tokens = [0] * workers
    for example in sorted(examples, key=lambda example: (-len(example.tokens), example.digest)):
        worker = min((w for w in range(workers) if len(shares[w]) < room), key=lambda w: (tokens[w], w))
        shares[worker].append(example)
        tokens[worker] += len(example.tokens)
    return shares


def _micro_batches(share: list[TokenizedExample], sharing: Sharing) -> list[list[TokenizedExample]]:
    size = sharing.micro_batch_size
    if sharing.packed_length is None:
        return [share[first : first + size] for first in range(0, len(share), size)]
    rows = best_fit([len(example.tokens) for example in share], sharing.packed_length)
    groups = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [[share[index] for row in group for index in row] for group in groups]


def _without_labels(example: TokenizedExample) -> TokenizedExample:
    return replace(example, is_label=np.zeros_like(example.is_label))


def count_labels(examples: Sequence[TokenizedExample]) -> int:
    """Return the number of tokens the loss is averaged over (a first token cannot be predicted)."""
    return sum(int(np.count_nonzero(example.is_label[1:])) for example in examples)
