"""Everything about a campaign that is known before anything is started: what is wrong with it, and what it will do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ftray.artifacts import digest_of
from ftray.campaign import SweepDirectory
from ftray.estimate import measure_shape
from ftray.evaluate.config import LOWER_IS_BETTER
from ftray.evaluate.tasks import Task
from ftray.finish import FinalTasks
from ftray.job import LoadedJob, identity, run_directory, run_id_of
from ftray.preflight import Prepared, check, describe_machine, require_audit
from ftray.space import SchedulerName, SweepConfig
from ftray.sweep.comparison import Split
from ftray.sweep.configurations import Configurations
from ftray.sweep.mode import ModeName, choose_mode
from ftray.sweep.place import base_bytes
from ftray.sweep.prefixes import is_prefixable
from ftray.sweep.resolution import require_resolution
from ftray.sweep.space import Space, choose_scheduler, choose_searcher, resolve_space
from ftray.train.address import ray_address


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """A checked campaign."""

    sweep_id: str
    loaded: LoadedJob
    settings: SweepConfig
    directory: SweepDirectory
    prepared: Prepared
    validation: Task
    """The rows that trials are scored on."""
    final: FinalTasks
    configurations: Configurations
    num_trials: int
    searcher: str
    searcher_reason: str
    scheduler: SchedulerName
    scheduler_reason: str
    mode: ModeName
    mode_reason: str
    notes: list[str]

    @property
    def space(self) -> Space:
        return self.configurations.space

    @property
    def higher_is_better(self) -> bool:
        return self.loaded.job.evaluate.task.metric not in LOWER_IS_BETTER

    @property
    def split(self) -> Split:
        """Which rows the finalists are compared on."""
        return "test" if self.final.split == "test" else "validation"

    @property
    def family(self) -> int:
        """How many trials may differ in nothing but their length, and share their steps."""
        epochs = self.space.dimensions.get("epochs")
        return len(epochs) if isinstance(epochs, list) and is_prefixable(self.loaded.job) else 1

    def to_record(self) -> dict[str, Any]:
        """Return what is shown before the campaign starts."""
        return {
            "sweep_id": self.sweep_id,
            "name": self.loaded.job.name,
            "path": str(self.directory.root),
            "trials": self.num_trials,
            "space": {
                field: list(dimension) if isinstance(dimension, list) else dimension.model_dump(exclude_none=True)
                for field, dimension in self.space.dimensions.items()
            },
            "mode": self.mode,
            "mode_reason": self.mode_reason,
            "searcher": self.searcher,
            "searcher_reason": self.searcher_reason,
            "scheduler": self.scheduler,
            "scheduler_reason": self.scheduler_reason,
            "notes": self.notes,
        }


def own_accelerator_bytes() -> int | None:
    """Return the memory of this machine's GPU; None where there is none, or trainers run elsewhere."""
    import torch

    if ray_address() is not None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def sweep_id_of(loaded: LoadedJob) -> str:
    """Return the id of a job's campaign: a digest of what decides its trials.

    Where and how many at a time, the budget and the finalists are not in it: changing them goes on with the same one.
    """
    settings = loaded.job.sweep or SweepConfig()
    kept = ("space", "trials", "searcher", "scheduler", "seeds")
    return digest_of(
        {
            "run": identity(loaded),
            "sweep": {key: settings.model_dump(mode="json")[key] for key in kept},
            "preset": loaded.job.preset if settings.space is None else None,
            "objective": loaded.job.evaluate.task.model_dump(mode="json"),
        }
    )


def sweep_directory(loaded: LoadedJob, sweep_id: str) -> SweepDirectory:
    """Return the campaign's folder."""
    return SweepDirectory(loaded.storage / f"{loaded.job.name}-sweep-{sweep_id[:12]}")


def prepare_campaign(loaded: LoadedJob, *, sweep_id: str, forced: str | None) -> Campaign:
    """Check a campaign. Raises InputError for whatever is wrong with it; starts nothing."""
    # Before any data is read: a wrong space must not wait for it.
    resolve_space(loaded.job)
    run_id = run_id_of(loaded)
    prepared = check(loaded, run_id=run_id, run=run_directory(loaded, run_id))
    require_audit(prepared.audit)
    return plan_campaign(loaded, prepared, sweep_id=sweep_id, forced=forced)


def plan_campaign(loaded: LoadedJob, prepared: Prepared, *, sweep_id: str, forced: str | None = None) -> Campaign:
    """Decide what a campaign does, its job and data having been checked. Raises InputError for a wrong space."""
    from ftray.work import build_tasks

    job = loaded.job
    settings = job.sweep or SweepConfig()
    space = resolve_space(job)
    shape = measure_shape(job.model, job.method)
    mode, mode_reason = choose_mode(
        job,
        prepared.plan,
        forced=forced,
        base=base_bytes(shape.parameters, prepared.plan.precision),
        accelerator=own_accelerator_bytes(),
    )
    configurations = Configurations(
        loaded=loaded,
        space=space,
        data=prepared.plan.data,
        machine=describe_machine(loaded),
        max_length=prepared.datasets.max_length,
        trained_parameters=prepared.plan.trained_parameters,
    )
    configurations.require_feasible()
    searcher, searcher_reason = choose_searcher(settings, space)
    if searcher not in ("grid", "random", "optuna"):
        from ftray.sweep.search import require_searcher

        is_lower = job.evaluate.task.metric in LOWER_IS_BETTER
        require_searcher(searcher, space, seed=job.seed, mode="min" if is_lower else "max")
    num_trials = len(configurations.grid()) if searcher == "grid" else settings.trials
    scheduler, scheduler_reason = choose_scheduler(settings, num_trials)
    notes = [*prepared.datasets.notes]
    note = require_resolution(settings, len(prepared.datasets.validation))
    validation, final = build_tasks(job, prepared.datasets)
    if final.split != "test":
        notes.append(
            "There is no test split: the finalists are compared on the validation rows that chose them, which makes "
            "every difference look larger. The intervals account for it; data.test would be better."
        )
    return Campaign(
        sweep_id=sweep_id,
        loaded=loaded,
        settings=settings,
        directory=sweep_directory(loaded, sweep_id),
        prepared=prepared,
        validation=validation,
        final=final,
        configurations=configurations,
        num_trials=num_trials,
        searcher=searcher,
        searcher_reason=searcher_reason,
        scheduler=scheduler,
        scheduler_reason=scheduler_reason,
        mode=mode,
        mode_reason=mode_reason,
        notes=[*notes, *([note] if note else [])],
    )
