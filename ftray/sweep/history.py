"""What trials told before an interruption, read from their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftray.campaign import TrialDirectory
from ftray.sweep.trial import TrialSpec
from ftray.sweep.trial_reports import TrialReports, as_number
from ftray.tracking import current_lines
from ftray.train.checkpoint import MANIFEST, folder_name

Result = dict[str, Any]
LOSSES = ("validation_loss", "train_loss", "best_validation_loss")


def told(trial: TrialDirectory, spec: TrialSpec, *, higher_is_better: bool) -> list[Result]:
    """Return what a trial reported at its evaluations so far, in order."""
    reports = TrialReports(spec, higher_is_better=higher_is_better)
    results = []
    for line in current_lines(trial.metrics):
        if line["kind"] == "evaluation" and "result" in line:
            results.append(read_result(line["result"]))
        elif line["kind"] == "evaluation":
            # A trial with a trainer of its own writes its evaluations as any run does.
            results.append(reports.evaluated(line, seconds=0.0))
    return results


def read_result(record: Mapping[str, Any]) -> Result:
    """Return a result as it was before it was written: JSON has no NaN, a loss that was no number is null there."""
    return {key: as_number(value) if key in LOSSES else value for key, value in record.items()}


def newest_kept(trial: TrialDirectory, results: Sequence[Result]) -> Result | None:
    """Return the newest of these results from which the trial can go on and whose best step is still there."""
    for result in reversed(results):
        steps = (result["step"], result["best_step"])
        if all((trial.checkpoints / folder_name(step) / MANIFEST).is_file() for step in steps):
            return result
    return None
