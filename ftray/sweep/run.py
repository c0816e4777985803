"""A campaign from its job to its winner: Ray Tune decides which trials there are and which go on, a mode trains them.

The same command again goes on: trials that have ended are in the ledger and are not run again, the others resume from
their last checkpoints. Tune's own snapshots are not read.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from ftray import __version__
from ftray.artifacts import digest_of, now, read_json, require_writable, run_lock, write_json
from ftray.campaign import Config, Ledger, SweepDirectory
from ftray.errors import InputError, Interrupted, RunError
from ftray.finetune import sample_replay
from ftray.job import LoadedJob, evaluate_digest
from ftray.model.base import identify
from ftray.observe import spans
from ftray.observe.measures import CampaignMeasures
from ftray.observe.ray_measures import RayInstruments
from ftray.preflight import require_registrable
from ftray.storage.mirror import DRIVER, is_record, of_campaign
from ftray.storage.place import Place
from ftray.sweep.callback import Watcher
from ftray.sweep.conclude import conclude, interrupted_record
from ftray.sweep.mode import Mode
from ftray.sweep.place import shortage
from ftray.sweep.prepare import Campaign, prepare_campaign, sweep_directory, sweep_id_of
from ftray.sweep.registering import register
from ftray.sweep.spent import Spent
from ftray.sweep.trial_files import fetch_trials, publish_trials
from ftray.sweep.tuning import Search
from ftray.tracking import require_trackers

TUNE_SETTINGS = {
    # Our ledger and metrics are the record; Tune's own files would be written per result.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # Ctrl-C is a KeyboardInterrupt here, as in every command.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Display(Watcher, Protocol):
    """Who shows a campaign to people."""

    def say(self, text: str) -> None:
        """Say what goes on."""

    def on_plan(self, plan: dict[str, Any]) -> None:
        """Take what is about to run."""


def sweep(loaded: LoadedJob, *, display: Display, forced: str | None = None) -> dict[str, Any]:
    """Run a campaign, or go on with it; return sweep.json.

    Raises InputError when nothing was started, RunError when no trial could be trained, Interrupted after its records
    are written.
    """
    with spans.root("sweep", job=loaded.job.name, smoke=loaded.smoke) as told:
        record = _sweep(loaded, display=display, forced=forced)
        told.set(sweep=record["sweep_id"][:12], status=record["status"], recommended=record["recommended"])
    return record


def _sweep(loaded: LoadedJob, *, display: Display, forced: str | None) -> dict[str, Any]:
    """Do what is left of a campaign; as `sweep` says."""
    began = time.monotonic()
    require_trackers(loaded.job.tracking)
    loaded.place.require()
    require_registrable(loaded)
    sweep_id = sweep_id_of(loaded)
    directory = sweep_directory(loaded, sweep_id)
    mirror = loaded.place.mirror(directory.root)
    mirror.fetch(is_record, as_reader=True)
    earlier = finished_record(directory, loaded)
    if earlier is not None:
        earlier = register(
            loaded, directory, earlier, lambda: prepare_campaign(loaded, sweep_id=sweep_id, forced=forced)
        )
        return {**earlier, "reused": True}
    display.say("Checking the job, its data, its model and its space")
    campaign = prepare_campaign(loaded, sweep_id=sweep_id, forced=forced)
    room = require_place_for(campaign, display.say)
    require_writable(directory.trials, hint="Choose another place with --storage DIR, or the job's `storage`.")
    with run_lock(directory.driver_lock), mirror.holding(DRIVER) as lease:
        # What another machine has come to since.
        mirror.fetch(is_record)
        if campaign.prepared.datasets.awaits_sampling:
            display.say("Sampling texts from the base to rehearse them")
            sample_replay(loaded, campaign.prepared, lambda done, total: None)
            campaign = prepare_campaign(loaded, sweep_id=sweep_id, forced=forced)
            # Nodes that nobody used meanwhile may have been given back.
            require_place_for(campaign, display.say, most=room)
        write_records(campaign)
        mirror.publish(directory.job.name, directory.audit.name)
        display.on_plan(campaign.to_record())
        with mirror.publishing(of_campaign, lease=lease):
            return run_campaign(campaign, display, began=began, tenure=lease.number if lease else None)


def require_place_for(campaign: Campaign, say: Callable[[str], None], *, most: int | None = None) -> int:
    """Refuse a campaign for whose workers there are no nodes; return for how many there are.

    As many as the job asks for are waited for, but no more than `most`; `say` is told of it.
    """
    from ftray.train.cluster import require_place

    plan, asked = campaign.prepared.plan, campaign.settings.workers
    trainers = 1 if asked == "auto" else min(asked, campaign.num_trials)
    if campaign.mode == "trainers":
        wanted = trainers * plan.workers
        room = require_place(plan, wanted=wanted if most is None else min(wanted, most), say=say)
        # It knows the nodes now.
        require_one_node(campaign.loaded.place)
        return room
    # What a shared base takes, whatever a worker of the job would.
    gpus = 1.0 if plan.engine == "deepspeed" and plan.gpus_per_worker > 0 else 0.0
    trainer = replace(plan, workers=1, min_workers=1, cpus_per_worker=1.0, gpus_per_worker=gpus)
    return require_place(trainer, wanted=trainers if most is None else min(trainers, most), say=say)


def finished_record(directory: SweepDirectory, loaded: LoadedJob) -> dict[str, Any] | None:
    """Return the record of a finished campaign that was judged as the job now says; else None."""
    if not directory.sweep.exists():
        return None
    record: dict[str, Any] = read_json(directory.sweep)
    # A budget can end a campaign before any trial has a value, too: it has failed then, and another one goes on.
    is_over = record["status"] == "completed" or (
        record["status"] in ("budget", "failed") and record["ends_digest"] == ends_digest(loaded)
    )
    if not is_over or record["judged_digest"] != judged_digest(loaded):
        return None
    return record if loaded.place.url is None else with_own_paths(record, directory)


def with_own_paths(record: dict[str, Any], directory: SweepDirectory) -> dict[str, Any]:
    """Return sweep.json with the paths of this machine's working copy, where another one wrote it."""

    def moved(one: dict[str, Any] | None) -> dict[str, Any] | None:
        if one is None or one["adapter"] is None:
            return one
        return {**one, "adapter": {**one["adapter"], "path": str(directory.trial(one["trial_id"]).adapter)}}

    return {
        **record,
        "path": str(directory.root),
        "default": moved(record["default"]),
        "winner": moved(record["winner"]),
        "finalists": [moved(one) for one in record["finalists"]],
    }


def require_one_node(place: Place) -> None:
    """Raise InputError where trials with trainers of their own would be on machines that share no folder."""
    from ftray.train.cluster import cluster_nodes, is_connected

    if place.url is None or not is_connected() or len(cluster_nodes()) == 1:
        return
    raise InputError(
        f"a trainer for each trial follows what its workers write, and the {len(cluster_nodes())} nodes of this "
        f"cluster share no folder: the storage is {place.url}",
        kind="incompatible",
        given=place.url,
        allowed="a folder that all nodes share; or trials that share a base (sweep.mode: shared); or one node",
        hint="Name a shared folder: --storage DIR; or search with LoRA, which shares a base.",
        path="storage",
    )


def judged_digest(loaded: LoadedJob) -> str:
    """Return the digest of what decides how a finished campaign is judged, beside its trials."""
    finalists = loaded.job.sweep.finalists if loaded.job.sweep else None
    return digest_of({"evaluate": evaluate_digest(loaded), "finalists": finalists})


def ends_digest(loaded: LoadedJob) -> str:
    """Return the digest of a campaign's budget: with another one it goes on."""
    budget = loaded.job.sweep.budget if loaded.job.sweep else None
    return digest_of(budget.model_dump() if budget else None)


def write_records(campaign: Campaign) -> None:
    """Write job.json and audit.json."""
    record = {
        "schema": "ftray/job/1",
        "ftray_version": __version__,
        "sweep_id": campaign.sweep_id,
        "smoke": campaign.loaded.smoke,
        "attempt_salt": campaign.loaded.attempt_salt,
        "base_folder": str(campaign.loaded.base),
        "job": campaign.loaded.job.model_dump(mode="json", exclude={"serve"}),
        "data_digests": campaign.prepared.datasets.digests,
        "campaign": campaign.to_record(),
        "model_digest": identify(campaign.loaded.job.model).digest,
    }
    write_json(campaign.directory.job, record)
    write_json(campaign.directory.audit, campaign.prepared.audit.to_record())


def run_campaign(campaign: Campaign, display: Display, *, began: float, tenure: int | None = None) -> dict[str, Any]:
    """Train, choose, compare; return sweep.json.

    `began`: the monotonic clock when the command did; `tenure`: of the command's lease on a campaign in a store.
    """
    from ftray.train.cluster import connect

    spent = Spent(campaign.directory.root / "spent.json", began=began)
    started_at = now()
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    display.say("Starting Ray and the trainers")
    started_here = connect()
    mode: Mode | None = None
    try:
        mode = open_mode(campaign, tenure=tenure)
        held = mode.workers // (campaign.prepared.plan.workers if campaign.mode == "trainers" else 1)
        if short := shortage(campaign.settings.workers, held=held, num_trials=campaign.num_trials):
            display.say(short)
        spent.start_trainers(mode.workers)
        watchers: list[Watcher] = [display, measures_of(campaign)]
        ledger = Ledger(campaign.directory.ledger)
        # What a budget ended and a larger one lets go on has not ended.
        ended = [result for result in ledger.results() if result.trial_id in ledger]
        for result, watcher in itertools.product(ended, watchers):
            watcher.remember(result)
        searched = Search(campaign, mode, watchers, spent)
        with spans.span("search", trials=campaign.num_trials, mode=campaign.mode, workers=mode.workers):
            searched.run()
        with spans.span("conclude"):
            record = conclude(
                campaign,
                mode,
                spent,
                ended_by_budget=searched.is_out_of_budget,
                deduplicated=searched.deduplicated,
                startup_seconds=searched.startup_seconds,
                again=searched.train_again,
                say=display.say,
                started_at=started_at,
            )
        record |= {"judged_digest": judged_digest(campaign.loaded), "ends_digest": ends_digest(campaign.loaded)}
    except KeyboardInterrupt as error:
        spent.write(at_once=True)
        write_json(
            campaign.directory.sweep,
            interrupted_record(campaign, spent, started_at=started_at, reason="Interrupted."),
        )
        raise Interrupted(
            f"interrupted; {campaign.directory.root} keeps its trials",
            kind="interrupted",
            hint="Run the same command again: it goes on with the trials that have not ended.",
        ) from error
    except RunError as error:
        record = interrupted_record(campaign, spent, started_at=started_at, reason=error.message)
        write_json(campaign.directory.sweep, record)
        raise
    finally:
        if mode is not None:
            mode.close()
        spent.stop_trainers()
        spent.write(at_once=True)
        if started_here:
            import ray

            ray.shutdown()
    write_json(campaign.directory.sweep, record)
    settle_trials = fetch_trials if campaign.mode == "shared" else publish_trials
    settle_trials(campaign.loaded.place, campaign.directory)
    write_report(campaign.directory)
    return register(campaign.loaded, campaign.directory, record, lambda: campaign)


def measures_of(campaign: Campaign) -> CampaignMeasures:
    """Return what tells the campaign as numbers, through the Ray there is."""
    job = campaign.loaded.job
    return CampaignMeasures(
        RayInstruments(),
        job=job.name,
        sweep_id=campaign.sweep_id,
        metric=job.evaluate.task.metric,
        total=campaign.num_trials,
    )


def write_report(directory: SweepDirectory) -> None:
    """Write report.html from the records."""
    from ftray.report.sweep_render import render_sweep

    render_sweep(directory)


def open_mode(campaign: Campaign, *, tenure: int | None = None) -> Mode:
    """Start whoever trains the trials. `tenure`: as in `run_campaign`."""
    if campaign.mode == "shared":
        from ftray.estimate import measure_shape
        from ftray.model.base import own_precision
        from ftray.sweep.place import base_bytes
        from ftray.sweep.shared import SharedBases
        from ftray.sweep.trainer import TrainerOrder

        job = campaign.loaded.job
        order = TrainerOrder(
            loaded=campaign.loaded,
            precision=campaign.prepared.plan.precision,
            slots=1,
            rank=largest_rank(campaign),
            data_digests=campaign.prepared.datasets.digests,
            base_record=campaign.directory.root / "base.json",
            folder=campaign.directory.trials,
            configurations=campaign.configurations,
            sampling_precision=own_precision(),
            tenure=tenure,
        )
        return SharedBases(
            order,
            campaign.settings,
            campaign.directory,
            num_trials=campaign.num_trials,
            base=base_bytes(measure_shape(job.model, job.method).parameters, campaign.prepared.plan.precision),
            first=first_configs(campaign),
            family=campaign.family,
            learns=campaign.scheduler != "none" or campaign.searcher not in ("grid", "random"),
        )
    from ftray.sweep.trainers import TrialTrainers

    return TrialTrainers(campaign)


def largest_rank(campaign: Campaign) -> int:
    """Return the largest rank that a trial can have."""
    ranks = campaign.space.dimensions.get("rank", [])
    swept = ranks if isinstance(ranks, list) else ranks.bounds
    return max(campaign.loaded.job.method.rank, *(int(rank) for rank in swept), 1)


def first_configs(campaign: Campaign, count: int = 32) -> list[Config]:
    """Return some configurations of the campaign, to be measured with."""
    from itertools import islice

    from ftray.sweep.space import Sample

    drawn = islice(Sample(campaign.space, seed=campaign.loaded.job.seed), count - 1)
    return [campaign.configurations.default().config, *drawn]
