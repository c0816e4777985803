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
from ftray.sweep.schedulers import make_scheduler, replay
from ftray.sweep.search import Planned, make_searcher
from ftray.sweep.spent import Spent
from ftray.sweep.stoppers import BudgetStopper, EarlyStopper, NonFinite
from ftray.sweep.trial import TrialSpec
from ftray.sweep.trial_reports import TrialReports, as_number
from ftray.sweep.tune_config import SEED
from ftray.tracking import current_lines
from ftray.train.checkpoint import MANIFEST, folder_name

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
        self._earlier: dict[str, dict[str, Any]] = {}

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
        unfinished = [configurations.spec(config) for config in self._unfinished(ended)]
        specs = [*unfinished, default, *(configurations.grid() if campaign.searcher == "grid" else [])]
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
            max_tokens=self._most_tokens(),
            grace_tokens=self._grace_tokens(),
            mode=mode,
            default_trial_id=default.trial_id,
        )
        histories = {trial_id: self._history(trial_id, result.config) for trial_id, result in ended.items()}
        replay(scheduler, histories)
        self._earlier = self._furthest(unfinished)
        scheduler.passed = {trial_id: float(result["tokens"]) for trial_id, result in self._earlier.items()}
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
            earlier=self._earlier,
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
                # The first that stops a trial says why: that its numbers ended comes before that it got nowhere.
                stop=CombinedStopper(*filter(None, (self._nonfinite, self._early, self._budget))),
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

    def _history(self, trial_id: str, config: Config) -> list[dict[str, Any]]:
        """Return what a trial told in earlier attempts, from its metrics.jsonl."""
        lines = current_lines(self.campaign.directory.trial(trial_id).metrics)
        evaluations = [line for line in lines if line["kind"] == "evaluation"]
        if self.campaign.mode == "shared":
            return [_with_losses(line["result"]) for line in evaluations if "result" in line]
        spec = self.campaign.configurations.spec(config)
        reports = TrialReports(spec, higher_is_better=self.campaign.higher_is_better)
        return [reports.evaluated(line, seconds=0.0) for line in evaluations]

    def _furthest(self, specs: Sequence[TrialSpec]) -> dict[str, dict[str, Any]]:
        """Return the last result of trials that an earlier attempt has begun, of which there is the best checkpoint."""
        found = {}
        for spec in specs:
            checkpoints = self.campaign.directory.trial(spec.trial_id).checkpoints
            for result in self._history(spec.trial_id, spec.config):
                if (checkpoints / folder_name(result["best_step"]) / MANIFEST).exists():
                    found[spec.trial_id] = result
        return found

    def _most_tokens(self) -> int:
        """Return more tokens than any trial can see: a trial that ends by its own length is not stopped."""
        plan = self.campaign.prepared.plan
        rows = max(1, plan.data.train_rows)
        epochs = self.campaign.space.dimensions.get("epochs", [])
        longest = max([plan.total_steps / plan.steps_per_epoch, *_numbers(epochs)])
        steps = _numbers(self.campaign.space.dimensions.get("max_steps", []))
        batches = _numbers(self.campaign.space.dimensions.get("batch_size", []))
        most_rows = max([longest * rows, *(step * max([plan.batch_size, *batches]) for step in steps)])
        return int(2 * most_rows * plan.data.train_tokens / rows) + 1

    def _grace_tokens(self) -> int:
        """Return the tokens before which no trial is stopped for falling behind: warm-up and one evaluation."""
        plan = self.campaign.prepared.plan
        per_step = plan.data.train_tokens / plan.steps_per_epoch
        shares = _numbers(self.campaign.space.dimensions.get("warmup", []))
        warmup = max(
            [plan.schedule.warmup_steps, *(one if one >= 1 else math.ceil(one * plan.total_steps) for one in shares)]
        )
        epochs = max([1.0, *_numbers(self.campaign.space.dimensions.get("epochs", []))])
        # A share of a longer training is more steps.
        warmup = warmup * max(1.0, epochs * plan.steps_per_epoch / plan.total_steps)
        return max(1, int(per_step * max(warmup, plan.evaluate_every)))


def _with_losses(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result of a record: a loss that was not a number is null there."""
    losses = {key: as_number(value) for key, value in result.items() if key.endswith("_loss")}
    return {**result, **losses}


def _value(result: TrialResult) -> float:
    return result.best.validation_accuracy if result.best else math.nan


def _budget_stopper(campaign: Campaign, mode: Mode, spent: Spent) -> BudgetStopper | None:
    budget = campaign.settings.budget
    if budget is None:
        return None
    now = spent.now
    return BudgetStopper(budget, workers=mode.workers, spent_before_seconds=now.wall if budget.hours else now.trainers)


def _numbers(dimension: Any) -> list[float]:
    values = dimension if isinstance(dimension, list) else dimension.bounds
    return [float(value) for value in values if not isinstance(value, bool) and isinstance(value, int | float)]
