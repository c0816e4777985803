"""The state of one training: where it is in its data, schedule and history, and what it decides from them.

The loop drives one of these; a shared base drives many, so a trial and a run of the same configuration cannot drift
apart. It holds no weights and knows neither Ray nor DeepSpeed. Everything random is derived from (seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ftray.data.conversations import REPLAY
from ftray.data.tokenization import TokenizedExample
from ftray.errors import RunError
from ftray.train.batches import StepSampler, count_labels
from ftray.train.early_stopping import EvaluationPoint, StopDecision, should_stop
from ftray.train.loss_spike import Spike, detect_spike
from ftray.train.plan import Plan

TRAIN_LOSS_SMOOTHING = 0.9
"""Weight of the past in the moving average of the training loss that validation loss is compared with."""
MOST_SEED = 2**48
ZERO_GRADIENT_STEPS = 3
"""So many first steps with a gradient norm of exactly 0 mean that nothing is training."""
RECENT_STEPS = 32
"""Steps before it that a spike stands out of. So many losses are kept at least, and as many as a line lists."""
MOST_LISTED = 512
"""Steps that a line of metrics.jsonl can list; with a larger `log_every` there is a line in between."""
START_STEPS = 3
"""First steps whose mean loss is the loss at the start."""
DIGITS = 6
"""Significant digits of the losses that are kept for looking back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """What the next optimizer step computes."""

    step: int
    examples: list[TokenizedExample]
    num_labels: int
    num_task_labels: int  # without those of replay rows
    num_tokens: int
    learning_rate: float
    seed: int  # of everything random in this step (dropout)


@dataclass(slots=True, kw_only=True)
class Progress:
    """The part of a training that is saved. JSON keeps every float exactly."""

    step: int = 0
    optimizer_steps: int = 0  # Adam's own count: fp16 overflow skips an update, not a step
    tokens: int = 0
    label_tokens: int = 0
    train_loss: float | None = None  # moving average over the task's labels
    zero_gradients: int = 0
    start_loss: float | None = None  # mean of the first steps with task labels, without replay rows
    recent_losses: list[float] = field(default_factory=list)
    recent_norms: list[float] = field(default_factory=list)
    recent_task_losses: list[float | None] = field(default_factory=list)  # without replay rows
    loss_scale: float = 1.0
    good_steps: int = 0
    evaluations: list[EvaluationPoint] = field(default_factory=list)
    base_value: float | None = None  # the untouched base's on the validation rows
    stopped: str | None = None  # reason of early stopping
    metric: str = ""  # digest of the metric that the evaluations' values are of

    def to_record(self) -> dict[str, Any]:
        """Return the saved form."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Progress:
        """Return the state a checkpoint saved."""
        evaluations = [
            # JSON has no NaN: a loss that was not a number is null there.
            EvaluationPoint(**{**point, "validation_loss": _number(point["validation_loss"])})
            for point in record["evaluations"]
        ]
        norms = [_number(norm) for norm in record.get("recent_norms", [])]
        return cls(**{**record, "evaluations": evaluations, "recent_norms": norms})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


class Training:
    """One training: gives the inputs of each step, takes its loss, decides what happens next."""

    def __init__(
        self, plan: Plan, examples: Sequence[TokenizedExample], *, metric: str = "", higher_is_better: bool = True
    ) -> None:
        self.plan = plan
        self.progress = Progress(metric=metric)
        self.higher_is_better = higher_is_better
        self.examples = examples
        self.rehearses = any(example.dataset == REPLAY for example in examples)
        self._sampler = StepSampler(examples, batch_size=plan.batch_size, seed=plan.seed)

    def restore(self, progress: Progress) -> None:
        """Go on from saved progress. Values under another metric than this training's are forgotten."""
        if progress.metric != self.progress.metric:
            progress.evaluations = []
            progress.base_value = None
            progress.metric = self.progress.metric
        self.progress = progress

    @property
    def finished(self) -> bool:
        """Whether there is no step left, or early stopping said so."""
        return self.progress.stopped is not None or self.progress.step >= self.plan.total_steps

    @property
    def epoch(self) -> float:
        """Passes over the training rows so far."""
        return self.progress.step / self.plan.steps_per_epoch

    def upcoming(self) -> StepInputs:
        """Return the next step's examples, normaliser and learning rate."""
        step = self.progress.step
        examples = self._sampler.step(step)
        return StepInputs(
            step=step,
            examples=examples,
            num_labels=count_labels(examples),
            num_task_labels=count_labels([example for example in examples if example.dataset != REPLAY]),
            num_tokens=sum(len(example.tokens) for example in examples),
            learning_rate=self.plan.schedule.at(
                self.progress.optimizer_steps if self.plan.precision == "fp16" else step
            ),
            seed=(self.plan.seed * 1_000_003 + step) % MOST_SEED,
        )

    def advance(
        self, inputs: StepInputs, *, loss: float, grad_norm: float, task_loss: float | None = None
    ) -> Spike | None:
        """Count a step that was applied; return its loss as a spike where it is one.

        `loss` is the mean over all labels of the step, `task_loss` over those that no replay row has: validation rows
        are the task's, so that is what their loss is compared with. It is needed where the two differ.
        Raises RunError `nothing_learned` when the first gradients are exactly 0.
        """
        progress = self.progress
        if inputs.num_task_labels == inputs.num_labels:
            task_loss = loss
        spike = self._spike(task_loss)
        overflowed = self.plan.precision == "fp16" and not math.isfinite(grad_norm)
        progress.step += 1
        progress.optimizer_steps += 0 if overflowed else 1
        progress.tokens += inputs.num_tokens
        progress.label_tokens += inputs.num_labels
        if inputs.num_task_labels:
            assert task_loss is not None, "a step with replay rows needs the loss of the others"
            past = progress.train_loss if progress.train_loss is not None else task_loss
            progress.train_loss = TRAIN_LOSS_SMOOTHING * past + (1 - TRAIN_LOSS_SMOOTHING) * task_loss
        self._keep(loss, task_loss=task_loss, grad_norm=grad_norm)
        progress.zero_gradients = progress.zero_gradients + 1 if grad_norm == 0.0 else 0
        if progress.zero_gradients == progress.step == ZERO_GRADIENT_STEPS:
            raise RunError(
                f"nothing is training: the gradient norm was exactly 0 in the first {ZERO_GRADIENT_STEPS} steps",
                kind="nothing_learned",
                given={"grad_norm": 0.0},
                allowed="a gradient norm above 0 (0.1-10 is normal)",
                hint="Check method.target_modules, and that the examples have labels (ftray check shows the share).",
            )
        return spike

    def _keep(self, loss: float, *, task_loss: float | None, grad_norm: float) -> None:
        """Add the step just done to the recent ones."""
        progress = self.progress
        kept = max(RECENT_STEPS, min(self.plan.log_every, MOST_LISTED))
        of_task = None if task_loss is None else _rounded(task_loss)
        progress.recent_losses = [*progress.recent_losses, _rounded(loss)][-kept:]
        progress.recent_norms = [*progress.recent_norms, _rounded(grad_norm)][-kept:]
        progress.recent_task_losses = [*progress.recent_task_losses, of_task][-kept:]
        # Only while all steps are kept: the recent ones of a later checkpoint without a start are not its first.
        if len(progress.recent_task_losses) == progress.step:
            first = [one for one in progress.recent_task_losses if one is not None][:START_STEPS]
            progress.start_loss = sum(first) / len(first) if first else None

    def _spike(self, task_loss: float | None) -> Spike | None:
        """Return what the task's loss is after the steps so far; during warm-up nothing stands out.

        Replay rows have many more labels than the task's: how many are in a step would decide its loss. None where a
        step has no row of the task.
        """
        progress = self.progress
        # A checkpoint of a version that kept no start cannot say what is large.
        if task_loss is None or progress.start_loss is None or progress.step < self.plan.schedule.warmup_steps:
            return None
        recent = [one for one in progress.recent_task_losses[-RECENT_STEPS:] if one is not None]
        return detect_spike(task_loss, recent, start=progress.start_loss)

    @property
    def has_line(self) -> bool:
        """Whether metrics.jsonl gets a line at the step just done."""
        step = self.progress.step
        is_due = step == 1 or step % self.plan.log_every == 0 or self._unlisted == MOST_LISTED
        return is_due or self.finished

    def since_last_line(self) -> slice:
        """Return which of the recent steps no line of metrics.jsonl has listed yet."""
        return slice(-self._unlisted, None)

    @property
    def _unlisted(self) -> int:
        """Steps since the line before this step's."""
        step, every = self.progress.step, self.plan.log_every
        before = (step - 1) // every * every or min(1, step - 1)
        return (step - before - 1) % MOST_LISTED + 1

    def evaluated(self, *, value: float, validation_loss: float, base_value: float | None = None) -> StopDecision:
        """Record an evaluation and decide whether to go on. `base_value`: the base's, where it was asked."""
        progress = self.progress
        progress.base_value = progress.base_value if base_value is None else base_value
        assert progress.step, "an evaluation follows at least one step"
        # Steps of replay rows alone say nothing about the task: until there is another, nothing is apart.
        train_loss = validation_loss if progress.train_loss is None else progress.train_loss
        progress.evaluations.append(
            EvaluationPoint(step=progress.step, validation_loss=validation_loss, train_loss=train_loss, value=value)
        )
        if self.plan.early_stopping is None or self.finished:
            return StopDecision(stop=False, kind=None, reason="early stopping is off, or the last step is done")
        decision = should_stop(
            progress.evaluations,
            self.plan.early_stopping,
            warmup_steps=self.plan.schedule.warmup_steps,
            higher_is_better=self.higher_is_better,
        )
        if decision.stop:
            progress.stopped = decision.reason
        return decision
