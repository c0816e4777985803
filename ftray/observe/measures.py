"""What a run and a campaign look like as numbers over time: the lines of metrics.jsonl and the results of trials.

They are told by the process that the command runs in, which outlives workers that are replaced: no number is counted
twice. `Instruments` is the seam to Ray's metrics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from ftray.campaign import Config, State, TrialResult
from ftray.evaluate.config import LOWER_IS_BETTER
from ftray.observe.countdown import Countdown

MOST_TRIALS = 200
"""Trials with series of their own: every series costs whoever keeps them."""
RUNNING = "running"
EVENTS = ("started", "resumed", "loss_spike")
"""Events that are counted by their name; what else happens is counted as `other`."""
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Measure:
    """A series: its name for Prometheus, what it says, its labels."""

    name: str
    text: str
    labels: tuple[str, ...]
    kind: Literal["gauge", "counter", "histogram"] = "gauge"
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram."""


class Instruments(Protocol):
    """Where numbers go."""

    def set(self, measure: Measure, value: float, labels: Mapping[str, str]) -> None:
        """Say what a gauge is now."""

    def add(self, measure: Measure, by: float, labels: Mapping[str, str]) -> None:
        """Count on."""

    def observe(self, measure: Measure, value: float, labels: Mapping[str, str]) -> None:
        """Put a value into a histogram."""


OF_RUN = ("name", "run")
"""The job's name and the run's id. Not `job`: Prometheus has a label of that name for what it scrapes."""
OF_SWEEP = ("name", "sweep")
OF_TRIAL = (*OF_SWEEP, "trial")

STEPS_PLANNED = Measure("ftray_train_steps_planned", "Optimizer steps that the run has in all.", OF_RUN)
SECONDS_LEFT = Measure("ftray_train_seconds_left", "Time that the rest takes at the pace so far.", OF_RUN)
RUN_EVENTS = Measure("ftray_train_events", "Starts, resumptions, loss spikes.", (*OF_RUN, "event"), "counter")
BY_KEY = {
    "step": Measure("ftray_train_step", "Optimizer steps done.", OF_RUN),
    "epoch": Measure("ftray_train_epoch", "Passes over the training rows done.", OF_RUN),
    "train/loss": Measure("ftray_train_loss", "Training loss, nats per label.", OF_RUN),
    "train/grad_norm": Measure("ftray_train_grad_norm", "Norm of the gradient before clipping.", OF_RUN),
    "train/learning_rate": Measure("ftray_train_learning_rate", "Learning rate.", OF_RUN),
    "train/tokens": Measure("ftray_train_tokens", "Tokens trained on; a resumed run takes up where it was.", OF_RUN),
    "train/tokens_per_second": Measure("ftray_train_tokens_per_second", "Speed without evaluations.", OF_RUN),
    "val/loss": Measure("ftray_validation_loss", "Validation loss, nats per label.", OF_RUN),
    "val/accuracy": Measure("ftray_validation_value", "Value of the job's metric on validation rows.", OF_RUN),
    "val/base_accuracy": Measure("ftray_validation_base_value", "The same of the untouched base.", OF_RUN),
}
TRIALS = Measure("ftray_sweep_trials", "Trials by state.", (*OF_SWEEP, "state"))
TRIALS_PLANNED = Measure("ftray_sweep_trials_planned", "Trials that the campaign has in all.", OF_SWEEP)
BEST = Measure("ftray_sweep_best_value", "Best validation value so far.", OF_SWEEP)
SWEEP_TOKENS = Measure("ftray_sweep_tokens", "Tokens that all trials have trained on.", OF_SWEEP, "counter")
BY_RESULT = {
    "validation_accuracy": Measure("ftray_trial_validation_value", "Value of the job's metric.", OF_TRIAL),
    "validation_loss": Measure("ftray_trial_validation_loss", "Validation loss, nats per label.", OF_TRIAL),
    "train_loss": Measure("ftray_trial_train_loss", "Training loss, nats per label.", OF_TRIAL),
    "step": Measure("ftray_trial_step", "Optimizer steps done.", OF_TRIAL),
}
ALL = (STEPS_PLANNED, SECONDS_LEFT, RUN_EVENTS, *BY_KEY.values(), TRIALS, TRIALS_PLANNED, BEST, SWEEP_TOKENS,
       *BY_RESULT.values())  # fmt: skip
"""Every series there is."""


class RunMeasures:
    """Tells a run's lines as numbers."""

    def __init__(self, instruments: Instruments, *, job: str, run_id: str, total_steps: int) -> None:
        self._instruments = instruments
        self._labels = {"name": job, "run": run_id[:12]}
        self._countdown = Countdown(total=total_steps)

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line of metrics.jsonl."""
        if line["kind"] == "event":
            word = str(line["event"]).split()[0]
            labels = self._labels | {"event": word if word in EVENTS else OTHER}
            self._instruments.add(RUN_EVENTS, 1, labels)
        for key, measure in BY_KEY.items():
            value = line.get(key)
            if value is not None and math.isfinite(value):
                self._instruments.set(measure, float(value), self._labels)
        self._instruments.set(STEPS_PLANNED, self._countdown.total, self._labels)
        now = time.monotonic()
        self._countdown.take(line, now)
        if (left := self._countdown.seconds_left(now)) is not None:
            self._instruments.set(SECONDS_LEFT, left, self._labels)


class CampaignMeasures:
    """Tells what a campaign hears of its trials as numbers; a Watcher."""

    def __init__(self, instruments: Instruments, *, job: str, sweep_id: str, metric: str, total: int) -> None:
        self._instruments = instruments
        self._labels = {"name": job, "sweep": sweep_id[:12]}
        self._sign = -1 if metric in LOWER_IS_BETTER else 1
        self._total = total
        self._states: dict[str, str] = {}
        self._tokens: dict[str, int] = {}
        self._best: float | None = None

    def on_result(self, trial_id: str, config: Config, result: dict[str, Any]) -> None:
        """Take an evaluation."""
        # A prefix of another trial computes nothing of its own.
        tokens = 0 if result.get("prefix_of") else int(result["tokens"])
        self._count_tokens(trial_id, tokens)
        self._states.setdefault(trial_id, RUNNING)
        self._take(result["best_validation_accuracy"])
        if len(self._states) <= MOST_TRIALS:
            for key, measure in BY_RESULT.items():
                value = result.get(key)
                if value is not None and math.isfinite(value):
                    self._instruments.set(measure, float(value), self._labels | {"trial": trial_id})
        self._tell()

    def on_end(self, trial: TrialResult) -> None:
        """Take a trial that has ended; the winner with another seed is no trial of the search."""
        if trial.role == "search":
            self._states[trial.trial_id] = trial.state
            if trial.best is not None:
                self._take(trial.best.validation_accuracy)
        else:
            self._states.pop(trial.trial_id, None)
        self._tell()

    def remember(self, trial: TrialResult) -> None:
        """Take a trial that had ended before the command began."""
        self.on_end(trial)

    def _count_tokens(self, trial_id: str, tokens: int) -> None:
        before = self._tokens.get(trial_id, 0)
        if tokens > before:
            self._tokens[trial_id] = tokens
            self._instruments.add(SWEEP_TOKENS, tokens - before, self._labels)

    def _take(self, value: float | None) -> None:
        if value is None or not math.isfinite(value):
            return
        if self._best is None or self._sign * value > self._sign * self._best:
            self._best = value

    def _tell(self) -> None:
        for state in (RUNNING, *get_args(State)):
            count = sum(one == state for one in self._states.values())
            self._instruments.set(TRIALS, count, self._labels | {"state": state})
        self._instruments.set(TRIALS_PLANNED, self._total, self._labels)
        if self._best is not None:
            self._instruments.set(BEST, self._best, self._labels)
