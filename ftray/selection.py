"""Which checkpoint becomes the result: the one with the best held-out value, not the last, not the lowest loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftray.errors import RunError

SCHEMA = "ftray/selection/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A checkpoint with its numbers on the validation rows."""

    step: int
    value: float
    """The task metric."""
    loss: float
    """Validation loss, nats per label token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The chosen checkpoint, and why not the others."""

    step: int
    value: float
    last_value: float
    reason: str
    candidates: tuple[Candidate, ...]
    rejections: dict[int, str]
    """Why not, by step, for every other candidate."""

    def to_record(self, *, metric: str) -> dict[str, Any]:
        """Return the `ftray/selection/1` document; `metric` names the value."""
        return {
            "schema": SCHEMA,
            "split": "validation",
            "metric": metric,
            "step": self.step,
            "value": self.value,
            "last_value": _number(self.last_value),
            "reason": self.reason,
            "candidates": [
                {
                    "step": candidate.step,
                    "value": _number(candidate.value),
                    "loss": _number(candidate.loss),
                    "selected": candidate.step == self.step,
                    "reason": self.rejections.get(candidate.step, self.reason),
                }
                for candidate in self.candidates
            ],
        }


def select(candidates: Sequence[Candidate], *, higher_is_better: bool) -> Selection:
    """Choose the best value; among equals the lower validation loss; among those the earlier step.

    A value or loss that is not a number loses against every number. Raises RunError `nonfinite` without any value.
    """
    if not candidates or len({candidate.step for candidate in candidates}) < len(candidates):
        raise AssertionError("selection needs candidates, one per step")
    sign = -1 if higher_is_better else 1

    def rank(candidate: Candidate) -> tuple[float, float, int]:
        value, loss = sign * candidate.value, candidate.loss
        return (
            value if math.isfinite(value) else math.inf,
            loss if math.isfinite(loss) else math.inf,
            candidate.step,
        )

    ordered = tuple(sorted(candidates, key=lambda candidate: candidate.step))
    best = min(ordered, key=rank)
    if not math.isfinite(best.value):
        raise RunError(
            f"None of the {len(ordered)} checkpoints has a finite value on the validation rows.",
            kind="nonfinite",
            given=[candidate.step for candidate in ordered],
            hint="Lower the learning rate, or use bf16 or fp32 instead of fp16.",
        )
    rejections = {other.step: _rejection(other, best) for other in ordered if other is not best}
    return Selection(
        step=best.step,
        value=best.value,
        last_value=ordered[-1].value,
        reason=_reason(best, ordered, higher_is_better=higher_is_better),
        candidates=ordered,
        rejections=rejections,
    )


def _reason(best: Candidate, ordered: Sequence[Candidate], *, higher_is_better: bool) -> str:
    if len(ordered) == 1:
        return f"The only checkpoint ({best.value:.4g} on the validation rows)."
    which = "highest" if higher_is_better else "lowest"
    sentence = f"The {which} value on the validation rows, {best.value:.4g}, of {len(ordered)} checkpoints"
    equals = [other for other in ordered if other is not best and other.value == best.value]
    if not equals:
        return f"{sentence}."
    steps = ", ".join(str(other.step) for other in equals)
    tied_on_loss = any(other.loss == best.loss for other in equals)
    how = "the earliest of those with the lowest validation loss" if tied_on_loss else "the lowest validation loss"
    return f"{sentence}, shared with step {steps}; among these it has {how}, {best.loss:.4g}."


def _rejection(other: Candidate, best: Candidate) -> str:
    if not math.isfinite(other.value):
        return "Its value is not a number."
    if other.value != best.value:
        return f"Its value {other.value:.4g} is worse than {best.value:.4g}."
    if other.loss != best.loss:
        return f"The same value, and its validation loss {other.loss:.4g} is higher than {best.loss:.4g}."
    return "The same value and validation loss, at a later step."


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
