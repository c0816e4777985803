"""One trial inside a trainer: its training, its lines of metrics.jsonl, and what it has to tell its Tune client."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ftray.artifacts import RunDirectory, write_json
from ftray.data.conversations import REPLAY
from ftray.data.tokenization import TokenizedExample
from ftray.evaluate.config import LOWER_IS_BETTER, Metric
from ftray.evaluate.intervals import Estimate
from ftray.observe import log
from ftray.sweep.history import read_result
from ftray.sweep.trial import TrialSpec
from ftray.tracking import Mirror, TensorBoard, Tracker, current_lines, next_attempt
from ftray.train.loop import Clock, Computed, best_step, step_line
from ftray.train.loss_spike import RowLoss, worst_rows
from ftray.train.state import Progress, StepInputs, Training

Result = dict[str, Any]
"""What a trial reports at an evaluation; DESIGN of its keys in `TrialRun.evaluated`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What a step of one trial gave."""

    inputs: StepInputs
    rows: list[RowLoss] = field(repr=False)
    loss: float  # mean over the step's labels, nats
    task_loss: float | None  # without replay rows
    grad_norm: float
    seconds: float


class TrialRun:
    """One trial's state beside its numbers in the bank."""

    def __init__(
        self,
        spec: TrialSpec,
        folder: RunDirectory,
        examples: list[TokenizedExample],
        *,
        metric: Metric,
        metric_digest: str,
        tensorboard: bool = False,
    ) -> None:
        self.spec = spec
        self.folder = folder
        # Whether to stop is for Tune to say, by the same rule.
        plan = replace(spec.plan, early_stopping=None)
        self.training = Training(
            plan, examples, metric=metric_digest, higher_is_better=metric.metric not in LOWER_IS_BETTER
        )
        self.slot: int | None = None
        self.results: list[Result] = []
        self._untold: Result | None = None
        self.acknowledged = 0
        self.is_due = False
        """Whether the step just done calls for an evaluation."""
        self.failure = ""
        self.following: TrialRun | None = None
        """The trial that does this one's steps for it, as long as they are the same."""
        self.shared_steps = 0
        """Up to which step they are the same."""
        self._clock = Clock()
        self._seconds = 0.0
        folder.root.mkdir(parents=True, exist_ok=True)
        folder.checkpoints.mkdir(exist_ok=True)
        write_json(folder.root / "trial.json", spec.to_record())
        mirrors: list[Mirror] = [TensorBoard(folder.root)] if tensorboard else []
        self._tracker = Tracker(
            folder.metrics, attempt=next_attempt(folder.metrics), mirrors=mirrors, also=self._log_event
        )

    @property
    def trial_id(self) -> str:
        return self.spec.trial_id

    @property
    def progress(self) -> Progress:
        return self.training.progress

    @property
    def is_over(self) -> bool:
        """Whether it has nothing more to compute."""
        return bool(self.failure) or (self.training.finished and not self.is_due)

    @property
    def waits(self) -> bool:
        """Whether it has told something that was not heard yet: the answer may be to stop."""
        return len(self.results) > self.acknowledged

    def close(self) -> None:
        """Close its records."""
        self._tracker.close()

    # What happened before

    def resume(self, progress: Progress | None, *, note: str) -> None:
        """Go on from a checkpoint's progress, or from the start, and tell again what was told up to there."""
        if progress is not None:
            self.training.restore(progress)
        told = {
            line["step"]: line["result"]
            for line in current_lines(self.folder.metrics)
            if line["kind"] == "evaluation" and line["step"] <= self.progress.step and "result" in line
        }
        self.results = [read_result(told[step]) for step in sorted(told)]
        self._seconds = self.results[-1]["seconds"] if self.results else 0.0
        self._event(note)

    @property
    def is_blocked(self) -> bool:
        """Whether an evaluation is due that must wait for its client."""
        return self.is_due and self.waits

    def _log_event(self, line: dict[str, Any]) -> None:
        if line["kind"] == "event":
            event = line["event"]
            log.say(
                line.get("message", event),
                level=log.LEVELS.get(event, "info"),
                event=event,
                trial=self.trial_id,
                step=line["step"],
            )

    def _event(self, text: str, **more: Any) -> None:
        self._tracker.report(
            {"step": self.progress.step, "epoch": self.training.epoch, "kind": "event", "event": text, **more}
        )

    def follow(self, leader: TrialRun) -> None:
        """Let `leader` do this trial's steps from now on; those it has done so far are this trial's too."""
        assert not self.progress.step, "a trial follows from its first step"
        self.following = leader
        for line in current_lines(leader.folder.metrics):
            if line["kind"] == "step" and line["step"] <= leader.progress.step:
                self._tracker.report({key: value for key, value in line.items() if key not in ("time", "attempt")})
        points = leader.progress.evaluations
        for count, result in enumerate(leader.results, start=1):
            self.progress.evaluations = points[:count]
            self.progress.step = result["step"]
            self.results.append(self._written({**result, "prefix_of": leader.trial_id}))
        self.training.restore(copy.deepcopy(leader.progress))
        self._event(f"its first steps are those of trial {leader.trial_id}")

    # What happens now

    def advance(self, outcome: StepOutcome) -> None:
        """Count a step and write its line. Raises RunError when nothing is training."""
        training, inputs = self.training, outcome.inputs
        self._seconds += outcome.seconds
        self._clock.train += outcome.seconds
        self._clock.tokens += inputs.num_tokens
        spike = training.advance(inputs, loss=outcome.loss, grad_norm=outcome.grad_norm, task_loss=outcome.task_loss)
        if training.has_line:
            computed = Computed(
                inputs=inputs, loss=outcome.loss, task_loss=outcome.task_loss, grad_norm=outcome.grad_norm
            )
            self._tracker.report(step_line(training, computed, self._clock))
        if spike is not None:
            self._event(
                "loss_spike",
                message=spike.sentence,
                **{"train/loss": spike.loss, "train/loss_average": spike.average},
                rows=[asdict(row) for row in worst_rows([row for row in outcome.rows if row.dataset != REPLAY])],
            )
        self.is_due = training.plan.evaluates_at(self.progress.step)

    def evaluated(self, *, value: Estimate, loss: float, seconds: float, prefix_of: str | None) -> None:
        """Take an evaluation of the step just done; `tell` has it reported, once its checkpoint is written.

        `prefix_of`: the trial whose first steps these are.
        """
        self.is_due = False
        self._seconds += seconds
        self.training.evaluated(value=value.value, validation_loss=loss)
        self._untold = self._written(
            {
                "trial_id": self.trial_id,
                "step": self.progress.step,
                "epoch": self.training.epoch,
                "tokens": self.progress.tokens,
                "validation_accuracy": value.value,
                "validation_estimate": value.to_record(),
                "validation_loss": loss,
                "train_loss": self.progress.train_loss if self.progress.train_loss is not None else loss,
                "prefix_of": prefix_of,
            }
        )

    def tell(self) -> None:
        """Have the newest evaluation reported: its checkpoint is there, for who hears of it may want to keep it."""
        assert self._untold is not None, "an evaluation is told once"
        self.results.append(self._untold)
        self._untold = None

    def _written(self, told: Result) -> Result:
        """Add what depends on this trial to an evaluation, and write it down."""
        training, best = self.training, self.best
        result = {
            **told,
            "trial_id": self.trial_id,
            "best_validation_accuracy": best.value if best else told["validation_accuracy"],
            "best_validation_loss": best.validation_loss if best else told["validation_loss"],
            "best_step": best.step if best else told["step"],
            "best_estimate": self._estimate_at(best.step, told) if best else told["validation_estimate"],
            "warmup_steps": training.plan.schedule.warmup_steps,
            "seconds": self._seconds,
            "nonfinite": "",
            "failure": "",
            "finished": training.finished,
        }
        self._tracker.report(
            {
                "step": result["step"],
                "epoch": result["epoch"],
                "kind": "evaluation",
                "val/loss": result["validation_loss"],
                "val/accuracy": result["validation_accuracy"],
                "train/loss_average": result["train_loss"],
                "train/tokens": result["tokens"],
                "result": result,
            }
        )
        return result

    def _estimate_at(self, step: int, told: Result) -> dict[str, Any]:
        """Return the value of an evaluation with its interval, as it was told."""
        return next(
            dict(result["validation_estimate"]) for result in (told, *reversed(self.results)) if result["step"] == step
        )

    @property
    def best(self) -> Any:
        """The best evaluation so far, or None: the checkpoint that is kept."""
        step = best_step(self.training)
        return next((point for point in self.progress.evaluations if point.step == step), None)

    def fail(self, reason: str, *, nonfinite: bool = False) -> None:
        """End this trial: its numbers are none any more (`nonfinite`), or it cannot be computed."""
        self.failure = reason
        self.is_due = False
        last = self.results[-1] if self.results else self._nothing_yet()
        key = "nonfinite" if nonfinite else "failure"
        self.results.append({**last, "step": self.progress.step, "tokens": max(1, self.progress.tokens), key: reason})
        self._event(key, message=reason)

    def _nothing_yet(self) -> Result:
        """A result before any evaluation: as bad as can be."""
        worst = 0.0 if self.training.higher_is_better else float("inf")
        infinite = float("inf")
        return {
            "trial_id": self.trial_id,
            "step": 0,
            "epoch": self.training.epoch,
            "tokens": 1,
            "validation_accuracy": worst,
            "validation_loss": infinite,
            "train_loss": infinite,
            "best_validation_accuracy": worst,
            "best_validation_loss": infinite,
            "best_step": 0,
            "prefix_of": None,
            "warmup_steps": self.training.plan.schedule.warmup_steps,
            "seconds": self._seconds,
            "nonfinite": "",
            "failure": "",
            "finished": False,
        }
