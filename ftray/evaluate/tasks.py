"""A task: rows to answer and the metric that grades them, checked to fit each other before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ftray.data.conversations import Example
from ftray.data.tokenization import Tokenization, TokenizedExample
from ftray.errors import InputError
from ftray.evaluate.config import Metric
from ftray.evaluate.expected_format import ExpectedFormat
from ftray.evaluate.graders import check_metric, grade, json_leaves, needs_generation, normalise
from ftray.evaluate.instructions import COLUMN, Instruction, describe, read_instructions

if TYPE_CHECKING:
    from ftray.evaluate.lm_eval import LmEvalTask

Role = Literal["task", "format", "instruction", "general"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One question with its expected answer, or one text."""

    row: int
    dataset: str
    prompt: str
    """For display; empty for a text."""
    prompt_tokens: tuple[int, ...]
    """What generation starts from; empty unless the metric generates."""
    expected: str
    """The expected answer; in words what is asked of it where instructions are checked."""
    example: TokenizedExample
    num_bytes: int
    """UTF-8 bytes of the labelled text."""
    choices: tuple[TokenizedExample, ...] = ()
    """The prompt with each answer of `Task.choices`, labelled on the answer alone."""
    instructions: tuple[Instruction, ...] = ()
    """What the metric `instructions` checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Rows and how they are graded."""

    name: str
    role: Role
    metric: Metric
    rows: tuple[TaskRow, ...]
    choices: tuple[str, ...] = ()
    """The answers `choice` ranks, in the order that breaks ties."""
    format: ExpectedFormat | None = None
    """What the answers should look like, as far as that is known."""
    lm_eval: LmEvalTask | None = None
    """Where lm-eval asks and grades; None where this package does."""


def build_task(
    examples: Sequence[Example],
    *,
    name: str,
    role: Role,
    metric: Metric,
    tokenization: Tokenization,
    format: ExpectedFormat | None = None,
) -> Task:
    """Return the task, or raise InputError where metric and rows cannot fit.

    Kinds: unknown_metric, bad_metric, empty_probe, metric_mismatch, bad_instruction.
    """
    path = "evaluate.task" if role == "task" else f"evaluate.general.{name}"
    check_metric(metric, path=path)
    if not examples:
        raise InputError(
            f"The data of '{name}' has no rows to evaluate.",
            kind="empty_probe",
            given=0,
            allowed="at least one row",
            hint="Point it at a file with rows, or remove it from the job.",
            path=path,
        )
    mismatch = _Mismatch(metric=metric, name=name, path=path)
    mismatch.check_questions(examples)
    choices = _choices(examples, metric)
    candidates = _candidates(examples, choices, tokenization)
    rows = tuple(
        _row(example, encoded, metric, candidates[index * len(choices) : (index + 1) * len(choices)], tokenization)
        for index, (example, encoded) in enumerate(zip(examples, _encoded(examples, metric, tokenization), strict=True))
    )
    if metric.metric != "instructions":
        mismatch.check_answers(rows)
    if format is not None and format.declared:
        mismatch.check_format(rows, format)
    if metric.metric == "choice":
        mismatch.check_choices(rows, choices)
    if ":" in metric.metric:
        grade(metric, rows[0].expected, rows[0].expected)
    return Task(name=name, role=role, metric=metric, rows=rows, choices=choices, format=format)


def _choices(examples: Sequence[Example], metric: Metric) -> tuple[str, ...]:
    if metric.metric != "choice":
        return ()
    return tuple(metric.choices or sorted({example.answer_text for example in examples}))


def _encoded(examples: Sequence[Example], metric: Metric, tokenization: Tokenization) -> list[TokenizedExample]:
    """Return the tokens of every row; where instructions are checked, those of the prompt alone."""
    if metric.metric != "instructions":
        return _encode(examples, tokenization)
    prompts = [np.array(tokenization.encode_prompt(example), dtype=np.int32) for example in examples]
    for example, prompt in zip(examples, prompts, strict=True):
        if len(prompt) > tokenization.max_length:
            raise InputError(
                f"{example.dataset} row {example.row} asks in {len(prompt)} tokens, which do not fit the model",
                kind="overlong",
                given=len(prompt),
                allowed=f"at most {tokenization.max_length} tokens",
                hint="Shorten or remove the row, or raise data.max_length (up to the model's limit).",
            )
    return [
        TokenizedExample(
            tokens=prompt,
            is_label=np.zeros(len(prompt), dtype=np.bool_),
            prompt_length=len(prompt),
            dataset=example.dataset,
            row=example.row,
            digest=example.digest,
        )
        for example, prompt in zip(examples, prompts, strict=True)
    ]


def _encode(examples: Sequence[Example], tokenization: Tokenization) -> list[TokenizedExample]:
    return [
        # encode() raises the InputError that says why this row cannot be used.
        result if isinstance(result, TokenizedExample) else tokenization.encode(example)
        for example, result in zip(examples, tokenization.encode_batch(examples), strict=True)
    ]


def _candidates(
    examples: Sequence[Example], choices: Sequence[str], tokenization: Tokenization
) -> list[TokenizedExample]:
    """Return every example with every choice as its answer, labelled on that answer alone, row by row."""
    answered = [
        replace(
            example, messages=(*example.prompt_messages, replace(example.messages[-1], content=choice, tool_calls=()))
        )
        for example in examples
        for choice in choices
    ]
    return [
        # Earlier assistant turns are the same for every choice: they cost time and tell nothing.
        replace(encoded, is_label=encoded.is_label & (np.arange(len(encoded.tokens)) >= encoded.prompt_length))
        for encoded in _encode(answered, tokenization)
    ]


def _row(
    example: Example,
    encoded: TokenizedExample,
    metric: Metric,
    candidates: Sequence[TokenizedExample],
    tokenization: Tokenization,
) -> TaskRow:
    asks = example.text is None and needs_generation(metric)
    labelled = example.text or _decode(tokenization, encoded.tokens[encoded.is_label])
    instructions = _instructions(example, metric)
    asked = "; ".join(describe(instruction) for instruction in instructions)
    return TaskRow(
        row=example.row,
        dataset=example.dataset,
        prompt=example.prompt_text,
        prompt_tokens=tuple(encoded.tokens[: encoded.prompt_length].tolist()) if asks else (),
        expected=asked or _expected(example, encoded, tokenization),
        example=encoded,
        num_bytes=len(labelled.encode()),
        choices=tuple(candidates),
        instructions=instructions,
    )


def _instructions(example: Example, metric: Metric) -> tuple[Instruction, ...]:
    if metric.metric != "instructions":
        return ()
    if metric.instructions is not None:
        return tuple(metric.instructions)
    return read_instructions(example.columns.get(COLUMN), dataset=example.dataset, row=example.row)


def _expected(example: Example, encoded: TokenizedExample, tokenization: Tokenization) -> str:
    if example.text is not None:
        return example.text
    if not example.messages[-1].tool_calls:
        return example.answer_text
    # A tool call has no text but the one its template gives it, which is what the model has to write.
    answer = encoded.tokens[encoded.prompt_length :][encoded.is_label[encoded.prompt_length :]]
    return _decode(tokenization, answer).strip()


def _decode(tokenization: Tokenization, tokens: Any) -> str:
    text = tokenization.tokenizer.decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mismatch:
    """Words the InputErrors of one task."""

    metric: Metric
    name: str
    path: str

    def error(self, message: str, hint: str, *, row: int | None = None) -> InputError:
        where = "" if row is None else f" (row {row} of '{self.name}')"
        given = {"metric": self.metric.metric, "row": row}
        return InputError(message + where, kind="metric_mismatch", given=given, hint=hint, path=f"{self.path}.metric")

    def check_questions(self, examples: Sequence[Example]) -> None:
        """Raise unless a metric of answers has questions to answer."""
        if not (needs_generation(self.metric) or self.metric.metric == "choice"):
            return
        text = next((example for example in examples if example.text is not None), None)
        if text is not None:
            raise self.error(
                f"'{self.metric.metric}' grades answers, and this is plain text without a question",
                "Use bits_per_byte (or nll, perplexity) for texts, or give the source a prompt and a completion.",
                row=text.row,
            )

    def check_answers(self, rows: Sequence[TaskRow]) -> None:
        """Raise unless the expected answers are what the metric compares with."""
        empty = next((row.row for row in rows if row.num_bytes == 0), None)
        if empty is not None:
            raise self.error("there is no text to grade", "Remove the row.", row=empty)
        not_json = [row.row for row in rows if json_leaves(row.expected) is None]
        if self.metric.metric == "json_fields" and not_json:
            raise self.error(
                "'json_fields' compares JSON objects, and this expected answer is none",
                "Use exact_match or token_f1, or make every expected answer a JSON object or array.",
                row=not_json[0],
            )
        if self.metric.metric == "json_valid" and len(not_json) == len(rows):
            raise self.error(
                f"'json_valid' wants JSON answers, and no expected answer of '{self.name}' is a JSON object or array",
                "Use a metric for plain answers, such as exact_match.",
            )

    def check_format(self, rows: Sequence[TaskRow], format: ExpectedFormat) -> None:
        """Raise when not one expected answer is in the declared format: no model can be right and in it."""
        if not any(format.format.is_valid(row.expected) for row in rows):
            raise InputError(
                f"no expected answer of '{self.name}' is {format.format.describe()} (evaluate.format); row "
                f"{rows[0].row} is {rows[0].expected[:80]!r}",
                kind="metric_mismatch",
                given=rows[0].expected[:200],
                allowed=format.format.describe(),
                hint="Declare the format that the answers have, or correct the data.",
                path="evaluate.format",
            )

    def check_choices(self, rows: Sequence[TaskRow], choices: Sequence[str]) -> None:
        """Raise unless there is something to choose from, and the right answer always among it."""
        known = {normalise(choice, self.metric.normalise) for choice in choices}
        if len(known) < 2:
            raise self.error("'choice' needs at least two different answers", "List them in `choices`.")
        for row in rows:
            if normalise(row.expected, self.metric.normalise) not in known:
                raise self.error(
                    f"the expected answer '{row.expected}' is none of the choices",
                    "Add it to `choices`, or correct the row.",
                    row=row.row,
                )
