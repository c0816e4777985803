"""How a trial ended, from the last thing it told and from who stopped it: its line of the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ftray.campaign import Config, Point, State, TrialResult
from ftray.sweep.trial import TrialSpec

Stops = Mapping[str, tuple[State, str]]
"""Trials that a stopper or the scheduler has stopped, by trial_id: the state and the reason."""


def state_of(
    trial_id: str, last: Mapping[str, Any] | None, stops: Stops, *, error: str = "", out_of_budget: str | None = None
) -> tuple[State, str]:
    """Return a trial's state and the reason.

    `last`: its last result; `error`: what its client died of; `out_of_budget`: why the whole campaign has ended.
    """
    if last is not None and last.get("failure"):
        return "failed", str(last["failure"])
    if error:
        return "failed", error
    if trial_id in stops:
        return stops[trial_id]
    if last is not None and last.get("finished"):
        return "completed", "its last step"
    if out_of_budget is not None:
        return "budget", out_of_budget
    return "failed", "it ended without saying why"


def result_of(
    spec: TrialSpec,
    last: Mapping[str, Any] | None,
    state: State,
    reason: str,
    *,
    adapter: Path | None,
    role: Literal["search", "seed"] = "search",
) -> TrialResult:
    """Return a trial's line of the ledger."""
    has_value = last is not None and last["best_step"] > 0
    best = last_point = None
    if last is not None and has_value:
        best = Point(
            step=last["best_step"],
            validation_accuracy=last["best_validation_accuracy"],
            validation_loss=last["best_validation_loss"],
        )
        last_point = Point(
            step=last["step"],
            validation_accuracy=last["validation_accuracy"],
            validation_loss=last["validation_loss"],
        )
    config: Config = dict(spec.config)
    return TrialResult(
        trial_id=spec.trial_id,
        config=config,
        seed=spec.seed,
        state=state,
        reason=reason,
        # One that was stopped is the beginning of the other, too, but not all of what it asked for.
        prefix_of=last.get("prefix_of") if last is not None and state == "completed" else None,
        steps=int(last["step"]) if last is not None else 0,
        epochs=float(last["epoch"]) if last is not None else 0.0,
        best=best,
        last=last_point,
        seconds=float(last["seconds"]) if last is not None else 0.0,
        tokens=int(last["tokens"]) if last is not None and has_value else 0,
        adapter=str(adapter) if adapter is not None else None,
        is_default=spec.is_default,
        role=role,
        extra={"validation": dict(last["best_estimate"])} if has_value and last and last.get("best_estimate") else {},
    )
