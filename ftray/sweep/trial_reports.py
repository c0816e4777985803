"""What a trial that has a trainer of its own tells Ray Tune, from the lines of its metrics.jsonl. Pure."""

from __future__ import annotations

import math
from typing import Any

from ftray.errors import FtrayError
from ftray.selection import Candidate, select
from ftray.sweep.trial import TrialSpec

WORST = 1e9
"""Stands for the value of a trial without one. Finite: schedulers and searchers compute with what they are told."""
Report = dict[str, Any]


class TrialReports:
    """Turns a trial's evaluations into reports to Ray Tune; remembers the best one so far."""

    def __init__(self, spec: TrialSpec, *, higher_is_better: bool) -> None:
        self._spec = spec
        self._higher_is_better = higher_is_better
        self._candidates: list[Candidate] = []
        self._last = self._nothing()

    @property
    def step(self) -> int:
        """The step of the last evaluation, or 0."""
        return int(self._last["step"])

    def evaluated(self, line: dict[str, Any], *, seconds: float, finished: bool = False) -> Report:
        """Return the report about an evaluation: a line of metrics.jsonl, whose numbers may be null there."""
        value, loss = as_number(line["val/accuracy"]), as_number(line["val/loss"])
        if math.isfinite(value):
            self._candidates.append(Candidate(step=line["step"], value=value, loss=loss))
        self._last |= {
            "step": line["step"],
            "epoch": line["epoch"],
            "tokens": line["train/tokens"],
            "validation_accuracy": value if math.isfinite(value) else self._worst,
            "validation_loss": loss,
            "train_loss": as_number(line["train/loss_average"]),
            **self._best(),
        }
        return self._last | {"seconds": seconds, "finished": finished, "done": finished}

    def failed(self, error: FtrayError, *, seconds: float) -> Report:
        """Return the last report of a trial that an error has ended: its last numbers, and why."""
        reason = ". ".join(part.rstrip(".") for part in (error.message, error.hint) if part)
        kind = "nonfinite" if error.kind == "nonfinite" else "failure"
        return self._last | {kind: reason, "seconds": seconds, "done": True}

    @property
    def _worst(self) -> float:
        return -WORST if self._higher_is_better else WORST

    def _best(self) -> Report:
        if not self._candidates:
            return {}
        best = select(self._candidates, higher_is_better=self._higher_is_better)
        (chosen,) = [one for one in self._candidates if one.step == best.step]
        return {
            "best_validation_accuracy": chosen.value,
            "best_validation_loss": chosen.loss,
            "best_step": chosen.step,
        }

    def _nothing(self) -> Report:
        return {
            # Tune puts its own name of the trial under trial_id.
            "trial": self._spec.trial_id,
            "step": 0,
            "epoch": 0.0,
            # Schedulers that count tokens take no zero.
            "tokens": 1,
            "validation_accuracy": self._worst,
            "validation_loss": math.nan,
            "train_loss": math.nan,
            "best_validation_accuracy": self._worst,
            "best_validation_loss": math.nan,
            "best_step": 0,
            "warmup_steps": self._spec.plan.schedule.warmup_steps,
            "seconds": 0.0,
            "nonfinite": "",
            "failure": "",
            "finished": False,
            "done": False,
        }


def as_number(value: float | None) -> float:
    """Return a number of a record: JSON has no NaN, what was no number is null there."""
    return math.nan if value is None else float(value)
