"""Whether the tuned model should be shipped: a pure decision with its reasons.

A model is shipped when it beats its base on rows that chose nothing, by more than noise, and kept what it could do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ftray.evaluate.compare import TaskComparison
from ftray.evaluate.config import LOWER_IS_BETTER
from ftray.evaluate.forgetting import Forgetting
from ftray.evaluate.intervals import Estimate

SIGNIFICANCE = 0.05
Split = Literal["test", "validation"]
Decision = Literal["ship", "do_not_ship", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Ship or not, and why."""

    decision: Decision
    reasons: tuple[str, ...]

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"decision": self.decision, "reasons": list(self.reasons)}


def decide(
    task: TaskComparison,
    forgetting: Forgetting | None,
    *,
    split: Split,
    beside: Sequence[TaskComparison] = (),
) -> Verdict:
    """Return the verdict on the tuned model.

    `ship`: on the test split better than the base with p <= 0.05, and forgetting within its limits (or not measured,
    which the reasons then say). `do_not_ship`: significantly worse than the base, at the task or at what is asked
    `beside` it (format, instructions), or too much forgotten. `inconclusive`: no test split, or no difference beyond
    noise. What stands beside the task is several questions: their p-values are held against Holm's steps (Holm 1979,
    Scandinavian Journal of Statistics 6:65-70), so that chance refuses no more often for being asked more.
    """
    worse = _worse_by_holm(beside)
    asked = [_sentence_beside(one, is_worse=one.name in worse) for one in beside]
    remembered = (
        forgetting.reasons
        if forgetting
        else ("Forgetting was not measured: the job names no general probes (evaluate.general).",)
    )
    others = (*asked, *remembered)
    reasons = (_comparison_sentence(task, split), *others)
    if split == "validation":
        biased = (
            "There is no test split: these rows also chose the checkpoint, so the tuned value is biased upwards. "
            "Add data.test for a verdict."
        )
        return Verdict(decision="inconclusive", reasons=(biased, *reasons))
    if forgetting is not None and not forgetting.passed:
        return Verdict(decision="do_not_ship", reasons=reasons)
    if worse or (task.p_value <= SIGNIFICANCE and task.improvement < 0):
        return Verdict(decision="do_not_ship", reasons=reasons)
    if task.p_value <= SIGNIFICANCE and task.improvement > 0:
        return Verdict(decision="ship", reasons=reasons)
    noise = f"That difference is not distinguishable from noise on {task.n} rows; more test rows may settle it."
    return Verdict(decision="inconclusive", reasons=(reasons[0], noise, *others))


def _worse_by_holm(comparisons: Sequence[TaskComparison]) -> set[str]:
    """Return the names of the comparisons that got significantly worse, all of them taken together."""
    worse = set()
    ranked = sorted(comparisons, key=lambda one: one.p_value)
    for rank, comparison in enumerate(ranked):
        if comparison.p_value > SIGNIFICANCE / (len(ranked) - rank):
            break
        if comparison.improvement < 0:
            worse.add(comparison.name)
    return worse


def _sentence_beside(one: TaskComparison, *, is_worse: bool) -> str:
    """Say how many answers are in the format, or follow their instructions, and whether that got worse."""
    what = "keep the format to their end" if one.role == "format" else f"follow all instructions of '{one.name}'"
    direction = "more than" if one.improvement > 0 else "fewer than" if one.improvement < 0 else "as many as"
    judged = f"{'significantly ' if is_worse else ''}{direction} the base's"
    return (
        f"Of {one.n} answers {_shown(one.metric, one.tuned)} {what}, {judged} {_shown(one.metric, one.base)} "
        f"({_p_value(one)})."
    )


def _comparison_sentence(task: TaskComparison, split: Split) -> str:
    better = "better than" if task.improvement > 0 else "worse than" if task.improvement < 0 else "equal to"
    return (
        f"On {task.n} {split} rows the tuned model's {task.metric} is {_shown(task.metric, task.tuned)}, "
        f"{better} the base's {_shown(task.metric, task.base)} ({_p_value(task)})."
    )


def _p_value(comparison: TaskComparison) -> str:
    return "p < 0.001" if comparison.p_value < 0.001 else f"p = {comparison.p_value:.2g}"


def _shown(metric: str, estimate: Estimate) -> str:
    form = ".3f" if metric in LOWER_IS_BETTER else ".1%"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"
