"""Settings outside what usually works: advice with the number and its source, never an error.

The usual values come from models of 1-70 billion parameters; a far smaller one often wants a higher learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ftray.audit.diversity import SMALLEST_TRAIN
from ftray.model.config import MethodConfig
from ftray.train.config import TrainConfig
from ftray.train.plan import Plan

SMALL_MODEL = 100_000_000
"""Below so many parameters the usual learning rates are too low."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What is usual for one number; None is no bound."""

    low: float | None
    high: float | None
    source: str

    def holds(self, value: float) -> bool:
        """Return whether the value is usual; a hair beyond a bound is rounding."""
        above = self.low is None or value >= self.low * (1 - 1e-9)
        return above and (self.high is None or value <= self.high * (1 + 1e-9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Something to look at before a run: a field of the job, what it is, and what is usual."""

    field: str
    given: Any
    message: str
    usual: tuple[float | None, float | None] | None = None
    source: str | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the advice as in check.json."""
        usual = list(self.usual) if self.usual else None
        return {
            "field": self.field, "given": self.given, "usual": usual, "message": self.message, "source": self.source,
        }  # fmt: skip


LORA_LEARNING_RATE = Range(
    low=1e-4, high=3e-4, source="QLoRA (arXiv:2305.14314) uses 1e-4 to 2e-4; practice goes up to 3e-4"
)
FULL_LEARNING_RATE = Range(low=1e-5, high=5e-5, source="Stanford Alpaca uses 2e-5 (7B) and 1e-5 (13B)")
RANK = Range(low=4, high=64, source="LoRA (arXiv:2106.09685, section 7.2): rank 4-8 is enough for many tasks")
SCALE = Range(low=0.5, high=4, source="practice: alpha is once or twice the rank (ftray's default: 32 for 16)")
EPOCHS = Range(low=1, high=5, source="practice: 1-3 epochs; beyond 5 usually overfits")
WARMUP = Range(low=0.03, high=0.10, source="practice: 3-10 % of the steps (Alpaca and QLoRA: 3 %)")
BATCH_SIZE = Range(low=4, high=32, source="practice: 4-32 examples; LoRA in particular dislikes large batches")
WEIGHT_DECAY = Range(low=0, high=0.2, source="practice: 0-0.2")
ROWS = Range(low=SMALLEST_TRAIN, high=None, source="practice: fewer than 100 rows do better as examples in the prompt")
LABEL_SHARE = Range(low=0.01, high=1, source="ftray: below 1 % nearly all of the work is spent on tokens not learned")


def advise(method: MethodConfig, train: TrainConfig, plan: Plan, *, train_field: str, parameters: int) -> list[Advice]:
    """Return advice on every number of the plan that is outside its usual range.

    `train_field` names the training rows in the job; `parameters` is the size of the base.
    """
    found = [*_learning_rate(plan, parameters), *_recipe(train, plan), *_data(plan, train_field)]
    if method.kind == "lora":
        found += _adapter(method)
    return found


def _learning_rate(plan: Plan, parameters: int) -> Iterator[Advice]:
    usual = LORA_LEARNING_RATE if plan.method == "lora" else FULL_LEARNING_RATE
    rate = plan.schedule.peak
    if usual.holds(rate):
        return
    kind = "LoRA" if plan.method == "lora" else "full fine-tuning"
    message = f"a learning rate of {rate:g} is {_side(usual, rate)} the {_spelled(usual)} usual for {kind}"
    if parameters < SMALL_MODEL and usual.high is not None and rate > usual.high:
        message += f"; a model of {parameters / 1e6:.3g}M parameters often needs more, so this may be right"
    elif usual.high is not None and rate > usual.high:
        message += ": watch for rising validation loss and forgetting"
    else:
        message += ": it may learn too little"
    yield _advice("train.learning_rate", rate, usual, message)


def _recipe(train: TrainConfig, plan: Plan) -> Iterator[Advice]:
    epochs = plan.total_steps / plan.steps_per_epoch
    if not EPOCHS.holds(epochs):
        field = "train.max_steps" if train.max_steps is not None else "train.epochs"
        what = "usually overfits" if epochs > 5 else "leaves training rows that are never seen"
        yield _advice(field, round(epochs, 3), EPOCHS, f"{epochs:.3g} epochs: {what}")
    # A share is judged as it was written: in a short run it is rounded up to whole steps.
    share = train.warmup if isinstance(train.warmup, float) else plan.schedule.warmup_steps / plan.total_steps
    if not WARMUP.holds(share):
        message = f"warm-up over {share:.1%} of the steps is {_side(WARMUP, share)} the usual 3-10 %"
        yield _advice("train.warmup", train.warmup, WARMUP, message)
    if not BATCH_SIZE.holds(plan.batch_size):
        message = f"a batch of {plan.batch_size} examples is {_side(BATCH_SIZE, plan.batch_size)} the usual 4-32"
        yield _advice("train.batch_size", plan.batch_size, BATCH_SIZE, message)
    if not WEIGHT_DECAY.holds(plan.weight_decay):
        message = f"a weight decay of {plan.weight_decay:g} is above the usual 0-0.2"
        yield _advice("train.weight_decay", plan.weight_decay, WEIGHT_DECAY, message)


def _data(plan: Plan, field: str) -> Iterator[Advice]:
    data = plan.data
    if not ROWS.holds(data.train_rows):
        yield _advice(field, data.train_rows, ROWS, f"{data.train_rows} training rows are few (usually 100 or more)")
    share = data.train_labels / data.train_tokens
    if not LABEL_SHARE.holds(share):
        message = f"only {share:.2%} of the training tokens carry a label: long prompts, short answers"
        yield _advice(field, round(share, 6), LABEL_SHARE, message)


def _adapter(method: MethodConfig) -> Iterator[Advice]:
    if not RANK.holds(method.rank):
        what = "rarely helps above 64" if method.rank > 64 else "may be too small to learn the task"
        yield _advice("method.rank", method.rank, RANK, f"rank {method.rank} {what}")
    scale = method.alpha / method.rank
    if not method.rslora and not SCALE.holds(scale):
        message = f"alpha/rank is {scale:.3g}, {_side(SCALE, scale)} the usual 0.5-4: it scales the update like a rate"
        yield _advice("method.alpha", method.alpha, SCALE, message)


def _advice(field: str, given: Any, usual: Range, message: str) -> Advice:
    return Advice(field=field, given=given, message=message, usual=(usual.low, usual.high), source=usual.source)


def _side(usual: Range, value: float) -> str:
    return "below" if usual.low is not None and value < usual.low else "above"


def _spelled(usual: Range) -> str:
    return f"{usual.low:.0e} to {usual.high:.0e}".replace("e-0", "e-")
