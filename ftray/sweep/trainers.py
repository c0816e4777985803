"""The mode `trainers`: a Ray Train run for each trial, as many at a time as the cluster holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ftray.evaluate.predict import Answers
from ftray.model.base import own_precision
from ftray.sweep.best import export_best
from ftray.sweep.folders import evaluate_base, evaluate_folders
from ftray.sweep.mode import BASE
from ftray.sweep.per_trial import PerTrial, fitting_trials, make_trainable
from ftray.sweep.prepare import Campaign
from ftray.sweep.reaper import Reaper
from ftray.sweep.tune_config import spec_of_config
from ftray.train.cluster import cluster_nodes


class TrialTrainers:
    """A trainer for each trial. The comparisons at the end run in this process, one model after the other."""

    def __init__(self, campaign: Campaign) -> None:
        """Find out how many trials fit. Raises InputError `too_few_resources` where not one does."""
        self._campaign = campaign
        plan = campaign.prepared.plan
        fitting = fitting_trials(plan, cluster_nodes())
        wanted = campaign.settings.workers
        at_a_time = min(campaign.num_trials, fitting if wanted == "auto" else min(wanted, fitting))
        self.workers = at_a_time * plan.workers
        self.slots: int | None = None
        self.concurrency = at_a_time
        self._trials = PerTrial(
            sweep=campaign.directory,
            sweep_id=campaign.sweep_id,
            loaded=campaign.loaded,
            spec_of=partial(spec_of_config, campaign.configurations),
            data_digests=campaign.prepared.datasets.digests,
            sampling_precision=own_precision(),
        )
        self._reaper = Reaper(self._trials.groups)

    def trainable(self) -> Any:
        """Return the Tune function that drives a trial's Ray Train run."""
        return make_trainable(self._trials)

    def callbacks(self) -> list[Any]:
        """Return the reaper of what stopped trials leave."""
        return [self._reaper]

    def release(self, trial_id: str) -> None:
        """Do nothing: the reaper gives the workers back."""

    def settle(self) -> None:
        """Give back what stopped trials hold."""
        self._reaper.reap()

    def recall(self, trial_id: str) -> None:
        """Do nothing: trials are trained where all of them can be read."""

    def export(self, trial_id: str, best_step: int) -> Path:
        """Keep the model of a trial's best checkpoint."""
        trial = self._campaign.directory.trial(trial_id)
        job = self._campaign.loaded.job
        best = export_best(
            trial, job=job, run_id=self._trials.run_id(trial_id), higher_is_better=self._campaign.higher_is_better
        )
        assert best is not None, "a trial with a value has its checkpoint"
        self._campaign.loaded.place.mirror(trial.root).publish(trial.adapter.name)
        return trial.adapter

    def answer(self, folders: Mapping[str, Path], which: Sequence[str], *, with_base: bool) -> dict[str, Answers]:
        """Let one model after the other answer."""
        campaign = self._campaign
        held_out, *general = [task for task in campaign.final.tasks if task.lm_eval is None]
        kinds = {"validation": [campaign.validation], "held_out": [held_out], "general": general}
        tasks = [task for kind in which for task in kinds[kind]]
        job, plan = campaign.loaded.job, campaign.prepared.plan
        shared: dict[str, Any] = {
            "model": job.model,
            "precision": plan.precision,
            "are_adapters": job.method.kind == "lora",
            "tokenization": campaign.prepared.datasets.tokenization,
        }
        answers = evaluate_folders(folders, tasks, **shared)
        return answers | ({BASE: evaluate_base(tasks, **shared)} if with_base else {})

    def describe(self) -> dict[str, Any]:
        """Return nothing that the trials' own records do not say."""
        return {}

    def close(self) -> None:
        """Give back what trials still hold."""
        self._reaper.reap()
