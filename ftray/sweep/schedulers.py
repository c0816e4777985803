"""Schedulers of Ray Tune that stop trials which fall behind, in tokens seen, and say why; the default is never stopped.

Only what an evaluation is worth counts: the best task metric so far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from ftray.space import SchedulerName
from ftray.sweep.trial import OBJECTIVE, RESULT_KEY

TIME = "tokens"
REDUCTION = 3
"""Of the trials that have come to a rung, one in so many goes on."""
FEWEST_OTHERS = 3
"""Trials without which there is no median."""
GRAIN = 2.0**-20
"""Values are compared to this: means of equal ones are then equal, too, and no trial is behind by rounding alone."""


def make_scheduler(
    name: SchedulerName, *, max_tokens: int, grace_tokens: int, mode: Literal["max", "min"], default_trial_id: str
) -> Sparing:
    """Return a scheduler that stops no trial before `grace_tokens`, nor the default, nor one that has finished.

    `max_tokens` is the longest trial's. asha: asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), one
    bracket, with rungs at grace_tokens times powers of 3. median: a trial whose best is worse than the median of the
    others' means (Golovin et al. 2017, Google Vizier).
    """
    grace = max(1, grace_tokens)
    if name == "asha":
        # A trial ends by its own last step, never because it came to max_t.
        inner: TrialScheduler = AsyncHyperBandScheduler(
            time_attr=TIME,
            metric=OBJECTIVE,
            mode=mode,
            max_t=max(grace, max_tokens) + 1,
            grace_period=grace,
            reduction_factor=REDUCTION,
            brackets=1,
            stop_last_trials=False,
        )
    elif name == "median":
        inner = MedianStoppingRule(
            time_attr=TIME,
            metric=OBJECTIVE,
            mode=mode,
            grace_period=grace,
            min_samples_required=FEWEST_OTHERS,
            # Never pause: a paused trial would have to be restored.
            min_time_slice=math.inf,  # type: ignore[arg-type]
            hard_stop=True,
        )
    else:
        inner = FIFOScheduler()
    return Sparing(inner, name=name, mode=mode, default_trial_id=default_trial_id)


class Sparing(TrialScheduler):
    """Ask another scheduler about every trial but the default, whose evaluations it only hears.

    `reasons` says of each trial that was stopped, by its trial_id, why.
    """

    def __init__(
        self, inner: TrialScheduler, *, name: SchedulerName, mode: Literal["max", "min"], default_trial_id: str
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._metric = OBJECTIVE
        self.inner = inner
        self.reasons: dict[str, str] = {}
        self._name, self._mode, self._default = name, mode, default_trial_id
        self._heard: dict[str, float] = {}  # Tune's trial id -> tokens of the newest evaluation
        self._best: dict[str, float] = {}  # trial_id -> best value
        self.approved: dict[str, float] = {}
        """By trial_id, tokens before which an interrupted trial has gone on already: nothing is decided anew."""

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return metric in (None, OBJECTIVE) and mode in (None, self._mode)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self.inner.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.inner.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not self._is_new(trial, result):
            return str(TrialScheduler.CONTINUE)
        ours = result[RESULT_KEY]
        # Warm-up says nothing of a trial, however long it is in tokens.
        warms_up = result.get("step", 0) < result.get("warmup_steps", 0)
        is_approved = result[TIME] < self.approved.get(ours, 0.0)
        if ours == self._default or result.get("finished") or warms_up or is_approved:
            self.hear(tune_controller, trial, result)
            return str(TrialScheduler.CONTINUE)
        decision = str(self.inner.on_trial_result(tune_controller, trial, _grained(result)))
        if decision == TrialScheduler.STOP:
            self.reasons[ours] = self._reason(result)
        return decision

    def hear(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Let the inner scheduler compare others with an evaluation, without a decision on its trial.

        Both rules take the result of a trial that is complete so; asha forgets the trial then, and is told it again.
        """
        self.inner.on_trial_complete(tune_controller, trial, _grained(result))
        self.inner.on_trial_add(tune_controller, trial)

    def _is_new(self, trial: Any, result: dict[str, Any]) -> bool:
        """Return whether this evaluation counts: a client that was restarted reports some twice."""
        tokens, value = float(result[TIME]), float(result[OBJECTIVE])
        is_new = tokens > self._heard.get(trial.trial_id, 0.0)
        if is_new:
            self._heard[trial.trial_id] = tokens
        if math.isfinite(value):
            self._best[result[RESULT_KEY]] = value
        return is_new and math.isfinite(value)

    def _reason(self, result: dict[str, Any]) -> str:
        others = [value for trial_id, value in self._best.items() if trial_id != result[RESULT_KEY]]
        best = max(others, default=math.nan) if self._mode == "max" else min(others, default=math.nan)
        what = "not among the best third of" if self._name == "asha" else "worse than the median of"
        return (
            f"{self._name}: {result[OBJECTIVE]:.4g} after {result[TIME]:,} tokens is {what} the trials that came as "
            f"far (best of the others so far: {best:.4g})"
        )

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        # What it was stopped at has been heard; what it finished at has not.
        if TIME in result and OBJECTIVE in result and self._is_new(trial, result):
            self.inner.on_trial_complete(tune_controller, trial, _grained(result))

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self.inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        return self.inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return str(self.inner.debug_string())

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: a campaign that goes on hears its finished trials again."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing: a campaign that goes on hears its finished trials again."""


def _grained(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, OBJECTIVE: round(result[OBJECTIVE] / GRAIN) * GRAIN}


@dataclass(frozen=True, slots=True)
class Replayed:
    """A trial of which its results are left: schedulers read its id alone, and use it as a key."""

    trial_id: str


def replay(scheduler: Sparing, histories: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Let a new scheduler hear the evaluations of trials that have ended, by trial_id, as they were reported.

    The rungs are then as they were: the order of the trials does not matter to them.
    """
    for trial_id, results in histories.items():
        trial = Replayed(f"replayed-{trial_id}")
        scheduler.on_trial_add(None, trial)
        for result in results:
            heard = {**result, RESULT_KEY: trial_id}
            if scheduler._is_new(trial, heard):
                scheduler.hear(None, trial, heard)
