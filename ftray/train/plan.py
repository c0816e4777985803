"""One pure function from a job's parts, its data and the machine to what will run: the plan.

Nothing about a run is decided anywhere else; `ftray check` prints it and the loop obeys it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ftray.errors import InputError
from ftray.model.config import MethodConfig
from ftray.train.batches import Sharing
from ftray.train.config import ComputeConfig, EarlyStopping, TrainConfig
from ftray.train.schedule import Schedule

EVALUATIONS_PER_EPOCH = 4
MOST_STEPS_BETWEEN_EVALUATIONS = 500
FORWARD_TOKENS_CPU = 4096
FORWARD_TOKENS_GPU = 16384
"""Tokens of one forward pass that `micro_batch_size: auto` aims at: past these, throughput no longer grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCounts:
    """What the plan needs to know of the tokenized data."""

    train_rows: int
    train_tokens: int
    train_labels: int
    longest: int
    validation_rows: int
    test_rows: int
    task_rows: int | None = None
    task_labels: int | None = None
    """Training rows and learned tokens without replay; None where nobody asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one worker has."""

    has_gpu: bool
    has_bf16: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything about a run that is derived: what ran is what is written here."""

    engine: Literal["torch", "deepspeed"]
    workers: int
    min_workers: int
    stage: int | None
    offload_optimizer: str
    offload_parameters: str
    nvme_path: str
    cpus_per_worker: float
    gpus_per_worker: float
    max_failures: int
    mode_reason: str
    method: Literal["lora", "full"]
    precision: Literal["fp32", "bf16", "fp16"]
    activation_checkpointing: bool
    batch_size: int
    micro_batch_size: int
    packed_length: int | None
    steps_per_epoch: int
    total_steps: int
    schedule: Schedule
    weight_decay: float
    max_grad_norm: float
    label_smoothing: float
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    keep_checkpoints: int
    early_stopping: EarlyStopping | None
    seed: int
    data: DataCounts
    trained_parameters: int

    def sharing(self, workers: int) -> Sharing:
        """Return how a step's examples are shared out among `workers`."""
        return Sharing(workers=workers, micro_batch_size=self.micro_batch_size, packed_length=self.packed_length)

    def evaluates_at(self, step: int) -> bool:
        """Return whether validation data is scored after `step` optimizer steps; every checkpoint is."""
        return step == self.total_steps or step % self.evaluate_every == 0 or self.checkpoints_at(step)

    def checkpoints_at(self, step: int) -> bool:
        """Return whether a checkpoint is written after `step` optimizer steps."""
        return step == self.total_steps or step % self.checkpoint_every == 0

    def to_record(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        record = asdict(self)
        record["early_stopping"] = self.early_stopping.model_dump() if self.early_stopping else None
        return {"schema": "ftray/plan/1", **record}


def make_plan(
    *,
    method: MethodConfig,
    train: TrainConfig,
    compute: ComputeConfig,
    data: DataCounts,
    machine: Machine,
    max_length: int,
    sequence_packing: bool,
    seed: int,
    trained_parameters: int,
) -> Plan:
    """Resolve the job's parts against data and machine. Raises InputError for settings that exclude each other."""
    workers = compute.workers if isinstance(compute.workers, int) else compute.workers[-1]
    least = compute.workers if isinstance(compute.workers, int) else compute.workers[0]
    stage = compute.deepspeed.stage if compute.deepspeed.stage is not None else (0 if method.kind == "lora" else 2)
    _check_compute(compute, workers, least, stage)
    _check_effects(method, train, compute)
    steps_per_epoch = math.ceil(data.train_rows / train.batch_size)
    total_steps = train.max_steps or max(1, math.ceil(steps_per_epoch * train.epochs - 1e-9))
    warmup_steps = train.warmup if isinstance(train.warmup, int) else math.ceil(train.warmup * total_steps)
    cadence = max(1, min(MOST_STEPS_BETWEEN_EVALUATIONS, steps_per_epoch // EVALUATIONS_PER_EPOCH, total_steps))
    evaluate_every = cadence if train.evaluate_every == "auto" else train.evaluate_every
    checkpoint_every = evaluate_every if train.checkpoint_every == "auto" else train.checkpoint_every
    assert train.learning_rate is not None, "the job is resolved before it is planned"
    if train.min_learning_rate > train.learning_rate:
        raise InputError(
            f"the learning rate would end at {train.min_learning_rate:g}, above its peak of {train.learning_rate:g}",
            kind="bad_value",
            given=train.min_learning_rate,
            allowed=f"0 to {train.learning_rate:g}",
            hint="Lower train.min_learning_rate, or raise train.learning_rate.",
            path="train.min_learning_rate",
        )
    if warmup_steps >= total_steps and total_steps > 1:
        raise InputError(
            f"warm-up takes {warmup_steps} steps and the whole run has {total_steps}",
            kind="warmup_too_long",
            given=train.warmup,
            allowed=f"fewer than {total_steps} steps, or a share below 1",
            hint="Lower train.warmup or train longer.",
            path="train.warmup",
        )
    return Plan(
        engine="torch" if workers == 0 else "deepspeed",
        workers=workers,
        min_workers=least,
        stage=None if workers == 0 else stage,
        offload_optimizer=compute.deepspeed.offload_optimizer,
        offload_parameters=compute.deepspeed.offload_parameters,
        nvme_path=compute.deepspeed.nvme_path,
        cpus_per_worker=compute.cpus_per_worker,
        gpus_per_worker=compute.gpus_per_worker,
        max_failures=compute.max_failures,
        mode_reason=_mode_reason(compute, workers, stage),
        method=method.kind,
        precision=_precision(train, machine),
        activation_checkpointing=train.activation_checkpointing,
        batch_size=train.batch_size,
        micro_batch_size=_micro_batch_size(train, data, machine, max(1, workers), max_length, sequence_packing),
        packed_length=max_length if sequence_packing else None,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        schedule=Schedule(
            kind=train.schedule,
            peak=train.learning_rate,
            minimum=train.min_learning_rate,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
        ),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        label_smoothing=train.label_smoothing,
        log_every=train.log_every,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=train.keep_checkpoints,
        early_stopping=train.early_stopping,
        seed=seed,
        data=data,
        trained_parameters=trained_parameters,
    )


def _check_compute(compute: ComputeConfig, workers: int, least: int, stage: int) -> None:
    settings = compute.deepspeed
    if isinstance(compute.workers, list) and (len(compute.workers) != 2 or least > workers):
        raise InputError(
            f"compute.workers is {compute.workers}",
            kind="bad_value",
            given=compute.workers,
            allowed="a number, or [min, max] with min ≤ max",
            hint="Write workers: 2, or workers: [1, 4].",
            path="compute.workers",
        )
    asked = settings.stage is not None or settings.offload_optimizer != "none" or settings.offload_parameters != "none"
    if workers == 0 and asked:
        raise InputError(
            "compute.deepspeed has no effect with workers: 0, which is plain torch",
            kind="no_effect",
            given=settings.model_dump(exclude_defaults=True),
            allowed="workers ≥ 1 with DeepSpeed, or workers: 0 without compute.deepspeed",
            hint="Set compute.workers to 1, or remove compute.deepspeed.",
            path="compute.deepspeed",
        )
    place, parameters = settings.offload_optimizer, settings.offload_parameters
    needs = [
        ("offload_parameters", parameters, parameters != "none", (3,), "Set compute.deepspeed.stage: 3, or none here."),
        ("offload_optimizer", place, place == "nvme", (3,), "Set compute.deepspeed.stage: 3, or offload to the CPU."),
        ("offload_optimizer", place, place == "cpu", (1, 2, 3), "Set compute.deepspeed.stage: 2."),
    ]
    for name, value, applies, stages, hint in needs:
        if applies and stage not in stages:
            raise InputError(
                f"{name}: {value} needs ZeRO stage {' or '.join(map(str, stages))}; this job has stage {stage}",
                kind="incompatible",
                given={"stage": stage, name: value},
                allowed=[f"stage: {one}" for one in stages],
                hint=hint,
                path=f"compute.deepspeed.{name}",
            )


def _check_effects(method: MethodConfig, train: TrainConfig, compute: ComputeConfig) -> None:
    """Refuse settings that would be accepted and ignored."""
    lora_only = sorted(method.model_fields_set - {"kind"}) if method.kind == "full" else []
    offload = {compute.deepspeed.offload_optimizer, compute.deepspeed.offload_parameters}
    ignored = [
        (bool(lora_only), f"method.{''.join(lora_only[:1])}", "it belongs to LoRA, and method.kind is full"),
        (
            train.schedule == "constant" and train.min_learning_rate > 0,
            "train.min_learning_rate",
            "constant never falls",
        ),
        (compute.workers == 0 and compute.gpus_per_worker > 0, "compute.gpus_per_worker", "workers is 0"),
        (
            "nvme_path" in compute.deepspeed.model_fields_set and "nvme" not in offload,
            "compute.deepspeed.nvme_path",
            "nothing is offloaded to nvme",
        ),
    ]
    for applies, path, why in ignored:
        if applies:
            raise InputError(
                f"{path} has no effect here: {why}",
                kind="no_effect",
                allowed="settings that change something",
                hint=f"Remove {path}, or change what it depends on.",
                path=path,
            )


def _mode_reason(compute: ComputeConfig, workers: int, stage: int) -> str:
    if workers == 0:
        return "compute.workers is 0: plain torch in this process"
    chosen = "the job says so" if compute.deepspeed.stage is not None else "the default for this method"
    return f"compute.workers is {compute.workers}: Ray Train with DeepSpeed, ZeRO stage {stage} ({chosen})"


def _precision(train: TrainConfig, machine: Machine) -> Literal["fp32", "bf16", "fp16"]:
    if train.precision != "auto":
        return train.precision
    return "bf16" if machine.has_gpu and machine.has_bf16 else "fp32"


def _micro_batch_size(
    train: TrainConfig, data: DataCounts, machine: Machine, workers: int, max_length: int, packing: bool
) -> int:
    share = math.ceil(train.batch_size / workers)
    if train.micro_batch_size != "auto":
        return min(train.micro_batch_size, share)
    budget = FORWARD_TOKENS_GPU if machine.has_gpu else FORWARD_TOKENS_CPU
    return max(1, min(share, budget // max(1, max_length if packing else data.longest)))
