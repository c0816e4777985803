"""What a campaign does while Tune decides: a trial that ends gets its line, its adapter is kept, its slot is freed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from ray import tune

from ftray.campaign import Config, Ledger, SweepDirectory, TrialResult
from ftray.sweep.configurations import Configurations
from ftray.sweep.ending import Stops, result_of, state_of
from ftray.sweep.mode import Mode
from ftray.sweep.spent import Spent
from ftray.sweep.trial import TrialSpec
from ftray.sweep.tune_config import spec_of_config


class Watcher(Protocol):
    """Who shows a campaign to people."""

    def on_result(self, trial_id: str, config: Config, result: dict[str, Any]) -> None:
        """Take an evaluation."""

    def on_end(self, trial: TrialResult) -> None:
        """Take a trial that has ended."""


class LedgerCallback(tune.Callback):
    """Writes the ledger from what Tune says."""

    def __init__(
        self,
        *,
        configurations: Configurations,
        ledger: Ledger,
        directory: SweepDirectory,
        mode: Mode,
        watcher: Watcher,
        stops: Callable[[], Stops],
        spent: Spent,
        earlier: Mapping[str, dict[str, Any]] | None = None,
        out_of_budget: Callable[[], str | None] = lambda: None,
        role: Literal["search", "seed"] = "search",
    ) -> None:
        """`earlier`: the last result of trials that an earlier attempt has begun."""
        self._earlier = earlier or {}
        self._configurations = configurations
        self._ledger = ledger
        self._directory = directory
        self._mode = mode
        self._watcher = watcher
        self._stops = stops
        self._spent = spent
        self._out_of_budget = out_of_budget
        self._role = role
        self._last: dict[str, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything behind: Tune copies its callbacks into a file that is never read."""
        return {}

    def _spec(self, trial: Any) -> TrialSpec:
        return spec_of_config(self._configurations, trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note what a trial told."""
        self._spent.write()
        if "trial_id" in result and "best_step" in result:
            told = dict(result)
            told["trial_id"] = self._spec(trial).trial_id
            self._last[told["trial_id"]] = told
            self._watcher.on_result(told["trial_id"], self._spec(trial).config, told)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the line of a trial that has come to its end or was stopped."""
        self._end(trial, error="")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the line of a trial whose client has failed for good."""
        text = str(getattr(trial, "get_error", lambda: None)() or "its client failed")
        self._end(trial, error=text.strip().splitlines()[-1])

    def _told(self, trial_id: str) -> dict[str, Any] | None:
        """Return the furthest result: a trial may end again before it has told again what it is worth."""
        last, earlier = self._last.get(trial_id), self._earlier.get(trial_id)
        if earlier is None or (last is not None and last["step"] >= earlier["step"]):
            return last
        why = {key: last[key] for key in ("failure", "nonfinite")} if last is not None else {}
        return {**earlier, **why}

    def _end(self, trial: Any, *, error: str) -> None:
        spec = self._spec(trial)
        last = self._told(spec.trial_id)
        state, reason = state_of(spec.trial_id, last, self._stops(), error=error, out_of_budget=self._out_of_budget())
        has_value = last is not None and last["best_step"] > 0
        # Its best checkpoint stays as it is: what a trial computes after its last result is never told, nor kept.
        adapter = self._mode.export(spec.trial_id, last["best_step"]) if last is not None and has_value else None
        result = result_of(spec, last, state, reason, adapter=adapter, role=self._role)
        self._ledger.append(result)
        self._mode.release(spec.trial_id)
        self._watcher.on_end(result)
