"""What a campaign does while Tune decides: a trial that ends gets its line, its adapter is kept, its slot is freed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from ray import tune

from ftray.campaign import Config, Ledger, SweepDirectory, TrialResult
from ftray.observe import spans
from ftray.sweep.configurations import Configurations
from ftray.sweep.ending import Stops, result_of, state_of
from ftray.sweep.history import newest_kept, told
from ftray.sweep.mode import Mode
from ftray.sweep.spent import Spent
from ftray.sweep.trial import TrialSpec
from ftray.sweep.tune_config import spec_of_config


class Watcher(Protocol):
    """Who shows a campaign to people."""

    def remember(self, trial: TrialResult) -> None:
        """Take a trial that had ended before the command began."""

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
        higher_is_better: bool,
        ledger: Ledger,
        directory: SweepDirectory,
        mode: Mode,
        watchers: Sequence[Watcher],
        stops: Callable[[], Stops],
        spent: Spent,
        out_of_budget: Callable[[], str | None] = lambda: None,
        role: Literal["search", "seed"] = "search",
        newest: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        """`newest`: what trials told last before they were interrupted, by trial_id."""
        self._configurations = configurations
        self._higher_is_better = higher_is_better
        self._ledger = ledger
        self._directory = directory
        self._mode = mode
        self._watchers = watchers
        self._stops = stops
        self._spent = spent
        self._out_of_budget = out_of_budget
        self._role = role
        self._last: dict[str, dict[str, Any]] = dict(newest or {})
        self.lost: dict[str, str] = {}
        """Why the clients of trials were lost, by trial_id."""

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
            ours = self._spec(trial).trial_id
            heard = {**result, "trial_id": ours}
            # A new client hears everything again, of which the older checkpoints are gone.
            last = self._last.get(ours, heard)
            if heard["step"] >= last["step"]:
                self._last[ours] = heard
            elif heard["failure"] or heard["nonfinite"]:
                self._last[ours] = {**last, "failure": heard["failure"], "nonfinite": heard["nonfinite"]}
            for watcher in self._watchers:
                watcher.on_result(ours, self._spec(trial).config, heard)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the line of a trial that has come to its end or was stopped."""
        self._write(self._spec(trial), error="")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the line of a trial that has failed and said so; one whose client or trainer was lost has not ended."""
        text = str(getattr(trial, "get_error", lambda: None)() or "its client failed").strip().splitlines()[-1]
        spec = self._spec(trial)
        if self._last.get(spec.trial_id, {}).get("failure"):
            self._write(spec, error=text)
            return
        # That says nothing of the trial: the next command goes on with it.
        self.lost[spec.trial_id] = text
        self._mode.release(spec.trial_id)

    def cut(self, spec: TrialSpec) -> None:
        """Write the line of a trial that the campaign's end has stopped; one without a value has not ended."""
        self._stop(spec)
        if self._last.get(spec.trial_id, {}).get("best_step"):
            self._write(spec, error="")

    def _stop(self, spec: TrialSpec) -> None:
        """Stop a trial that may be computing, and take what it has come to since it was last heard of."""
        self._mode.release(spec.trial_id)
        self._mode.settle()
        self._mode.recall(spec.trial_id)
        trial = self._directory.trial(spec.trial_id)
        newest = newest_kept(trial, told(trial, spec, higher_is_better=self._higher_is_better))
        if newest is not None:
            self._last[spec.trial_id] = newest

    def _write(self, spec: TrialSpec, *, error: str) -> None:
        last = self._last.get(spec.trial_id)
        state, reason = state_of(spec.trial_id, last, self._stops(), error=error, out_of_budget=self._out_of_budget())
        has_value = last is not None and last["best_step"] > 0
        # Its best checkpoint stays as it is: what a trial computes after its last result is never told, nor kept.
        adapter = self._mode.export(spec.trial_id, last["best_step"]) if last is not None and has_value else None
        result = result_of(spec, last, state, reason, adapter=adapter, role=self._role)
        self._ledger.append(result)
        self._mode.release(spec.trial_id)
        spans.past(
            "trial",
            result.seconds,
            trial=result.trial_id,
            state=result.state,
            steps=result.steps,
            value=result.best.validation_accuracy if result.best else None,
        )
        for watcher in self._watchers:
            watcher.on_end(result)
