"""The format a task's answers are expected to have, and how far one generated answer keeps to it.

Declared in the job it counts in the verdict; inferred from the training answers it is only looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ftray.data.answer_format import PATH, AnswerFormat, declared_format, infer_format
from ftray.errors import InputError
from ftray.evaluate.config import EvaluateConfig
from ftray.evaluate.graders import needs_generation

INFERRED_FROM = 5000
"""Training answers that are looked at, spread over all, to infer a format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedFormat:
    """A format, and whether the job says so."""

    format: AnswerFormat
    declared: bool

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"kind": self.format.kind, "declared": self.declared, "description": self.format.describe()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How far one generated answer keeps to the format."""

    num_tokens: int
    valid_tokens: int
    """The longest beginning, in tokens, that some valid answer begins with."""
    valid: bool
    """To its end."""


def expected_format(config: EvaluateConfig, training_answers: Sequence[str]) -> ExpectedFormat | None:
    """Return the format declared for the task's answers, else the one inferred, else None.

    Raises InputError `metric_mismatch` for a declared format where the metric generates nothing, and what
    `declared_format` raises.
    """
    declared = declared_format(config.format, training_answers)
    generates = needs_generation(config.task)
    if declared is not None and not generates:
        raise InputError(
            f"{PATH} says what answers look like, and the metric '{config.task.metric}' lets the model write none",
            kind="metric_mismatch",
            given={"metric": config.task.metric, "format": declared.describe()},
            allowed="a metric of generated answers, such as exact_match",
            hint=f"Remove {PATH}, or change evaluate.task.metric.",
            path=PATH,
        )
    if declared is not None:
        return ExpectedFormat(format=declared, declared=True)
    inferred = infer_format(training_answers[:: 1 + len(training_answers) // INFERRED_FROM]) if generates else None
    return ExpectedFormat(format=inferred, declared=False) if inferred else None


def keep_to(format: AnswerFormat, tokens: Sequence[int], text: str, decode: Callable[[Sequence[int]], str]) -> Kept:
    """Return how far the answer of these tokens, decoded to `text`, keeps to the format.

    A beginning of a valid beginning is valid, so that the place is found by halving, not token by token.
    """
    valid_length = format.valid_length(text)
    low, high = 0, len(tokens) + 1
    while valid_length < len(text) and high - low > 1:
        middle = (low + high) // 2
        # The bytes of a character that is still to be completed decode to U+FFFD: it is not there yet.
        if len(decode(tokens[:middle]).rstrip("\N{REPLACEMENT CHARACTER}")) <= valid_length:
            low = middle
        else:
            high = middle
    valid_tokens = len(tokens) if valid_length == len(text) else low
    return Kept(num_tokens=len(tokens), valid_tokens=valid_tokens, valid=format.is_valid(text))
