"""Let a model answer a task, the rows shared out over the processes of a group.

Each row is graded where it was answered; every process returns all rows, in the task's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftray.data.collate import Layout
from ftray.errors import RunError
from ftray.evaluate.expected_format import Kept, keep_to
from ftray.evaluate.generate import generate, token_limit
from ftray.evaluate.graders import Graded, grade, needs_generation
from ftray.evaluate.instructions import follows_all
from ftray.evaluate.likelihood import ExampleLoss, choice_losses, example_losses
from ftray.evaluate.lm_eval import ask_lm_eval
from ftray.evaluate.mode import Asking, ask_the_model, keep_while_work_is_left
from ftray.evaluate.tasks import Task, TaskRow
from ftray.group import Alone, Group
from ftray.model.bank import Bank
from ftray.model.bank_route import BASE


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPrediction:
    """What one model answered to one row, and how good that was."""

    task: str
    row: int
    prompt: str
    expected: str
    prediction: str
    """The generated or chosen answer; empty where the text is given and only its likelihood is measured."""
    score: float
    correct: bool | None
    nll: float | None
    """Nats over all label tokens, for likelihood metrics."""
    num_labels: int
    num_bytes: int
    ended: bool | None = None
    """Whether the model ended the answer itself, before `max_new_tokens`; null where it wrote none."""
    kept: Kept | None = None
    """How far the answer keeps to the task's format, where there is one."""


Answers = dict[str, list[RowPrediction]]
"""What one model answers to several tasks, by the task's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who is asked, and how: a model with its tokenizer, and the processes that share the work."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: Sequence[int]
    layout: Layout
    group: Group = field(default_factory=Alone)
    synchronised: bool = False
    """The model's weights are sharded (ZeRO-3), so no process may run a forward pass alone."""

    @property
    def pad_token_id(self) -> int:
        """What prompts are padded with. Padding is masked: any token serves a tokenizer that has none for it."""
        token: Any = self.tokenizer.pad_token_id
        return 0 if token is None else int(token)


def predict_task(task: Task, asked: Asked) -> list[RowPrediction]:
    """Return the model's graded answer to every row. Every process of the group calls this.

    Raises RunError `nonfinite` when the model's likelihoods are not numbers.
    """
    if task.lm_eval is not None:
        return _by_lm_eval(task, asked)
    order = _shared_out(task, asked.group)
    answers = _answers(task, [task.rows[index] for index in order], asked, ask_the_model)
    return _gathered(task, asked.group, dict(zip(order, answers, strict=True)))


def predict_tasks(tasks: Sequence[Task], asked: Asked) -> Answers:
    """Return the model's graded answers to every task, by the task's name; as `predict_task`."""
    return {task.name: predict_task(task, asked) for task in tasks}


def predict_slots(tasks: Sequence[Task], asked: Asked, bank: Bank, slots: Sequence[int]) -> list[Answers]:
    """Return what each slot of a bank over `asked.model` answers to every task, all slots in the same batches."""
    answers: list[Answers] = [{} for _ in slots]
    for task in tasks:
        order = _shared_out(task, asked.group)
        # A row's slots stand side by side: they are equally long, so that they share a batch.
        rows = [task.rows[index] for index in order for _ in slots]

        def asking(indices: Sequence[int], lengths: Sequence[int]) -> AbstractContextManager[None]:
            return bank.asking([slots[index % len(slots)] for index in indices], lengths)

        everything = _answers(task, rows, asked, asking)
        for position in range(len(slots)):
            mine = dict(zip(order, everything[position :: len(slots)], strict=True))
            answers[position][task.name] = _gathered(task, asked.group, mine)
    return answers


def predict_both(
    tasks: Sequence[Task],
    asked: Asked,
    shared: AbstractContextManager[Bank | None],
    *,
    as_base: AbstractContextManager[None],
) -> tuple[Answers, Answers]:
    """Return what the base and the tuned model answer: in the same batches through a bank with the adapter in slot 1.

    `shared` opens the bank. Where it gives none, and for what lm-eval asks, one model answers after the other, the
    base inside `as_base`.
    """
    base: Answers = {}
    tuned: Answers = {}
    with shared as bank:
        if bank is not None:
            base, tuned = predict_slots([task for task in tasks if task.lm_eval is None], asked, bank, (BASE, 1))
    left = [task for task in tasks if task.name not in tuned]
    if left:
        tuned |= predict_tasks(left, asked)
        with as_base:
            base |= predict_tasks(left, asked)
    return base, tuned


def _by_lm_eval(task: Task, asked: Asked) -> list[RowPrediction]:
    """Let the first process ask: which few-shot examples lm-eval shows to a row depends on the rows before it."""
    assert not asked.synchronised, "ZeRO-3 is refused before anything is started"
    predictions: list[RowPrediction] = []
    if asked.group.rank == 0:
        answers = ask_lm_eval(task, asked.model, asked.tokenizer)
        predictions = [
            _prediction(task, row, answer.text, score=answer.score, correct=answer.correct)
            for row, answer in zip(task.rows, answers, strict=True)
        ]
    gathered: list[RowPrediction] = asked.group.gather(predictions)[0]
    return gathered


def _shared_out(task: Task, group: Group) -> list[int]:
    """Return this process's rows, longest first and dealt like cards: every process gets as much of every length."""
    order = sorted(range(len(task.rows)), key=lambda index: -len(task.rows[index].example.tokens))
    return order[group.rank :: group.size]


def _gathered(task: Task, group: Group, mine: dict[int, RowPrediction]) -> list[RowPrediction]:
    everything = {index: answer for part in group.gather(mine) for index, answer in part.items()}
    return [everything[index] for index in range(len(task.rows))]


def _answers(task: Task, rows: Sequence[TaskRow], asked: Asked, asking: Asking) -> list[RowPrediction]:
    keep_going = asked.group.any if asked.synchronised else keep_while_work_is_left
    if needs_generation(task.metric):
        return _generated(task, rows, asked, asking, keep_going)
    model, layout = asked.model, asked.layout
    if task.metric.metric == "choice":
        candidates = [row.choices for row in rows]
        ranked = choice_losses(model, candidates, layout=layout, keep_going=keep_going, asking=asking)
        return [_answer(task, row, task.choices[one.chosen]) for row, one in zip(rows, ranked, strict=True)]
    examples = [row.example for row in rows]
    losses = example_losses(model, examples, layout=layout, keep_going=keep_going, asking=asking)
    return [_likelihood(task, row, loss) for row, loss in zip(rows, losses, strict=True)]


def _generated(
    task: Task, rows: Sequence[TaskRow], asked: Asked, asking: Asking, keep_going: Callable[[bool], bool]
) -> list[RowPrediction]:
    # A model with an adapter forwards everything to the PreTrainedModel it wraps.
    token_lists = generate(
        cast("PreTrainedModel", asked.model),
        [row.prompt_tokens for row in rows],
        max_new_tokens=task.metric.max_new_tokens,
        stop_token_ids=asked.stop_token_ids,
        pad_token_id=asked.pad_token_id,
        keep_going=keep_going,
        asking=asking,
    )
    return grade_answers(task, rows, token_lists, asked)


def grade_answers(
    task: Task, rows: Sequence[TaskRow], token_lists: list[list[int]], asked: Asked
) -> list[RowPrediction]:
    """Return the graded answer to each row, from the tokens that the model wrote."""
    model = cast("PreTrainedModel", asked.model)
    texts = asked.tokenizer.batch_decode(token_lists, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    answers = []
    for row, tokens, text in zip(rows, token_lists, texts, strict=True):
        ended = len(tokens) < token_limit(model, len(row.prompt_tokens), task.metric.max_new_tokens)
        kept = keep_to(task.format.format, tokens, text, _decoder(asked)) if task.format else None
        answers.append(replace(_answer(task, row, text), ended=ended, kept=kept))
    return answers


def _decoder(asked: Asked) -> Callable[[Sequence[int]], str]:
    def decode(tokens: Sequence[int]) -> str:
        text = asked.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    return decode


def _answer(task: Task, row: TaskRow, text: str) -> RowPrediction:
    graded = grade_row(task, row, text)
    return _prediction(task, row, text, score=graded.score, correct=graded.correct)


def grade_row(task: Task, row: TaskRow, text: str) -> Graded:
    """Grade an answer to one row: against the expected one, or against the row's instructions."""
    if task.metric.metric != "instructions":
        return grade(task.metric, text, row.expected)
    correct = follows_all(row.instructions, text)
    return Graded(score=float(correct), correct=correct)


def _likelihood(task: Task, row: TaskRow, loss: ExampleLoss) -> RowPrediction:
    if not math.isfinite(loss.nll):
        raise RunError(
            f"The model's likelihood of row {row.row} of '{row.dataset}' is {loss.nll}: its weights or activations "
            "overflowed.",
            kind="nonfinite",
            given={"dataset": row.dataset, "row": row.row, "nll": str(loss.nll)},
            hint="Lower the learning rate, or use bf16 or fp32 instead of fp16.",
        )
    per_token = loss.nll / loss.num_labels
    match task.metric.metric:
        case "nll":
            score = per_token
        case "perplexity":
            score = math.exp(min(per_token, 709.0))
        case "bits_per_byte":
            score = loss.nll / math.log(2) / row.num_bytes
        case name:
            raise AssertionError(f"'{name}' is no likelihood metric")
    return _prediction(task, row, "", score=score, correct=None, loss=loss)


def _prediction(
    task: Task, row: TaskRow, text: str, *, score: float, correct: bool | None, loss: ExampleLoss | None = None
) -> RowPrediction:
    num_labels = int(row.example.is_label[1:].sum())
    return RowPrediction(
        task=task.name,
        row=row.row,
        prompt=row.prompt,
        expected=row.expected,
        prediction=text,
        score=score,
        correct=correct,
        nll=None if loss is None else loss.nll,
        num_labels=num_labels,
        num_bytes=row.num_bytes,
    )
