"""Base and tuned on the same rows of one task: values, intervals, paired counts, and what changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ftray.evaluate.graders import needs_generation
from ftray.evaluate.instructions import describe, follows
from ftray.evaluate.intervals import Estimate, FloatArray, finite, mcnemar, percentile_estimate, randomisation, resample
from ftray.evaluate.metrics import bits_per_byte, estimate, higher_is_better, is_share, statistics
from ftray.evaluate.predict import RowPrediction
from ftray.evaluate.tasks import Role, Task, TaskRow

Grading = Literal["right_or_wrong", "score", "likelihood"]
"""What one row's result is: right or wrong, a score between 0 and 1, or the likelihood of a given text."""
DEGRADED_SCORE = 0.1
"""A score that falls by more than this makes an item a degraded one."""
DEGRADED_LIKELIHOOD = 1.1
"""So do bits that grow by more than this factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedCounts:
    """On how many rows which model was right."""

    both: int
    only_base: int
    only_tuned: int
    neither: int

    def to_record(self) -> dict[str, int]:
        """Return the JSON form."""
        return {key: getattr(self, key) for key in ("both", "only_base", "only_tuned", "neither")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapse:
    """How varied the answers are; a model that says one thing to everything has a top share of 1."""

    distinct_share: float
    top_share: float
    entropy_bits: float

    def to_record(self) -> dict[str, float]:
        """Return the JSON form."""
        return {key: getattr(self, key) for key in ("distinct_share", "top_share", "entropy_bits")}


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedShares:
    """Shares of the answers that each model ended itself, before it was cut off at max_new_tokens."""

    base: float
    tuned: float

    def to_record(self) -> dict[str, float]:
        """Return the JSON form."""
        return {"base": self.base, "tuned": self.tuned}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskComparison:
    """One task of evaluation.json."""

    name: str
    role: Role
    metric: str
    higher_is_better: bool
    n: int
    base: Estimate
    tuned: Estimate
    difference: Estimate
    """tuned - base, with its paired interval."""
    paired: PairedCounts | None
    """Null unless every row is right or wrong."""
    p_value: float
    """Of the two models being equally good: exact McNemar where rows are right or wrong, else by randomisation."""
    bits_per_byte_change: float | None
    """tuned - base, where the metric is a likelihood of given text."""
    collapse: Collapse | None
    """Of the tuned model's answers; null where there are none."""
    grading: Grading
    degraded: int
    """Rows that the base got right and the tuned model gets wrong; of scores, those that fell by more than 0.1; of
    likelihoods, those whose bits per byte rose by more than a tenth."""
    ended: EndedShares | None
    """Null where nothing was generated."""
    resampled_harm: FloatArray = field(repr=False, compare=False)
    """[R] bootstrap values of `harm`."""

    @property
    def harm(self) -> float:
        """What fine-tuning cost here: the bits per byte gained, or the score lost; negative where it helped."""
        if self.bits_per_byte_change is not None:
            return self.bits_per_byte_change
        return self.base.value - self.tuned.value

    @property
    def improvement(self) -> float:
        """How much better the tuned model is, in the metric's unit; negative when it is worse."""
        return self.difference.value if self.higher_is_better else -self.difference.value

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "role": self.role,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "n": self.n,
            "base": self.base.to_record(),
            "tuned": self.tuned.to_record(),
            "difference": self.difference.to_record(),
            "paired": self.paired.to_record() if self.paired else None,
            "p_value": finite(self.p_value),
            "bits_per_byte_change": finite(self.bits_per_byte_change),
            "degraded": self.degraded,
            "ended": self.ended.to_record() if self.ended else None,
        }


def compare(task: Task, base: Sequence[RowPrediction], tuned: Sequence[RowPrediction]) -> TaskComparison:
    """Compare two models' predictions of all rows of `task`, in the task's order."""
    _check_same_rows(task, base, tuned)
    metric = task.metric
    of_base, of_tuned = statistics(metric, base), statistics(metric, tuned)
    resampled_base, resampled_tuned = resample([of_base, of_tuned])
    difference = percentile_estimate(of_tuned.value - of_base.value, resampled_tuned - resampled_base)
    all_graded = all(row.correct is not None for row in (*base, *tuned))
    paired = _paired(base, tuned) if all_graded else None
    if paired and is_share(metric, base):
        p_value = mcnemar(paired.only_base, paired.only_tuned)
    else:
        p_value = randomisation(of_base, of_tuned)
    change, harm = None, resampled_base - resampled_tuned
    if all(row.nll is not None for row in (*base, *tuned)):
        bits_base, bits_tuned = bits_per_byte(base), bits_per_byte(tuned)
        change = bits_tuned.value - bits_base.value
        resampled_bits_base, resampled_bits_tuned = resample([bits_base, bits_tuned])
        harm = resampled_bits_tuned - resampled_bits_base
    has_answers = needs_generation(metric) or metric.metric == "choice"
    grading: Grading = "right_or_wrong" if all_graded else "score" if change is None else "likelihood"
    return TaskComparison(
        name=task.name,
        role=task.role,
        metric=metric.metric,
        higher_is_better=higher_is_better(metric),
        n=len(task.rows),
        base=estimate(metric, base),
        tuned=estimate(metric, tuned),
        difference=difference,
        paired=paired,
        p_value=p_value,
        bits_per_byte_change=change,
        collapse=collapse([row.prediction for row in tuned]) if has_answers else None,
        grading=grading,
        degraded=sum(_is_degraded(grading, *pair) for pair in zip(base, tuned, strict=True)),
        ended=_ended(base, tuned),
        resampled_harm=harm,
    )


def _is_degraded(grading: Grading, before: RowPrediction, after: RowPrediction) -> bool:
    match grading:
        case "right_or_wrong":
            return before.correct is True and after.correct is False
        case "score":
            return before.score - after.score > DEGRADED_SCORE
        case "likelihood":
            # The text and so its bytes are the same.
            assert before.nll is not None
            assert after.nll is not None
            return after.nll > DEGRADED_LIKELIHOOD * before.nll


def _ended(base: Sequence[RowPrediction], tuned: Sequence[RowPrediction]) -> EndedShares | None:
    if any(row.ended is None for row in (*base, *tuned)):
        return None
    return EndedShares(
        base=sum(row.ended is True for row in base) / len(base),
        tuned=sum(row.ended is True for row in tuned) / len(tuned),
    )


def collapse(predictions: Sequence[str]) -> Collapse:
    """Measure how varied answers are: share of distinct ones, share of the commonest, Shannon entropy in bits."""
    counts = Counter(text.strip() for text in predictions)
    shares = [count / len(predictions) for count in counts.values()]
    return Collapse(
        distinct_share=len(counts) / len(predictions),
        top_share=max(shares),
        entropy_bits=sum(share * math.log2(1 / share) for share in shares),
    )


def predictions_lines(
    task: Task, base: Sequence[RowPrediction], tuned: Sequence[RowPrediction]
) -> list[dict[str, Any]]:
    """Return the task's lines of predictions.jsonl; of instructions also which ones were followed."""
    _check_same_rows(task, base, tuned)
    return [
        {
            "task": task.name,
            "row": row.row,
            "prompt": row.prompt,
            "expected": row.expected,
            "base": before.prediction,
            "tuned": after.prediction,
            "base_correct": before.correct,
            "tuned_correct": after.correct,
            "base_score": finite(before.score),
            "tuned_score": finite(after.score),
            "base_ended": before.ended,
            "tuned_ended": after.ended,
            **_followed(row, before, after),
        }
        for row, before, after in zip(task.rows, base, tuned, strict=True)
    ]


def _followed(row: TaskRow, before: RowPrediction, after: RowPrediction) -> dict[str, Any]:
    if not row.instructions:
        return {}
    return {
        "instructions": [describe(one) for one in row.instructions],
        "base_followed": [follows(one, before.prediction) for one in row.instructions],
        "tuned_followed": [follows(one, after.prediction) for one in row.instructions],
    }


def _paired(base: Sequence[RowPrediction], tuned: Sequence[RowPrediction]) -> PairedCounts:
    before = np.array([row.correct for row in base], dtype=bool)
    after = np.array([row.correct for row in tuned], dtype=bool)
    return PairedCounts(
        both=int((before & after).sum()),
        only_base=int((before & ~after).sum()),
        only_tuned=int((~before & after).sum()),
        neither=int((~before & ~after).sum()),
    )


def _check_same_rows(task: Task, base: Sequence[RowPrediction], tuned: Sequence[RowPrediction]) -> None:
    wanted = [row.row for row in task.rows]
    if [row.row for row in base] != wanted or [row.row for row in tuned] != wanted:
        raise AssertionError(f"base and tuned must answer the same rows of '{task.name}', in order")
