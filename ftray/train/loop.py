"""The training loop, from top to bottom: batches, gradients, step, log, evaluate, checkpoint, stop.

It imports neither Ray nor DeepSpeed: an `Engine` computes, a `Group` speaks to the other workers, and `report` is the
one way out. Everything it decides, it asks `Training`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ftray.data.collate import Batch, Layout, collate
from ftray.data.conversations import REPLAY
from ftray.evaluate.config import Metric
from ftray.evaluate.loss import mean_loss
from ftray.evaluate.metrics import aggregate
from ftray.evaluate.predict import Asked, predict_slots, predict_task
from ftray.evaluate.tasks import Task
from ftray.model.bank import Bank
from ftray.model.bank_peft import adapter_in_bank
from ftray.model.bank_route import BASE
from ftray.model.lora import train_adapter_only
from ftray.observe.spans import span
from ftray.selection import Candidate, select
from ftray.train.batches import share_out
from ftray.train.checkpoint import CheckpointWriter, is_adapter
from ftray.train.engine import Engine
from ftray.train.health import require_finite_loss, require_finite_norm
from ftray.train.loss_spike import row_losses, worst_rows
from ftray.train.state import StepInputs, Training

if TYPE_CHECKING:
    from peft import PeftModel

SEEDS_PER_STEP = 4096
"""Every rank of a step draws its own dropout."""
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """How checkpoints are scored: the held-out rows as a task, and how its answers are graded."""

    task: Task
    tokenizer: Any
    stop_token_ids: tuple[int, ...]
    layout: Layout

    def asked(self, engine: Engine) -> Asked:
        """Return how the engine's model is asked."""
        return Asked(
            model=engine.model,
            tokenizer=self.tokenizer,
            stop_token_ids=self.stop_token_ids,
            layout=self.layout,
            group=engine.group,
            synchronised=engine.synchronised,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the model of a checkpoint is worth on the validation rows."""

    value: float
    loss: float  # nats per label
    base_value: float | None  # the untouched base's, where it was asked


@dataclass(slots=True, kw_only=True)
class Clock:
    """Seconds spent in each part of a run."""

    train: float = 0.0
    evaluate: float = 0.0
    checkpoint: float = 0.0
    tokens: int = 0
    _lap_began: float = field(default_factory=time.perf_counter)
    _rate_from: tuple[float, int] = (0.0, 0)

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        now = time.perf_counter()
        elapsed, self._lap_began = now - self._lap_began, now
        return elapsed

    def tokens_per_second(self) -> float:
        """Return the training speed since this was last asked, evaluations and checkpoints left out."""
        seconds, tokens = self._rate_from
        self._rate_from = (self.train, self.tokens)
        return (self.tokens - tokens) / max(1e-9, self.train - seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What one optimizer step gave; losses in nats per label."""

    inputs: StepInputs
    loss: float
    task_loss: float | None  # without replay rows; None where the step has no others
    grad_norm: float


def train(
    training: Training, engine: Engine, validation: Validation, checkpoints: CheckpointWriter, report: Report
) -> Clock:
    """Train until the last step or early stopping; leave a checkpoint at every evaluation that calls for one."""
    plan, group, progress = training.plan, engine.group, training.progress
    clock = Clock()
    if is_adapter(engine.model):
        train_adapter_only(engine.model)
    else:
        engine.model.train()
    while not training.finished:
        inputs = training.upcoming()
        shares = share_out(inputs.examples, plan.sharing(group.size))
        seed = inputs.seed * SEEDS_PER_STEP + group.rank
        batches = [
            collate(examples, validation.layout, dropout_seed=seed + index * group.size)
            for index, examples in enumerate(shares[group.rank])
        ]

        # For what is not drawn from a batch's own seed: adapters that PEFT computes.
        torch.manual_seed(seed)
        losses = engine.accumulate(batches, normaliser=inputs.num_labels)
        mine = float(sum(part.double().sum().item() for part in losses))
        of_task = sum(map(task_losses, batches, losses)) if training.rehearses else mine
        loss_sum, task_sum = group.total([mine, of_task])
        loss = loss_sum / inputs.num_labels
        task_loss = task_sum / inputs.num_task_labels if inputs.num_task_labels else None
        require_finite_loss(loss, step=inputs.step, batches=batches, losses=losses, group=group)

        grad_norm = engine.step(inputs.learning_rate)
        require_finite_norm(grad_norm, step=inputs.step, precision=plan.precision)
        spike = training.advance(inputs, loss=loss, grad_norm=grad_norm, task_loss=task_loss)
        clock.tokens += inputs.num_tokens

        computed = Computed(inputs=inputs, loss=loss, task_loss=task_loss, grad_norm=grad_norm)
        is_listed = training.has_line
        if is_listed:
            clock.train += clock.lap()
            report(step_line(training, computed, clock))

        if spike is not None:
            rows = [row for part in group.gather(row_losses(batches, losses)) for row in part]
            # Replay rows are no part of the loss that jumped.
            worst = worst_rows([row for row in rows if row.dataset != REPLAY])
            report(
                {
                    "step": progress.step,
                    "epoch": training.epoch,
                    "kind": "event",
                    "event": "loss_spike",
                    "message": spike.sentence,
                    "train/loss": spike.loss,
                    "train/loss_average": spike.average,
                    "rows": [asdict(row) for row in worst],
                }
            )

        if plan.evaluates_at(progress.step):
            clock.train += clock.lap()
            # The base does not change: once is enough.
            with span("validate", step=progress.step):
                scored = score(engine, validation, with_base=progress.base_value is None)
            decision = training.evaluated(value=scored.value, validation_loss=scored.loss, base_value=scored.base_value)
            clock.evaluate += clock.lap()
            report(
                {
                    "step": progress.step,
                    "epoch": training.epoch,
                    "kind": "evaluation",
                    "val/loss": scored.loss,
                    "val/accuracy": scored.value,
                    "train/loss_average": progress.train_loss,
                    "train/tokens": progress.tokens,
                    **({} if scored.base_value is None else {"val/base_accuracy": scored.base_value}),
                }
            )
            if decision.stop:
                if not is_listed:
                    report(step_line(training, computed, clock))
                report({"step": progress.step, "epoch": training.epoch, "kind": "event", "event": decision.reason})

        if plan.checkpoints_at(progress.step) or training.finished:
            clock.train += clock.lap()
            save_scaler(training, engine)
            with span("checkpoint", step=progress.step):
                checkpoints.save(engine, progress)
            if group.rank == 0:
                checkpoints.prune(best_step=best_step(training))
            clock.checkpoint += clock.lap()
    clock.train += clock.lap()
    return clock


def task_losses(batch: Batch, losses: Tensor) -> float:
    """Return the sum of a batch's label losses [M] in nats, without those of replay rows."""
    is_task = torch.tensor([dataset != REPLAY for dataset, _ in batch.rows])
    return float(losses.double()[is_task[batch.example_index].to(losses.device)].sum().item())


def step_line(training: Training, computed: Computed, clock: Clock) -> dict[str, Any]:
    """Return the line of metrics.jsonl about the step just done, with the losses of all steps since the line before."""
    progress, task_loss = training.progress, computed.task_loss
    return {
        "step": progress.step,
        "epoch": training.epoch,
        "kind": "step",
        "train/loss": computed.loss,
        **({"train/task_loss": task_loss} if training.rehearses and task_loss is not None else {}),
        "train/learning_rate": computed.inputs.learning_rate,
        "train/grad_norm": computed.grad_norm,
        "train/tokens": progress.tokens,
        "train/tokens_per_second": clock.tokens_per_second(),
        "train/losses": progress.recent_losses[training.since_last_line()],
        "train/grad_norms": progress.recent_norms[training.since_last_line()],
        **_without_replay(training),
    }


def _without_replay(training: Training) -> dict[str, Any]:
    """Return the losses of the task's rows alone, where there are others."""
    if not training.rehearses:
        return {}
    return {"train/task_losses": training.progress.recent_task_losses[training.since_last_line()]}


def score(engine: Engine, validation: Validation, *, with_base: bool = False) -> Score:
    """Return the model's value and loss on the validation rows, and its base's value (collective).

    Adapters answer through a bank, the base in the same batches where it is wanted; elsewhere it is not asked here.
    """
    asked, task = validation.asked(engine), validation.task
    base_value = None
    with shared_base(engine) as bank:
        if bank is None:
            predictions = predict_task(task, asked)
        else:
            slots = (BASE, 1) if with_base else (1,)
            *base, predictions = (answers[task.name] for answers in predict_slots([task], asked, bank, slots))
            base_value = aggregate(task.metric, base[0]) if base else None
    value = aggregate(task.metric, predictions)
    if all(row.nll is not None for row in predictions):
        # The predictions hold what a second pass over the rows would measure.
        return Score(value=value, loss=aggregate(Metric(metric="nll"), predictions), base_value=base_value)
    loss = mean_loss(
        [row.example for row in task.rows],
        engine.model,
        group=engine.group,
        layout=validation.layout,
        synchronised=engine.synchronised,
    )
    return Score(value=value, loss=loss, base_value=base_value)


def shared_base(engine: Engine) -> AbstractContextManager[Bank | None]:
    """Let base and tuned model answer in one batch: a bank for a plain adapter that is whole in every process, or None.

    Slot 1 of the bank holds the adapter.
    """
    if not is_adapter(engine.model) or engine.synchronised:
        return nullcontext()
    return adapter_in_bank(cast("PeftModel", engine.model))


def best_step(training: Training) -> int | None:
    """Return the step that would be selected now."""
    candidates = [
        Candidate(step=point.step, value=point.value, loss=point.validation_loss)
        for point in training.progress.evaluations
        if point.value is not None
    ]
    if not candidates:
        return None
    return select(candidates, higher_is_better=training.higher_is_better).step


def save_scaler(training: Training, engine: Engine) -> None:
    """Note fp16's loss scale in the progress that the checkpoint saves."""
    training.progress.loss_scale = engine.scaler.scale
    training.progress.good_steps = engine.scaler.good_steps
