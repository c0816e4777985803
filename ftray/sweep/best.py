"""The best checkpoint of a trial that has a trainer of its own, and the folder that it becomes.

The trial has ended, however it did: what it wrote is all that is known of it.
"""

from __future__ import annotations

import os
from pathlib import Path

from ftray.artifacts import RunDirectory
from ftray.campaign import TrialDirectory
from ftray.errors import RunError
from ftray.finish import stage
from ftray.job import Job
from ftray.model.base import load_tokenizer
from ftray.selection import Candidate, Selection, select
from ftray.sweep.trial_reports import as_number
from ftray.tracking import current_lines
from ftray.train.checkpoint import Checkpoint, find_checkpoints


def best_checkpoint(
    trial: TrialDirectory, *, run_id: str, higher_is_better: bool
) -> tuple[Selection, Checkpoint] | None:
    """Return the checkpoint with the best value on the validation rows; None where there is none.

    An evaluation without its checkpoint does not count: nothing can be made of it.
    Raises RunError `nonfinite` when no checkpoint has a value, `data` when the best one is damaged.
    """
    existing = {one.step: one for one in find_checkpoints(trial.checkpoints, run_id=run_id)}
    candidates = [
        Candidate(step=line["step"], value=as_number(line["val/accuracy"]), loss=as_number(line["val/loss"]))
        for line in current_lines(trial.metrics)
        if line["kind"] == "evaluation" and line["step"] in existing
    ]
    if not candidates:
        return None
    selection = select(candidates, higher_is_better=higher_is_better)
    chosen = existing[selection.step]
    if not chosen.is_whole():
        raise RunError(
            f"the checkpoint {chosen.folder} is not what the trial wrote",
            kind="data",
            given=str(chosen.folder),
            allowed="the files that its manifest lists",
            hint="Delete the trial's folder and its line in trials.jsonl; the same command trains it again.",
            file=str(chosen.folder),
        )
    return selection, chosen


def export_best(trial: TrialDirectory, *, job: Job, run_id: str, higher_is_better: bool) -> Selection | None:
    """Make the best checkpoint the trial's adapter folder (PEFT's, or a whole model with its tokenizer).

    Returns what was chosen, or None where there is no checkpoint. Done again it changes nothing.
    """
    best = best_checkpoint(trial, run_id=run_id, higher_is_better=higher_is_better)
    if best is None:
        return None
    selection, chosen = best
    if not trial.adapter.is_dir():
        is_full = job.method.kind == "full"
        staged: Path = stage(
            chosen, RunDirectory(trial.root), tokenizer=load_tokenizer(job.model) if is_full else None, full=is_full
        )
        os.replace(staged, trial.adapter)
    return selection
