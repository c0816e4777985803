"""A tiny base with a task, and the trials of a campaign over it, for the tests of `sweep`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ftray.artifacts import RunDirectory, digest_of
from ftray.job import LoadedJob, load_job, run_directory, run_id_of
from ftray.model.bank import Bank
from ftray.model.base import load_model
from ftray.model.forward import layout_for
from ftray.preflight import Prepared, check
from ftray.quickstart.pretrain import tiny_base
from ftray.quickstart.task import write_task
from ftray.sweep.slots import Rows, SharedBase
from ftray.sweep.trial import TrialSpec
from ftray.sweep.trial_run import TrialRun
from ftray.work import build_tasks

OPEN: list[SharedBase] = []
"""Shared bases that a test has opened; `close_all` lets their trials go."""
PROMPT = "Which intent is this? {text}"
JOB: dict[str, Any] = {
    "name": "tiny",
    "model": "base",
    "data": {
        "train": {"path": "train.jsonl", "prompt": PROMPT, "completion": "{intent}", "limit": 96},
        "validation": 0.25,
        "test": {"path": "test.jsonl", "prompt": PROMPT, "completion": "{intent}", "limit": 24},
    },
    "method": {"rank": 4, "alpha": 8},
    "train": {"learning_rate": 2e-3, "epochs": 2, "batch_size": 8, "log_every": 1, "evaluate_every": 4},
    "evaluate": {"task": {"max_new_tokens": 4}},
    "compute": {"workers": 0},
    "tracking": [],
    "storage": "runs",
}  # fmt: skip


def write_world(folder: Path) -> Path:
    """Make the base, the rows and a job file; return the job file."""
    tiny_base(folder / "base", seed=0)
    write_task(folder, seed=0)
    return write_job(folder, "job.yaml")


def write_job(folder: Path, name: str, **sections: Any) -> Path:
    """Write the world's job with other sections."""
    file = folder / name
    file.write_text(yaml.safe_dump({**JOB, **sections}))
    return file


@dataclass(frozen=True)
class Campaign:
    """A checked job, and what makes trials of it."""

    file: Path
    sets: tuple[str, ...]
    prepared: Prepared

    def load(self, *more: str) -> LoadedJob:
        return load_job(self.file, sets=(*self.sets, *more))

    def spec(self, *sets: str, seed: int = 0) -> TrialSpec:
        """Return the trial of the job with these settings."""
        loaded = self.load(*sets)
        run_id = run_id_of(loaded)
        prepared = check(loaded, run_id=run_id, run=run_directory(loaded, run_id))
        return TrialSpec(
            trial_id=digest_of([list(sets), seed])[:12], config=dict(one.split("=") for one in sets), seed=seed,
            job=loaded.job, plan=prepared.plan,
        )  # fmt: skip

    def base(self, *, slots: int, rank: int = 16) -> SharedBase:
        """Return a fresh shared base of this job."""
        job = self.load().job
        model = load_model(job.model, precision="fp32")
        base = SharedBase(
            Bank(model, slots=slots, rank=rank), rows_of(self), precision="fp32", base_name=job.model,
            layout=layout_for(model),
        )  # fmt: skip
        OPEN.append(base)
        return base


def rows_of(campaign: Campaign) -> Rows:
    job, datasets = campaign.load().job, campaign.prepared.datasets
    validation, _ = build_tasks(job, datasets)
    return Rows(
        train=datasets.train,
        validation=validation,
        tokenizer=datasets.tokenization.tokenizer,
        stop_token_ids=datasets.tokenization.stop_token_ids,
        metric_digest=digest_of(job.evaluate.task.model_dump()),
    )


def open_campaign(file: Path, *sets: str) -> Campaign:
    loaded = load_job(file, sets=sets)
    run_id = run_id_of(loaded)
    return Campaign(file, sets, check(loaded, run_id=run_id, run=run_directory(loaded, run_id)))


def close_all() -> None:
    """Let the trials of all bases go, and with them their locks."""
    while OPEN:
        base = OPEN.pop()
        for trial_id in list(base.runs):
            base.leave(trial_id)


def finish(base: SharedBase, runs: Sequence[TrialRun], *, most: int = 10_000) -> None:
    """Work until these trials are over, dealing with every result at once."""
    for _ in range(most):
        for run in runs:
            run.acknowledged = len(run.results)
        if not base.work() and all(run.is_over for run in runs):
            return
    raise AssertionError("the trials do not end")


def losses(folder: RunDirectory) -> list[float]:
    """Return the training loss of every step."""
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [loss for line in lines if line["kind"] == "step" for loss in line["train/losses"]]
