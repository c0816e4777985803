"""One Ray Train run for each trial, for what shares no base: full fine-tuning, ZeRO-3, several workers per trial.

A Tune function drives the run and follows its metrics.jsonl; reports through Ray Train are paced by a controller's
poll of seconds and are a barrier of all workers. The workers wait at each evaluation until Tune has heard of the one
before, so a stopped trial has trained no further than it has told: its checkpoints are those of its reports.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune

from ftray.artifacts import RunDirectory, digest_of, read_json, write_json
from ftray.campaign import Config, SweepDirectory, TrialDirectory
from ftray.errors import FtrayError, RunError
from ftray.evaluate.config import LOWER_IS_BETTER
from ftray.follow import Tail
from ftray.job import LoadedJob
from ftray.observe import log, spans
from ftray.sampling import Precision
from ftray.storage.mirror import Mirror, of_trial
from ftray.sweep.mode import require_trial_workers
from ftray.sweep.reaper import Clearing, ReapedTrainer, note_driver, note_group, remove_groups
from ftray.sweep.trial import TrialSpec
from ftray.sweep.trial_reports import TrialReports
from ftray.tracking import current_lines
from ftray.train.checkpoint import MANIFEST, folder_name, newest_whole
from ftray.train.cluster import Resources, fitting_workers, require_resources
from ftray.train.launch import launch, own_secrets, passed_on
from ftray.train.plan import Plan
from ftray.train.secrecy import Secrets
from ftray.work import WorkOrder, work_without_verdict

POLL_SECONDS = 0.1
TOLD = "told.json"
"""In a trial's folder: the step of the last evaluation that Tune has heard of, and the seconds until then."""
DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
"""A driver waits and holds no CPU; Tune refuses a trial that asks for nothing."""
CONTROLLER_POLL = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
"""Ray Train's controller sees this often whether its workers are done; each trial waits for it once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerTrial:
    """What the drivers of a campaign's trials need to know; crosses process borders."""

    sweep: SweepDirectory
    sweep_id: str
    loaded: LoadedJob
    spec_of: Callable[[Config], TrialSpec]
    data_digests: Mapping[str, str]
    """Of the rows that the campaign was checked with: workers that read others fail."""
    sampling_precision: Precision | None = None
    """As in WorkOrder."""
    passed: Mapping[str, str] = field(default_factory=passed_on)
    """Environment that workers get; taken where the command runs, for drivers have another."""
    secrets: Secrets = field(default_factory=own_secrets)
    """Of that environment what nobody may see."""
    parent: Mapping[str, str] = field(default_factory=spans.carrier)
    """Which span the trials belong to."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the objective is better."""
        return self.loaded.job.evaluate.task.metric not in LOWER_IS_BETTER

    @property
    def groups(self) -> Path:
        """Where drivers and workers note themselves for the reaper."""
        return self.sweep.root / ".placement-groups"

    def run_id(self, trial_id: str) -> str:
        """Return what a trial's checkpoints and trackers know it by."""
        return digest_of({"sweep": self.sweep_id, "trial": trial_id})

    def order(self, spec: TrialSpec) -> WorkOrder:
        """Return what the trial's workers do."""
        # Tune's stoppers end trials; what is told must be there to be kept.
        plan = replace(spec.plan, early_stopping=None, checkpoint_every=spec.plan.evaluate_every)
        return WorkOrder(
            loaded=replace(self.loaded, job=spec.job),
            plan=plan,
            run=self.sweep.trial(spec.trial_id).root,
            run_id=self.run_id(spec.trial_id),
            sampling_precision=self.sampling_precision,
        )


def fitting_trials(plan: Plan, nodes: Sequence[Resources], where: str = "the Ray cluster") -> int:
    """Return how many trials of this plan these nodes can hold at a time.

    Raises InputError `too_few_resources` where there is no room for one, `incompatible` for a plan without workers.
    """
    require_trial_workers(plan)
    require_resources(plan, nodes, where)
    return max(1, fitting_workers(plan, nodes) // plan.workers)


def make_trainable(campaign: PerTrial) -> Any:
    """Return the Tune function of a campaign; a trial's `config` is its configuration."""
    return tune.with_resources(tune.with_parameters(run_trial, campaign=campaign), DRIVER_RESOURCES)


def run_trial(config: dict[str, Any], *, campaign: PerTrial) -> None:
    """Train one configuration and report its evaluations to Tune; go on where an earlier driver was.

    What is wrong with the trial is reported as its reason: Tune does not try it again, and the others go on.
    """
    spec = campaign.spec_of(dict(config))
    trial = campaign.sweep.trial(spec.trial_id)
    RunDirectory(trial.root).create()
    mirror = campaign.loaded.place.mirror(trial.root)
    mirror.fetch(of_trial)
    write_json(trial.record, spec.to_record())
    mirror.publish(trial.record.name)
    tune_id = tune.get_context().get_trial_id()
    # An earlier driver of this trial was killed; its workers' places are needed.
    remove_groups(campaign.groups, tune_id)
    note_driver(campaign.groups, tune_id)
    os.environ.setdefault(*CONTROLLER_POLL)
    told, order = Told(trial, mirror), campaign.order(spec)
    reports = TrialReports(spec, higher_is_better=campaign.higher_is_better)
    end = order.plan.total_steps
    try:
        require_same_copies(campaign)
    except RunError as error:
        told.tell(reports.failed(error, seconds=told.seconds))
        return
    for line in evaluations_so_far(trial, order):
        # The last one is told when the workers have ended well.
        if line["step"] < end:
            told.tell(reports.evaluated(line, seconds=told.seconds))
    training = Training(
        order,
        # Its workers' spans belong to the campaign's; this process has none.
        passed={**campaign.passed, **campaign.parent},
        secrets=campaign.secrets,
        groups=campaign.groups,
        tune_id=tune_id,
    )
    training.start()
    for line in new_evaluations(trial, order, training, after=reports.step):
        if line["step"] < end:
            told.tell(reports.evaluated(line, seconds=told.seconds))
    last = next((line for line in evaluations_so_far(trial, order) if line["step"] == end), None)
    try:
        require_same_data(training.result(), campaign)
    except FtrayError as error:
        if last is not None:
            reports.evaluated(last, seconds=told.seconds)
        told.tell(reports.failed(error, seconds=told.seconds))
        return
    assert last is not None, "workers that have ended well have done their last evaluation"
    told.tell(reports.evaluated(last, seconds=told.seconds, finished=True))


def require_same_copies(campaign: PerTrial) -> None:
    """Raise RunError where this process has another working copy of the store than the command: neither would see."""
    here = campaign.loaded.place.here(campaign.sweep.root)
    if here != campaign.sweep.root:
        raise RunError(
            f"Ray's processes have the storage at {here}, the command at {campaign.sweep.root}",
            kind="node",
            given=str(here),
            allowed=str(campaign.sweep.root),
            hint="Give both the same FTRAY_CACHE, or name a shared folder: --storage DIR.",
        )


def evaluations_so_far(trial: TrialDirectory, order: WorkOrder) -> list[dict[str, Any]]:
    """Return the evaluations up to the checkpoint where the workers will go on."""
    newest, _ = newest_whole(trial.checkpoints, run_id=order.run_id)
    if newest is None:
        return []
    lines = current_lines(trial.metrics)
    return [line for line in lines if line["kind"] == "evaluation" and line["step"] <= newest.step]


def new_evaluations(
    trial: TrialDirectory, order: WorkOrder, training: Training, *, after: int
) -> Iterator[dict[str, Any]]:
    """Yield the evaluations after this step while the workers go on, each when its checkpoint is there."""
    tail = training.tail
    waiting: list[dict[str, Any]] = []
    while True:
        # Asked first: what was written before its end is read after it.
        has_ended = not training.is_alive()
        waiting += [line for line in tail.lines() if line["kind"] == "evaluation"]
        while waiting and (trial.checkpoints / folder_name(waiting[0]["step"]) / MANIFEST).exists():
            line = waiting.pop(0)
            # Workers that were replaced do some steps again.
            if line["step"] > after:
                after = line["step"]
                yield line
        if has_ended:
            return
        training.clearing.look()
        time.sleep(POLL_SECONDS)


class Training(threading.Thread):
    """The Ray Train run of a trial, beside the thread that reports: Tune ends a trial inside a report."""

    def __init__(
        self, order: WorkOrder, *, passed: Mapping[str, str], secrets: Secrets, groups: Path, tune_id: str
    ) -> None:
        super().__init__(daemon=True)
        self.tail = Tail(RunDirectory(order.run).metrics)
        self.clearing = Clearing(groups, tune_id)
        payload = {"order": order, "groups": groups, "tune_id": tune_id}
        self._launch = partial(
            launch,
            run_trial_worker,
            payload,
            plan=order.plan,
            run=order.run,
            place=order.loaded.place,
            passed=passed,
            secrets=secrets,
            trainer_class=ReapedTrainer,
        )
        self._outcome: dict[str, Any] | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._outcome = self._launch()
        except BaseException as error:
            # Whatever it is, it is raised where the result is asked for.
            self._error = error

    def result(self) -> dict[str, Any]:
        """Wait for the workers; return what rank 0 returned, or raise what ended them."""
        self.join()
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome


def require_same_data(outcome: dict[str, Any], campaign: PerTrial) -> None:
    """Raise RunError `data` when the workers read other rows than the campaign was checked with."""
    if outcome["data_digests"] != dict(campaign.data_digests):
        raise RunError(
            "the trial's workers read other data than the campaign was checked with: a file changed in between",
            kind="data",
            given=outcome["data_digests"],
            allowed=dict(campaign.data_digests),
            hint="Keep the data files as they are while a campaign goes on; then run the command again.",
        )


class Told:
    """What Tune has heard of a trial, noted for its workers and for the next driver."""

    def __init__(self, trial: TrialDirectory, mirror: Mirror) -> None:
        self._mirror = mirror
        self._file = trial.root / TOLD
        self._earlier = float(read_json(self._file)["seconds"]) if self._file.exists() else 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """The trial's seconds so far, those of earlier drivers up to their last report among them."""
        return self._earlier + time.monotonic() - self._started

    def tell(self, report: dict[str, Any]) -> None:
        """Report to Tune; ends this thread if Tune stops the trial, else the workers may go on."""
        tune.report(report)
        write_json(self._file, {"step": report["step"], "seconds": report["seconds"]})
        self._mirror.publish(TOLD)


def run_trial_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Entry of a trial's Ray Train worker."""
    order: WorkOrder = payload["order"]
    if ray.train.get_context().get_world_rank() == 0:
        note_group(payload["groups"], payload["tune_id"])
    log.bind(trial=order.run.name)
    return work_without_verdict(order, told=payload["told"], display=Pace(order.run / TOLD))


class Pace:
    """Holds rank 0, and so all workers, at the first line after an evaluation until Tune has heard of it.

    Not at the evaluation itself: its checkpoint is written after its line.
    """

    def __init__(self, told: Path) -> None:
        self._told = told
        self._evaluated = 0

    def __call__(self, line: dict[str, Any]) -> None:
        if line["step"] > self._evaluated:
            while self._told_step() < self._evaluated:
                time.sleep(POLL_SECONDS)
        if line["kind"] == "evaluation":
            self._evaluated = int(line["step"])

    def _told_step(self) -> int:
        return int(read_json(self._told)["step"]) if self._told.exists() else 0
