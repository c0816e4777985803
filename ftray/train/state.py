"""The state of one training: where it is in its data, schedule and history, and what it decides from them.

The loop drives one of these; a shared base drives many, so a trial and a run of the same configuration cannot drift
apart. It holds no weights and knows neither Ray nor DeepSpeed. Everything random is derived from (seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ftray.data.tokenization import TokenizedExample
from ftray.errors import RunError
from ftray.train.batches import StepSampler, count_labels
from ftray.train.early_stopping import EvaluationPoint, StopDecision, should_stop
from ftray.train.plan import Plan

TRAIN_LOSS_SMOOTHING = 0.9
"""Weight of the past in the moving average of the training loss that validation loss is compared with."""
MOST_SEED = 2**48
ZERO_GRADIENT_STEPS = 3
"""So many first steps with a gradient norm of exactly 0 mean that nothing is training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """What the next optimizer step computes."""

    step: int
    examples: list[TokenizedExample]
    num_labels: int
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
    train_loss: float | None = None  # moving average
    zero_gradients: int = 0
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
        return cls(**{**record, "evaluations": evaluations})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


class Training:
    """One training: gives the inputs of each step, takes its loss, decides what happens next."""

    def __init__(
        self, plan: Plan, examples: Sequence[TokenizedExample], *, metric: str = "", higher_is_better: bool = True
    ) -> None:
        self.plan = plan
        self.progress = Progress(metric=metric)
        self.higher_is_better = higher_is_better
        self.examples = examples
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
            num_tokens=sum(len(example.tokens) for example in examples),
            learning_rate=self.plan.schedule.at(
                self.progress.optimizer_steps if self.plan.precision == "fp16" else step
            ),
            seed=(self.plan.seed * 1_000_003 + step) % MOST_SEED,
        )

    def advance(self, inputs: StepInputs, *, loss: float, grad_norm: float) -> None:
        """Count a step that was applied. Raises RunError `nothing_learned` when the first gradients are exactly 0."""
        progress = self.progress
        overflowed = self.plan.precision == "fp16" and not math.isfinite(grad_norm)
        progress.step += 1
        progress.optimizer_steps += 0 if overflowed else 1
        progress.tokens += inputs.num_tokens
        progress.label_tokens += inputs.num_labels
        past = progress.train_loss if progress.train_loss is not None else loss
        progress.train_loss = TRAIN_LOSS_SMOOTHING * past + (1 - TRAIN_LOSS_SMOOTHING) * loss
        progress.zero_gradients = progress.zero_gradients + 1 if grad_norm == 0.0 else 0
        if progress.zero_gradients == progress.step == ZERO_GRADIENT_STEPS:
            raise RunError(
                f"nothing is training: the gradient norm was exactly 0 in the first {ZERO_GRADIENT_STEPS} steps",
                kind="nothing_learned",
                given={"grad_norm": 0.0},
                allowed="a gradient norm above 0 (0.1-10 is normal)",
                hint="Check method.target_modules, and that the examples have labels (ftray check shows the share).",
            )

    def evaluated(self, *, value: float, validation_loss: float, base_value: float | None = None) -> StopDecision:
        """Record an evaluation and decide whether to go on. `base_value`: the base's, where it was asked."""
        progress = self.progress
        progress.base_value = progress.base_value if base_value is None else base_value
        assert progress.train_loss is not None, "an evaluation follows at least one step"
        progress.evaluations.append(
            EvaluationPoint(
                step=progress.step, validation_loss=validation_loss, train_loss=progress.train_loss, value=value
            )
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
