"""Losses and answers from shared passes are those of a pass for each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from ftray.data.tokenization import Tokenization
from ftray.evaluate import scored
from ftray.evaluate.config import Metric
from ftray.evaluate.generate import generate
from ftray.evaluate.loss import mean_losses
from ftray.evaluate.predict import Asked, predict_slots
from ftray.evaluate.scored import score_slots
from ftray.evaluate.tasks import Task, TaskRow
from ftray.model.bank import Bank
from ftray.model.bank_route import BASE
from ftray.model.config import MethodConfig

LIMIT = 6
EXPECTED = ["yes", "no, never", "maybe some other day, when the weather is better", "yes", "no", "perhaps", "not now"]


@pytest.fixture
def bank(tiny_model: LlamaForCausalLM) -> Bank:
    """Return a bank with an adapter that answers otherwise than its base."""
    made = Bank(tiny_model, slots=2, rank=4, freeze=False)
    for slot in (1, 2):
        made.join(slot, MethodConfig(rank=2 * slot), seed=slot)
        generator = torch.Generator().manual_seed(slot)
        factors = {
            name: (a, 0.1 * torch.randn(b.shape, generator=generator)) for name, (a, b) in made.take(slot).items()
        }
        made.put(slot, made.adapters[slot], factors)
    return made


def asked_of(bank: Bank, tokenization: Tokenization, stops: list[int]) -> Asked:
    return Asked(model=bank.model, tokenizer=tokenization.tokenizer, stop_token_ids=stops, layout="padded")


def own_answers(bank: Bank, task: Task, slot: int) -> list[list[int]]:
    """Return what a slot writes to each row when nothing stops it."""
    model: Any = bank.model
    return generate(
        model, [row.prompt_tokens for row in task.rows], max_new_tokens=LIMIT + 2, stop_token_ids=[], pad_token_id=0,
        asking=lambda indices, lengths: bank.asking([slot] * len(indices), lengths),
    )  # fmt: skip


def expecting(row: TaskRow, answer: list[int]) -> TaskRow:
    """Return the row with another expected answer."""
    prompt = list(row.prompt_tokens)
    example = replace(
        row.example,
        tokens=np.array([*prompt, *answer], dtype=np.int32),
        is_label=np.array([False] * len(prompt) + [True] * len(answer)),
    )
    return replace(row, example=example)


def test_what_agrees_is_not_generated_and_all_else_is_as_if_it_were(
    bank: Bank, tokenization: Tokenization, task_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task: Task = task_of(tokenization, EXPECTED, Metric(max_new_tokens=LIMIT))
    written = own_answers(bank, task, 1)
    stop = written[0][3]
    other = 1 if stop != 1 else 2
    answers = [
        [*written[0][:3], stop],  # all of it
        written[1][:2],  # the beginning, without an end
        [*written[2][:2], other, stop],  # the beginning
        [other, stop],  # none of it
        written[4],  # more than may be written
        [stop],  # an end, at once
        [*written[6][:LIMIT], stop],  # as much as may be written
    ]
    task = replace(task, rows=[expecting(row, answer) for row, answer in zip(task.rows, answers, strict=True)])
    asked, slots = asked_of(bank, tokenization, [stop]), [BASE, 1, 2]
    generated: list[int] = []

    def noted(model: Any, prompts: Any, **others: Any) -> list[list[int]]:
        generated.append(len(prompts))
        return generate(model, prompts, **others)

    monkeypatch.setattr(scored, "generate", noted)
    found = score_slots(task, asked, bank, slots)
    expected = predict_slots([task], asked, bank, slots)
    losses = mean_losses([row.example for row in task.rows], bank, slots, layout="padded")
    for one, answer, loss in zip(found, expected, losses, strict=True):
        assert one.rows == answer[task.name]
        assert one.loss == pytest.approx(loss, rel=1e-6)
    assert found[1].rows != found[0].rows
    assert found[1].rows != found[2].rows
    # Of slot 1, what stopped and what was full was known.
    assert generated[0] <= len(slots) * len(task.rows) - 3


def test_rows_that_all_agree_generate_nothing(
    bank: Bank, tokenization: Tokenization, task_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task: Task = task_of(tokenization, EXPECTED, Metric(max_new_tokens=LIMIT))
    written = own_answers(bank, task, 1)
    task = replace(task, rows=[expecting(row, answer) for row, answer in zip(task.rows, written, strict=True)])
    monkeypatch.setattr(scored, "generate", None)
    (found,) = score_slots(task, asked_of(bank, tokenization, []), bank, [1])
    assert len(found.rows) == len(EXPECTED)
