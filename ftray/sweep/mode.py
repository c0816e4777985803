"""Who trains a campaign's trials: shared bases, or a Ray Train run for each. One seam, and which side a job takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from ftray.errors import InputError
from ftray.evaluate.predict import Answers
from ftray.job import Job
from ftray.train.plan import Plan

ModeName = Literal["shared", "trainers"]
BASE_SHARE = 0.8
"""Of a GPU's memory that a shared base may take: trials and their batches need the rest."""
BASE = ""
"""The base's name among those that are asked."""


class Mode(Protocol):
    """What a campaign needs of who trains its trials."""

    workers: int
    """Trainers, or trials at a time."""
    slots: int | None
    """Trials that share one base."""
    concurrency: int
    """Trials that Tune runs at a time."""

    def trainable(self) -> Any:
        """Return what Tune runs for a trial."""

    def callbacks(self) -> list[Any]:
        """Return Tune callbacks of its own."""

    def release(self, trial_id: str) -> None:
        """Free what a trial holds: it has ended. Nobody waits for it."""

    def settle(self) -> None:
        """Wait until everything that was released is free and writes no more."""

    def recall(self, trial_id: str) -> None:
        """Bring here what a trial that was released has left."""

    def export(self, trial_id: str, best_step: int) -> Path:
        """Keep the adapter or model of a trial's step as the trial's own; return its folder."""

    def answer(self, folders: Mapping[str, Path], which: Sequence[str], *, with_base: bool) -> dict[str, Answers]:
        """Return what the adapters or models in these folders answer to tasks; the base's name is `BASE`.

        `which`: of `validation`, `held_out` (the test rows, or the validation rows where there are none) and `general`
        (the probes).
        """

    def describe(self) -> dict[str, Any]:
        """Return what the record says of it."""

    def close(self) -> None:
        """End every process it started."""


def choose_mode(
    job: Job, plan: Plan, *, forced: str | None = None, base: int = 0, accelerator: int | None = None
) -> tuple[ModeName, str]:
    """Return who trains, and why. Raises InputError when shared bases are wanted and impossible.

    `base`: its bytes; `accelerator`: those of one GPU, where it is known.
    """
    sweep_mode = job.sweep.mode if job.sweep else "auto"
    wanted = forced or (sweep_mode if sweep_mode != "auto" else None)
    obstacle = _obstacle(job, plan, base=base, accelerator=accelerator)
    if wanted == "trainers" or (wanted is None and obstacle is not None):
        require_trial_workers(plan)
    if wanted == "trainers":
        return "trainers", "--force-mode says so" if forced else "the job says so (sweep.mode)"
    if wanted == "shared":
        if obstacle is not None:
            raise InputError(
                f"these trials cannot share a base: {obstacle}",
                kind="incompatible",
                given="shared",
                allowed="trainers",
                hint="Set sweep.mode: trainers, or remove it: auto takes what is possible.",
                path="sweep.mode",
            )
        return "shared", "--force-mode says so" if forced else "the job says so (sweep.mode)"
    if obstacle is not None:
        return "trainers", obstacle
    return "shared", "LoRA trials fit on one copy of the base"


def require_trial_workers(plan: Plan) -> None:
    """Raise InputError for trials without workers of their own."""
    if plan.workers == 0:
        raise InputError(
            "a trainer for each trial needs workers, and compute.workers is 0",
            kind="incompatible",
            given=0,
            allowed="1 or more",
            hint="Set compute.workers: 1. LoRA trials without workers share a base: sweep.mode: shared.",
            path="compute.workers",
        )


def _obstacle(job: Job, plan: Plan, *, base: int, accelerator: int | None) -> str | None:
    """Return why trials of this job cannot share a base, or None."""
    settings = job.compute.deepspeed
    if job.method.kind == "full":
        return "full fine-tuning changes the base itself"
    if plan.precision == "fp16":
        return "fp16 needs a loss scale for each training"
    if settings.stage == 3 or settings.offload_parameters != "none":
        return "the job shards its base (ZeRO-3), which then does not fit one accelerator"
    if accelerator is not None and base > BASE_SHARE * accelerator:
        return f"the base takes {base / 2**30:.1f} GiB, and a GPU has {accelerator / 2**30:.1f} GiB"
    return None
