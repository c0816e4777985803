"""Stoppers of Ray Tune that record why: a trial that diverges or gets nowhere, one without numbers, a spent budget.

Trials are known by the trial_id in their results; an evaluation that is reported twice counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.stopper import Stopper

from ftray.campaign import State
from ftray.space import Budget
from ftray.sweep.spent import Spent
from ftray.sweep.trial import RESULT_KEY
from ftray.train.config import EarlyStopping
from ftray.train.early_stopping import EvaluationPoint, should_stop

SECONDS_PER_HOUR = 3600.0


class RecordingStopper(Stopper):
    """Stop no trial; `reasons` holds, by trial_id, how and why those were that a subclass stopped."""

    def __init__(self) -> None:
        self.reasons: dict[str, tuple[State, str]] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return False


class EarlyStopper(RecordingStopper):
    """Stop a trial as `ftray train` stops a run: by the same function of its evaluations so far."""

    def __init__(self, config: EarlyStopping | None, *, higher_is_better: bool) -> None:
        super().__init__()
        self._config, self._higher_is_better = config, higher_is_better
        self._histories: dict[str, list[EvaluationPoint]] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        ours = result[RESULT_KEY]
        if not self._add(ours, result):
            return ours in self.reasons
        # What has done its last step is complete, whatever its curve looks like.
        if self._config is None or result["finished"]:
            return False
        decision = should_stop(
            self._histories[ours],
            self._config,
            warmup_steps=result["warmup_steps"],
            higher_is_better=self._higher_is_better,
        )
        if decision.stop:
            diverged = decision.kind == "diverged"
            self.reasons[ours] = (
                ("diverged", decision.reason) if diverged else ("pruned", _no_progress(decision.reason))
            )
        return decision.stop

    def replay(self, histories: Mapping[str, Sequence[dict[str, Any]]]) -> None:
        """Take the evaluations that trials reported before they were interrupted, by trial_id; decide nothing."""
        for trial_id, results in histories.items():
            for result in results:
                self._add(trial_id, result)

    def _add(self, ours: str, result: dict[str, Any]) -> bool:
        history = self._histories.setdefault(ours, [])
        if history and history[-1].step >= result["step"]:
            return False
        loss, train_loss = _number(result["validation_loss"]), result["train_loss"]
        point = EvaluationPoint(
            step=result["step"],
            validation_loss=loss,
            # Steps of replay rows alone say nothing about the task: until there is another, nothing is apart.
            train_loss=loss if train_loss is None else float(train_loss),
            value=_number(result["validation_accuracy"]),
        )
        history.append(point)
        return True


def _no_progress(reason: str) -> str:
    return f"no progress: {reason[:1].lower()}{reason[1:]}"


def _number(value: float | None) -> float:
    """A number that was none is null where results were read from a file."""
    return math.nan if value is None else float(value)


class NonFinite(RecordingStopper):
    """Stop a trial whose loss or gradient is not a number."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if result["nonfinite"]:
            self.reasons[result[RESULT_KEY]] = ("diverged", str(result["nonfinite"]))
        return bool(result["nonfinite"])


class BudgetStopper(RecordingStopper):
    """End the campaign when its budget is spent; `reason` says so, for trials that have reported nothing yet, too.

    It does not see what schedulers and other stoppers end: a reason of theirs comes before its own.
    """

    def __init__(self, budget: Budget, *, spent_seconds: Callable[[], float]) -> None:
        """`spent_seconds`: of the budget so far, by all attempts; each trainer's in accelerator hours."""
        super().__init__()
        self._limit_seconds = (budget.hours or budget.accelerator_hours or 0.0) * SECONDS_PER_HOUR
        self._spent_seconds = spent_seconds
        self._running: set[str] = set()
        unit = "hours" if budget.hours else "accelerator-hours"
        self._spelled = f"the campaign's budget of {self._limit_seconds / SECONDS_PER_HOUR:g} {unit} is spent"
        self.reason: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        ours = result[RESULT_KEY]
        (self._running.discard if result["finished"] or result["nonfinite"] else self._running.add)(ours)
        return False

    def stop_all(self) -> bool:
        if self.reason is None and self._spent_seconds() >= self._limit_seconds:
            self.reason = self._spelled
            self.reasons = dict.fromkeys(self._running, ("budget", self._spelled))
        return self.reason is not None


def budget_stopper(budget: Budget | None, spent: Spent) -> BudgetStopper | None:
    """Return what ends a campaign when it has spent its budget; None without one."""
    if budget is None:
        return None
    by_clock = budget.hours is not None
    return BudgetStopper(budget, spent_seconds=lambda: spent.now.wall if by_clock else spent.now.trainers)
