"""What answers look like beside their grades: how far they keep to a format, how many are copied from training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ftray.evaluate.config import Metric
from ftray.evaluate.expected_format import ExpectedFormat
from ftray.evaluate.graders import needs_generation
from ftray.evaluate.predict import RowPrediction
from ftray.evaluate.tasks import Task

FORMAT_TASK = "format"
FORMAT_METRIC = "format_valid"
MEMORISED_WORDS = 8
"""A training answer of fewer words may stand in an answer by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Findings about all answers to the task."""

    format: ExpectedFormat | None = None
    prefix_validity: tuple[float, ...] | None = None
    """Of the tuned model: the share of answers whose first 1, 2, ... tokens begin a valid answer."""
    prefix_validity_base: tuple[float, ...] | None = None
    memorised_share: float | None = None

    def to_record(self) -> dict[str, Any]:
        """Return their keys of evaluation.json."""
        curves = {"prefix_validity": self.prefix_validity, "prefix_validity_base": self.prefix_validity_base}
        return {
            "format": self.format.to_record() if self.format else None,
            **{name: None if curve is None else list(curve) for name, curve in curves.items()},
            "memorised_share": self.memorised_share,
        }


def inspect_outputs(
    task: Task, base: Sequence[RowPrediction], tuned: Sequence[RowPrediction], training_answers: Sequence[str]
) -> Outputs:
    """Look at both models' answers to the task's rows."""
    return Outputs(
        format=task.format,
        prefix_validity=prefix_validity(tuned),
        prefix_validity_base=prefix_validity(base),
        memorised_share=memorised_share(tuned, training_answers) if needs_generation(task.metric) else None,
    )


def format_task(task: Task) -> Task | None:
    """Return the task that asks whether the answers to `task` are in its declared format; None without one."""
    if task.format is None or not task.format.declared:
        return None
    return replace(task, name=FORMAT_TASK, role="format", metric=Metric(metric=FORMAT_METRIC), format=None)


def format_predictions(rows: Sequence[RowPrediction]) -> list[RowPrediction]:
    """Return the answers already given, graded by whether they are in the format to their end."""
    graded = []
    for row in rows:
        assert row.kept is not None
        valid = row.kept.valid
        graded.append(replace(row, task=FORMAT_TASK, score=float(valid), correct=valid))
    return graded


def prefix_validity(rows: Sequence[RowPrediction]) -> tuple[float, ...] | None:
    """Return the share of answers whose first k tokens are the beginning of a valid answer, for k = 1 to the longest.

    An answer that the model ended counts from its last token on as what it is: valid or not. One that was cut off at
    max_new_tokens stays what it was there. None without a format, and where nothing was written.
    """
    kept = [(row.kept, row.ended) for row in rows if row.kept is not None]
    longest = max((one.num_tokens for one, _ in kept), default=0)
    if not kept or longest == 0:
        return None
    # changes[k]: how many answers stop being valid at their k-th token.
    changes = [0] * (longest + 2)
    for one, ended in kept:
        if one.valid_tokens < one.num_tokens:
            changes[one.valid_tokens + 1] += 1
        elif ended and not one.valid:
            changes[max(1, one.num_tokens)] += 1
    shares, left = [], len(kept)
    for lost in changes[1 : longest + 1]:
        left -= lost
        shares.append(left / len(kept))
    return tuple(shares)


def memorised_share(rows: Sequence[RowPrediction], training_answers: Sequence[str]) -> float | None:
    """Return the share of answers that hold a whole training answer of 8 words or more, other than the expected one.

    Compared word by word, without case. None when no training answer is that long.
    """
    given = [_words(row.prediction) for row in rows]
    starts: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for index, words in enumerate(given):
        for place in range(len(words) - MEMORISED_WORDS + 1):
            starts[tuple(words[place : place + MEMORISED_WORDS])].append((index, place))
    expected = [f" {' '.join(_words(row.expected))} " for row in rows]
    memorised: set[int] = set()
    has_long = False
    for answer in training_answers:
        words = _words(answer)
        if len(words) < MEMORISED_WORDS:
            continue
        has_long = True
        for index, place in starts.get(tuple(words[:MEMORISED_WORDS]), ()):
            is_whole = given[index][place : place + len(words)] == words
            if is_whole and f" {' '.join(words)} " not in expected[index]:
                memorised.add(index)
    return len(memorised) / len(rows) if has_long else None


def _words(text: str) -> list[str]:
    return text.casefold().split()
