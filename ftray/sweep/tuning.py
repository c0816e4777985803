"""The part of a campaign that Ray Tune runs: searcher, scheduler, stoppers and ledger around a mode's trainable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from ray import tune
from ray.tune.stopper import CombinedStopper

from ftray.artifacts import now, read_json
from ftray.campaign import Config, Ledger, TrialResult
from ftray.sweep.callback import LedgerCallback, Watcher
from ftray.sweep.mode import Mode
from ftray.sweep.prefixes import ordered
from ftray.sweep.prepare import Campaign
from ftray.sweep.rungs import grace_tokens, most_tokens
from ftray.sweep.schedulers import make_scheduler, replay
from ftray.sweep.search import Planned, make_searcher
from ftray.sweep.spent import Spent
from ftray.sweep.stoppers import BudgetStopper, EarlyStopper, NonFinite
from ftray.sweep.tune_config import SEED
from ftray.tracking import current_lines

CLIENT_FAILURES = 3
"""How often a trial's client may die before the trial counts as failed."""


class Search:
    """The part of a campaign that Ray Tune runs."""

    def __init__(self, campaign: Campaign, mode: Mode, display: Watcher, spent: Spent) -> None:
        self.campaign = campaign
        self.mode = mode
        self.display = display
        self.spent = spent
        self.ledger = Ledger(campaign.directory.ledger)
        self.deduplicated = 0
        self.startup_seconds = spent.now.wall - spent.before.wall
        plan = campaign.prepared.plan
        self._early = EarlyStopper(plan.early_stopping, higher_is_better=campaign.higher_is_better)
        self._nonfinite = NonFinite()
        self._budget = _budget_stopper(campaign, mode, spent)

    @property
    def is_out_of_budget(self) -> bool:
        """Whether the budget ended it."""
        return self._budget is not None and self._budget.reason is not None

    def run(self) -> None:
        """Run the trials that have not ended yet."""
        campaign, configurations = self.campaign, self.campaign.configurations
        ended = {result.trial_id: result for result in self.ledger.results() if result.role == "search"}
        left = campaign.num_trials - len(ended)
        if left <= 0:
            return
        default = configurations.default()
        specs = [configurations.spec(config) for config in self._unfinished(ended)]
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
            ledger=self.ledger,
            directory=self.campaign.directory,
            mode=self.mode,
            watcher=self.display,
            stops=stops,
            spent=self.spent,
            out_of_budget=lambda: self._budget.reason if self._budget else None,
            role=role,
        )
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
                stop=CombinedStopper(*filter(None, (self._early, self._nonfinite, self._budget))),
                failure_config=tune.FailureConfig(max_failures=CLIENT_FAILURES),
                callbacks=[callback, *self.mode.callbacks()],
                verbose=0,
            ),
        )
        self.grid = tuner.fit()

    def _unfinished(self, ended: dict[str, TrialResult]) -> list[Config]:
        """Return the configurations of trials that an earlier attempt has begun and not ended."""
        found = []
        for path in sorted(self.campaign.directory.trials.glob("*/trial.json")):
            record = read_json(path)
            if record["trial_id"] not in ended and record["seed"] == self.campaign.loaded.job.seed:
                found.append(dict(record["config"]))
        return found

    def _histories(self, ended: dict[str, TrialResult]) -> dict[str, list[dict[str, Any]]]:
        """Return what trials that have ended told, for a scheduler that has not heard it."""
        return {
            trial_id: [
                line["result"]
                for line in current_lines(self.campaign.directory.trial(trial_id).metrics)
                if line["kind"] == "evaluation" and "result" in line
            ]
            for trial_id in ended
        }


def _value(result: TrialResult) -> float:
    return result.best.validation_accuracy if result.best else math.nan


def _budget_stopper(campaign: Campaign, mode: Mode, spent: Spent) -> BudgetStopper | None:
    budget = campaign.settings.budget
    if budget is None:
        return None
    now = spent.now
    return BudgetStopper(budget, workers=mode.workers, spent_before_seconds=now.wall if budget.hours else now.trainers)
