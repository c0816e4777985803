"""The part of a campaign that Ray Tune runs: searcher, scheduler, stoppers and ledger around a mode's trainable."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ray import tune
from ray.tune.stopper import CombinedStopper

from ftray.artifacts import now, read_json
from ftray.campaign import Config, Ledger, TrialResult
from ftray.errors import RunError
from ftray.sweep.callback import LedgerCallback, Watcher
from ftray.sweep.history import newest_kept, told
from ftray.sweep.mode import Mode
from ftray.sweep.prefixes import ordered
from ftray.sweep.prepare import Campaign
from ftray.sweep.rungs import grace_tokens, most_tokens
from ftray.sweep.schedulers import make_scheduler, replay
from ftray.sweep.search import Planned, make_searcher
from ftray.sweep.spent import Spent
from ftray.sweep.stoppers import EarlyStopper, NonFinite, budget_stopper
from ftray.sweep.trial import TrialSpec
from ftray.sweep.trial_files import fetch_trials
from ftray.sweep.tune_config import SEED

CLIENT_FAILURES = 3
"""How often a trial's client may die before the trial counts as failed."""


class Search:
    """The part of a campaign that Ray Tune runs."""

    def __init__(self, campaign: Campaign, mode: Mode, watchers: Sequence[Watcher], spent: Spent) -> None:
        self.campaign = campaign
        self.mode = mode
        self.watchers = watchers
        self.spent = spent
        self.ledger = Ledger(campaign.directory.ledger)
        self.deduplicated = 0
        self.startup_seconds = spent.now.wall - spent.before.wall
        plan = campaign.prepared.plan
        self._early = EarlyStopper(plan.early_stopping, higher_is_better=campaign.higher_is_better)
        self._nonfinite = NonFinite()
        self._budget = budget_stopper(campaign.settings.budget, spent)

    @property
    def is_out_of_budget(self) -> bool:
        """Whether the budget ended it before all of its trials had ended."""
        is_spent = self._budget is not None and self._budget.reason is not None
        return is_spent and len(self._ended()) < self.campaign.num_trials

    def run(self) -> None:
        """Run the trials that have not ended yet."""
        campaign, configurations = self.campaign, self.campaign.configurations
        ended = self._ended()
        left = campaign.num_trials - len(ended)
        if left <= 0:
            return
        default = configurations.default()
        unfinished = self._unfinished("search")
        specs = list(unfinished.values())
        specs += [default, *(configurations.grid() if campaign.searcher == "grid" else [])]
        points = {spec.trial_id: spec for spec in specs if spec.trial_id not in ended}
        mode: Literal["max", "min"] = "max" if campaign.higher_is_better else "min"
        searcher = make_searcher(
            campaign.searcher,
            campaign.space,
            points=[spec.config for spec in ordered(list(points.values()))],
            trials=campaign.num_trials,
            seed=campaign.loaded.job.seed,
            mode=mode,
            key_of=configurations.key,
            known=[(result.config, _value(result)) for result in ended.values()],
        )
        scheduler = make_scheduler(
            campaign.scheduler,
            max_tokens=most_tokens(campaign.prepared.plan, campaign.space.dimensions),
            grace_tokens=grace_tokens(campaign.prepared.plan, campaign.space.dimensions),
            mode=mode,
            default_trial_id=default.trial_id,
        )
        replay(scheduler, self._histories(ended))
        scheduler.approved = {trial_id: result["tokens"] for trial_id, result in self._newest(unfinished).items()}
        self._fit(searcher, scheduler, role="search")
        self.deduplicated = searcher.deduplicated

    def train_again(self, config: Config, seeds: Sequence[int]) -> list[TrialResult]:
        """Train a configuration with other seeds, to its end; return these trials."""
        configurations = self.campaign.configurations
        ids = {seed: configurations.spec(config, seed=seed).trial_id for seed in seeds}
        missing = [{**config, SEED: seed} for seed in seeds if ids[seed] not in self.ledger]
        if missing:
            planned = Planned(iter(missing), mode="max" if self.campaign.higher_is_better else "min")
            self._fit(planned, None, role="seed")
        return [result for result in self.ledger.results() if result.trial_id in ids.values()]

    def _fit(self, searcher: Any, scheduler: Any, *, role: Literal["search", "seed"]) -> None:
        def stops() -> dict[str, Any]:
            by_scheduler = getattr(scheduler, "reasons", {})
            return {
                **{trial_id: ("pruned", reason) for trial_id, reason in by_scheduler.items()},
                **(self._budget.reasons if self._budget else {}),
                **self._early.reasons,
                **self._nonfinite.reasons,
            }

        callback = LedgerCallback(
            configurations=self.campaign.configurations,
            higher_is_better=self.campaign.higher_is_better,
            ledger=self.ledger,
            directory=self.campaign.directory,
            mode=self.mode,
            watchers=self.watchers,
            stops=stops,
            spent=self.spent,
            out_of_budget=lambda: self._budget.reason if self._budget else None,
            role=role,
            newest=self._newest(self._unfinished(role)),
        )
        if self._budget is None or not self._budget.stop_all():
            self._run_tuner(searcher, scheduler, callback, role=role)
        if callback.lost:
            reason = next(iter(callback.lost.values()))
            raise RunError(
                f"{len(callback.lost)} trials were lost with their clients or trainers, again and again: {reason}",
                kind="node",
                given=sorted(callback.lost),
                hint="All other trials are in the ledger. The same command goes on with those that were lost.",
            )
        if self._budget is not None and self._budget.reason is not None:
            # Tune ends these without a word.
            for spec in self._unfinished(role).values():
                callback.cut(spec)

    def _run_tuner(self, searcher: Any, scheduler: Any, callback: LedgerCallback, *, role: str) -> None:
        folder = self.campaign.directory.root / "tune"
        tuner = tune.Tuner(
            self.mode.trainable(),
            tune_config=tune.TuneConfig(
                metric="best_validation_accuracy",
                mode="max" if self.campaign.higher_is_better else "min",
                search_alg=searcher,
                scheduler=scheduler,
                # The searcher says when there are enough.
                num_samples=-1,
                max_concurrent_trials=self.mode.concurrency,
                reuse_actors=self.campaign.mode == "shared",
            ),
            run_config=tune.RunConfig(
                name=f"{role}-{now().replace(':', '').replace('.', '')}",
                storage_path=str(folder),
                # The first that stops a trial says why: that its numbers ended comes before that it got nowhere.
                stop=CombinedStopper(*filter(None, (self._nonfinite, self._early, self._budget))),
                failure_config=tune.FailureConfig(max_failures=CLIENT_FAILURES),
                callbacks=[callback, *self.mode.callbacks()],
                verbose=0,
            ),
        )
        try:
            self.grid = tuner.fit()
        finally:
            # Tune's snapshots hold pickles; the ledger is what a campaign goes on from.
            shutil.rmtree(folder, ignore_errors=True)

    def _ended(self) -> dict[str, TrialResult]:
        """Return the trials of the search that have ended for good, by trial_id."""
        results = [result for result in self.ledger.results() if result.role == "search"]
        return {result.trial_id: result for result in results if result.trial_id in self.ledger}

    def _unfinished(self, role: Literal["search", "seed"]) -> dict[str, TrialSpec]:
        """Return the trials that have begun and not ended, by trial_id."""
        found = {}
        if self.campaign.mode == "shared":
            fetch_trials(self.campaign.loaded.place, self.campaign.directory)
        for path in sorted(self.campaign.directory.trials.glob("*/trial.json")):
            record = read_json(path)
            is_search = record["seed"] == self.campaign.loaded.job.seed
            if record["trial_id"] not in self.ledger and is_search == (role == "search"):
                spec = self.campaign.configurations.spec(record["config"], seed=record["seed"])
                found[spec.trial_id] = spec
        return found

    def _told(self, spec: TrialSpec) -> list[dict[str, Any]]:
        trial = self.campaign.directory.trial(spec.trial_id)
        return told(trial, spec, higher_is_better=self.campaign.higher_is_better)

    def _newest(self, specs: Mapping[str, TrialSpec]) -> dict[str, dict[str, Any]]:
        """Return what interrupted trials told last, of what can be gone on from."""
        directory = self.campaign.directory
        kept = {trial_id: newest_kept(directory.trial(trial_id), self._told(spec)) for trial_id, spec in specs.items()}
        return {trial_id: result for trial_id, result in kept.items() if result is not None}

    def _histories(self, ended: dict[str, TrialResult]) -> dict[str, list[dict[str, Any]]]:
        """Return what trials that have ended told, for a scheduler that has not heard it."""
        specs = {trial_id: self.campaign.configurations.spec(result.config) for trial_id, result in ended.items()}
        return {
            trial_id: [result for result in self._told(spec) if result["step"] <= ended[trial_id].steps]
            for trial_id, spec in specs.items()
        }


def _value(result: TrialResult) -> float:
    return result.best.validation_accuracy if result.best else math.nan
