"""Stop a training that goes wrong or nowhere: a pure function of its evaluations so far.

The best checkpoint is kept either way. While the task value still reaches new bests a run is never stopped: loss often
rises, as a model grows over-confident, while its answers still get better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ftray.train.config import EarlyStopping

PLATEAU = 3
"""So many times the patience without any improvement are a plateau."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPoint:
    """One evaluation on the validation rows."""

    step: int
    validation_loss: float
    train_loss: float
    """Moving average at this step."""
    value: float | None
    """The task metric; null when it is not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopDecision:
    """Stop or go on, and why."""

    stop: bool
    kind: Literal["diverged", "stalled"] | None
    reason: str


def should_stop(
    history: Sequence[EvaluationPoint], config: EarlyStopping, *, warmup_steps: int, higher_is_better: bool
) -> StopDecision:
    """Decide after an evaluation, looking at the last `patience` of those that count.

    Never before there are more than `patience`, and never when the window holds a new best value. Otherwise
    diverged: validation loss is above its best by more than `margin` each time, its distance to the training loss is
    larger than at its best each time, and larger at the end of the window than before it; or the newest loss is not a
    number. Stalled: above its best by more than `margin` each time without leaving the training loss behind, and not
    coming down; or neither a new best loss nor a new best value in `PLATEAU` times `patience` evaluations: a plateau
    in the middle of a schedule often ends when the learning rate falls.
    """
    counted = [point for point in history if config.after == "start" or point.step > warmup_steps]
    if counted and not math.isfinite(counted[-1].validation_loss):
        return StopDecision(
            stop=True, kind="diverged", reason=f"Validation loss at step {counted[-1].step} is not a number."
        )
    if len(counted) <= config.patience:
        return _go_on(f"{len(counted)} evaluations count so far; a decision needs {config.patience + 1}.")
    before, window = counted[: -config.patience], counted[-config.patience :]
    if _has_new_best_value(before, window, higher_is_better=higher_is_better):
        return _go_on("The task value reached a new best within the window.")
    best = min(counted, key=lambda point: point.validation_loss if math.isfinite(point.validation_loss) else math.inf)
    if _diverged(best, before[-1], window, margin=config.margin):
        return StopDecision(stop=True, kind="diverged", reason=_divergence(best, window, margin=config.margin))
    if best in window:
        return _go_on(f"Validation loss reached a new best, {best.validation_loss:.4g}, within the window.")
    if not _is_worse(best, window, margin=config.margin):
        return _plateau(counted, best, patience=PLATEAU * config.patience, higher_is_better=higher_is_better)
    if all(later.validation_loss < earlier.validation_loss for earlier, later in pairwise([before[-1], *window])):
        return _go_on("Validation loss is not at its best again, but falls at every evaluation.")
    return _stalled(best, window)


def _plateau(
    counted: Sequence[EvaluationPoint], best: EvaluationPoint, *, patience: int, higher_is_better: bool
) -> StopDecision:
    """Decide for a run that is about as good as it was, looking further back."""
    before, window = counted[:-patience], counted[-patience:]
    if not before or best in window or _has_new_best_value(before, window, higher_is_better=higher_is_better):
        return _go_on(f"No improvement lately; a plateau stops a run after {patience} evaluations without any.")
    return _stalled(best, window)


def _stalled(best: EvaluationPoint, window: Sequence[EvaluationPoint]) -> StopDecision:
    reason = (
        f"Neither validation loss (best {best.validation_loss:.4g} at step {best.step}) nor the task value improved "
        f"in the last {len(window)} evaluations, up to step {window[-1].step}."
    )
    return StopDecision(stop=True, kind="stalled", reason=reason)


def _go_on(reason: str) -> StopDecision:
    return StopDecision(stop=False, kind=None, reason=reason)


def _has_new_best_value(
    before: Sequence[EvaluationPoint], window: Sequence[EvaluationPoint], *, higher_is_better: bool
) -> bool:
    sign = 1 if higher_is_better else -1
    known = [sign * point.value for point in before if point.value is not None and math.isfinite(point.value)]
    new = [sign * point.value for point in window if point.value is not None and math.isfinite(point.value)]
    return bool(new) and (not known or max(new) > max(known))


def _diverged(
    best: EvaluationPoint, previous: EvaluationPoint, window: Sequence[EvaluationPoint], *, margin: float
) -> bool:
    is_worse = _is_worse(best, window, margin=margin)
    is_apart = all(_gap(point) > _gap(best) for point in window)
    return is_worse and is_apart and _gap(window[-1]) > _gap(previous)


def _is_worse(best: EvaluationPoint, window: Sequence[EvaluationPoint], *, margin: float) -> bool:
    return all(not point.validation_loss <= best.validation_loss * (1 + margin) for point in window)


def _gap(point: EvaluationPoint) -> float:
    return point.validation_loss - point.train_loss


def _divergence(best: EvaluationPoint, window: Sequence[EvaluationPoint], *, margin: float) -> str:
    last = window[-1]
    rise = last.validation_loss / best.validation_loss - 1 if best.validation_loss > 0 else math.inf
    return (
        f"Validation loss {last.validation_loss:.4g} at step {last.step} is {rise:.1%} above its best, "
        f"{best.validation_loss:.4g} at step {best.step}, and more than {margin:.1%} above it for {len(window)} "
        f"evaluations, while training loss went from {best.train_loss:.4g} to {last.train_loss:.4g}."
    )
