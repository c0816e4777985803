"""How both models answer, right or wrong: whether they end, keep to the format, vary, and copy from training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftray.evaluate.outputs import MEMORISED_WORDS
from ftray.report import wording
from ftray.report.records import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersRow:
    """One thing that answers do, for each model as text."""

    what: str
    base: str
    tuned: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersView:
    """The section."""

    rows: tuple[AnswersRow, ...]
    format: str
    """What the format is and who says so; empty without one."""
    validity: str
    """How far the answers keep to it, in a sentence; empty without a curve."""


def answers_view(records: Records) -> AnswersView | None:
    """Return how both models answer; None where nothing was generated."""
    evaluation = records.evaluation
    if evaluation is None:
        return None
    rows = (*_ended(evaluation["tasks"]), *_in_format(evaluation["tasks"]), *_variety(evaluation))
    format = evaluation.get("format")
    if not rows and not format:
        return None
    return AnswersView(
        rows=rows,
        format=_format(format) if format else "",
        validity=_validity(evaluation.get("prefix_validity"), evaluation.get("prefix_validity_base")),
    )


def is_flat(validity: Sequence[float] | None) -> bool:
    """Return whether every answer keeps to the format at every token, so that a curve shows nothing."""
    return bool(validity) and all(share == 1 for share in validity or ())


def _ended(tasks: Sequence[Mapping[str, Any]]) -> Iterator[AnswersRow]:
    for task in tasks:
        # The format task grades the very answers of the task.
        if (ended := task.get("ended")) and task["role"] != "format":
            of = "" if task["role"] == "task" else f" on {task['name']}"
            yield AnswersRow(
                what=f"Answers that end by themselves{of}",
                base=_percent(ended["base"]),
                tuned=_percent(ended["tuned"]),
                note="the others were cut off at max_new_tokens",
            )


def _in_format(tasks: Sequence[Mapping[str, Any]]) -> Iterator[AnswersRow]:
    for task in tasks:
        if task["role"] == "format":
            yield AnswersRow(
                what="Answers in the declared format to their end",
                base=_percent(task["base"]["value"]),
                tuned=_percent(task["tuned"]["value"]),
                note=f"{wording.p_value(task['p_value'])} on {task['n']:,} rows; significantly fewer is no ship",
            )


def _variety(evaluation: Mapping[str, Any]) -> Iterator[AnswersRow]:
    if collapse := evaluation["collapse"]:
        variety = f"{wording.plain(collapse['entropy_bits'])} bits of entropy"
        yield AnswersRow(
            what="Distinct answers", base=wording.MISSING, tuned=_percent(collapse["distinct_share"]), note=variety
        )
        yield AnswersRow(
            what="Share of the most frequent answer",
            base=wording.MISSING,
            tuned=_percent(collapse["top_share"]),
            note="100% is one answer to everything",
        )
    if evaluation.get("memorised_share") is not None:
        yield AnswersRow(
            what="Answers that hold a whole training answer",
            base=wording.MISSING,
            tuned=_percent(evaluation["memorised_share"]),
            note=f"of {MEMORISED_WORDS} words or more, and not the expected one",
        )


def _format(format: Mapping[str, Any]) -> str:
    if format["declared"]:
        return f"The job declares what an answer is: {format['description']}."
    return f"No format is declared; the training answers have one in common: {format['description']}."


def _validity(tuned: Sequence[float] | None, base: Sequence[float] | None) -> str:
    if not tuned:
        return ""
    if not is_flat(tuned):
        return (
            f"{_percent(tuned[0])} of the tuned answers are the beginning of a valid answer at their first token, "
            f"{_percent(tuned[-1])} still are after {len(tuned)} tokens."
        )
    beside = f" (of the base's answers {_percent(base[-1])} do)" if base else ""
    return f"Every tuned answer keeps to it at every token{beside}, so there is no curve to draw."


def _percent(share: float | None) -> str:
    return wording.value(share, "")
