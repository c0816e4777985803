"""What slots of a bank are worth on rows with known answers: their losses, and what they write, from the same passes.

The pass over a row's expected answer, which its loss needs anyway, says for each token of it what the model would have
written there. A greedy answer is known from it up to the first token that is another one; only what comes after that
is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from ftray.data.collate import collate
from ftray.evaluate.generate import generate, token_limit
from ftray.evaluate.graders import needs_generation
from ftray.evaluate.likelihood import MAX_BATCH_TOKENS, length_batches
from ftray.evaluate.mode import Asking, evaluating
from ftray.evaluate.predict import Asked, RowPrediction, grade_answers
from ftray.evaluate.tasks import Task, TaskRow
from ftray.model.bank import Bank
from ftray.model.forward import label_logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What one slot is worth."""

    rows: list[RowPrediction]
    """Its graded answers, in the task's order."""
    loss: float
    """Mean over all labels of all rows, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What a pass over one row and its expected answer gave."""

    nll: float
    likeliest: list[int]  # of each label, the token that the model would have written


def score_slots(task: Task, asked: Asked, bank: Bank, slots: Sequence[int]) -> list[Scored]:
    """Return what each slot of a bank over `asked.model` is worth at a task whose answers are generated.

    The answers are those of `predict_slots`, the losses those of `mean_losses`. In one process.
    """
    assert needs_generation(task.metric), "the answers to this task are not generated"
    assert asked.group.size == 1, "rows are not shared out here"
    order = sorted(range(len(task.rows)), key=lambda index: -len(task.rows[index].example.tokens))
    num = len(slots)
    # A row's slots stand side by side: they are equally long, so that they share a batch.
    rows = [task.rows[index] for index in order for _ in slots]

    def asking(indices: Sequence[int], lengths: Sequence[int]) -> AbstractContextManager[None]:
        return bank.asking([slots[index % num] for index in indices], lengths)

    passes = _passes(rows, asked, asking, num)
    graded = grade_answers(task, rows, _answers(task, rows, passes, asked, asking), asked)
    num_labels = sum(int(row.example.is_label[1:].sum()) for row in task.rows)
    scored = []
    for position in range(num):
        mine = dict(zip(order, graded[position::num], strict=True))
        scored.append(
            Scored(
                rows=[mine[index] for index in range(len(task.rows))],
                loss=sum(one.nll for one in passes[position::num]) / num_labels,
            )
        )
    return scored


def _passes(rows: Sequence[TaskRow], asked: Asked, asking: Asking, num_slots: int) -> list[_Pass]:
    """Run the model over every row with its expected answer."""
    found: dict[int, _Pass] = {}
    lengths = [len(row.example.tokens) for row in rows]
    with evaluating(asked.model):
        for batch in length_batches(lengths, MAX_BATCH_TOKENS, layout=asked.layout):
            # Slot after slot: each one's tokens are then in one piece.
            indices = sorted(batch, key=lambda index: (index % num_slots, index))
            found |= dict(zip(indices, _batch(rows, indices, asked, asking), strict=True))
    return [found[index] for index in range(len(rows))]


def _batch(rows: Sequence[TaskRow], indices: Sequence[int], asked: Asked, asking: Asking) -> list[_Pass]:
    batch = collate([rows[index].example for index in indices], asked.layout)
    on_device = batch.to(next(asked.model.parameters()).device)
    with asking(indices, batch.padded_lengths):
        logits = label_logits(asked.model, on_device)  # [M, V]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = functional.cross_entropy(logits, on_device.targets, reduction="none").cpu().double()
    sums = torch.zeros(len(indices), dtype=torch.float64).index_add_(0, batch.example_index, losses).tolist()
    likeliest: list[list[int]] = [[] for _ in indices]
    for owner, token in zip(batch.example_index.tolist(), logits.argmax(dim=-1).tolist(), strict=True):
        likeliest[owner].append(token)
    return [_Pass(nll=nll, likeliest=tokens) for nll, tokens in zip(sums, likeliest, strict=True)]


def _answers(
    task: Task, rows: Sequence[TaskRow], passes: Sequence[_Pass], asked: Asked, asking: Asking
) -> list[list[int]]:
    """Return what the model writes to each row: what the passes say of it, and what is generated after that."""
    model = cast("PreTrainedModel", asked.model)
    most = task.metric.max_new_tokens
    limits = [token_limit(model, len(row.prompt_tokens), most) for row in rows]
    stops = frozenset(asked.stop_token_ids)
    begun = [_known(row, one, limit, stops) for row, one, limit in zip(rows, passes, limits, strict=True)]
    answers = [tokens for tokens, _ in begun]
    going_on = [index for index, (_, has_ended) in enumerate(begun) if not has_ended]
    if going_on:
        rest = generate(
            model,
            [[*rows[index].prompt_tokens, *answers[index]] for index in going_on],
            max_new_tokens=max(limits[index] - len(answers[index]) for index in going_on),
            stop_token_ids=asked.stop_token_ids,
            pad_token_id=asked.pad_token_id,
            asking=lambda indices, lengths: asking([going_on[index] for index in indices], lengths),
        )
        for index, tokens in zip(going_on, rest, strict=True):
            answers[index] = [*answers[index], *tokens][: limits[index]]
    return answers


def _known(row: TaskRow, one: _Pass, limit: int, stops: frozenset[int]) -> tuple[list[int], bool]:
    """Return the beginning of the answer that is known, and whether it is all of it."""
    example, first = row.example, len(row.prompt_tokens)
    tokens: list[int] = []
    earlier = int(example.is_label[1:first].sum())  # labels of turns before the last one
    for place in range(first, len(example.tokens)):
        if not example.is_label[place]:
            break
        token = one.likeliest[earlier + place - first]
        if token in stops:
            return tokens, True
        tokens.append(token)
        if len(tokens) == limit:
            return tokens, True
        if token != example.tokens[place]:
            break
    return tokens, False
