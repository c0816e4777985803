"""Which micro-batches of the trials share a forward pass.

A micro-batch of a trial is what a run of its own would compute at a time, so what is shared changes rounding and
nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ftray.data.tokenization import TokenizedExample

LOGITS_CPU = 2**25
LOGITS_GPU = 2**28
"""Logits (labels x vocabulary) of one forward pass: past these they are most of its memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One micro-batch of one trial."""

    slot: int
    index: int  # among its trial's of this step
    examples: Sequence[TokenizedExample]

    @property
    def num_tokens(self) -> int:
        return sum(len(example.tokens) for example in self.examples)

    @property
    def num_labels(self) -> int:
        return sum(int(example.is_label[1:].sum()) for example in self.examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a forward pass may hold; one micro-batch alone always may."""

    slots: int
    tokens: int
    labels: int


def share_forwards(parts: Sequence[Part], limits: Limits) -> list[list[Part]]:
    """Return the forward passes of a step: as few as the limits allow, parts kept in order.

    A slot has one part in a pass: its dropout is seeded for each.
    """
    forwards: list[list[Part]] = []
    waiting = list(parts)
    while waiting:
        chosen: list[Part] = []
        rest: list[Part] = []
        tokens = labels = 0
        for part in waiting:
            fits = tokens + part.num_tokens <= limits.tokens and labels + part.num_labels <= limits.labels
            is_new = all(part.slot != other.slot for other in chosen)
            if not chosen or (fits and is_new and len(chosen) < limits.slots):
                chosen.append(part)
                tokens, labels = tokens + part.num_tokens, labels + part.num_labels
            else:
                rest.append(part)
        forwards.append(chosen)
        waiting = rest
    return forwards
