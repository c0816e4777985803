"""The estimates against a real model: counts are exact, bytes and operations within a stated factor."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ftray.data.collate import collate
from ftray.data.tokenization import TokenizedExample
from ftray.errors import InputError
from ftray.estimate import (
    PROCESS_BYTES,
    ForwardLoad,
    ModelShape,
    estimate_memory,
    estimate_time,
    forward_load,
    measure_shape,
    training_flops,
)
from ftray.model.base import load_model
from ftray.model.config import MethodConfig
from ftray.model.forward import label_losses, layout_for
from ftray.model.lora import attach_lora
from ftray.quickstart.pretrain import tiny_base
from ftray.speed import Speed, cpu_speed, gpu_speed
from ftray.train.config import ComputeConfig, DeepSpeedConfig, TrainConfig
from ftray.train.engine import OptimizerSettings, TorchEngine
from ftray.train.plan import DataCounts, Machine, Plan, make_plan

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA, FULL = MethodConfig(rank=8, alpha=16), MethodConfig(kind="full")
BYTES_FACTOR, OPERATIONS_FACTOR = 1.3, 1.5
"""How far a step may be from its estimate, either way. In LoRA's first layer nothing flows back into the frozen
embeddings, which shows in a model of two layers."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("estimate") / "model"
    tiny_base(folder, seed=0)
    return str(folder)


def examples(count: int, length: int) -> list[TokenizedExample]:
    rng = np.random.default_rng(0)
    return [
        TokenizedExample(
            tokens=rng.integers(3, 500, length).astype(np.int32),
            is_label=np.arange(length) >= length // 2,
            prompt_length=length // 2,
            dataset="train",
            row=row,
            digest=str(row),
        )
        for row in range(count)
    ]


def plan_of(method: MethodConfig, rows: list[TokenizedExample], *, max_length: int = 256, **settings: Any) -> Plan:
    lengths = [len(one.tokens) for one in rows]
    deepspeed = DeepSpeedConfig(**{key: settings.pop(key) for key in ("stage", "offload_optimizer") if key in settings})
    packing = settings.pop("sequence_packing", False)
    compute = ComputeConfig(
        workers=settings.pop("workers", 0), gpus_per_worker=settings.pop("gpus_per_worker", 0.0), deepspeed=deepspeed
    )
    return make_plan(
        method=method,
        train=TrainConfig(learning_rate=1e-4, batch_size=4, warmup=0.0, **settings),
        compute=compute,
        data=DataCounts(
            train_rows=len(rows),
            train_tokens=sum(lengths),
            train_labels=sum(int(one.is_label.sum()) for one in rows),
            longest=max(lengths),
            validation_rows=1,
            test_rows=0,
        ),
        machine=Machine(has_gpu=False, has_bf16=True),
        max_length=max_length,
        sequence_packing=packing,
        seed=0,
        trained_parameters=2_000_000,
    )


def engine_of(model: str, method: MethodConfig) -> TorchEngine:
    base: torch.nn.Module = load_model(model)
    if method.kind == "lora":
        base = attach_lora(load_model(model), method, base_name=model, seed=0)
    settings = OptimizerSettings(weight_decay=0.0, max_grad_norm=1.0, label_smoothing=0.0, precision="fp32")
    return TorchEngine(base, settings, device=torch.device("cpu"))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_parameters_are_counted_exactly_without_loading_weights(model: str, targets: Any) -> None:
    method = MethodConfig(rank=8, target_modules=targets)
    shape = measure_shape(model, method)
    base = load_model(model)
    adapted = attach_lora(load_model(model), method, base_name=model, seed=0)
    assert shape.parameters == base.num_parameters()
    assert shape.trained == sum(one.numel() for one in adapted.parameters() if one.requires_grad)
    assert measure_shape(model, FULL).trained == base.num_parameters()
    norms = sum(one.numel() for one in base.parameters() if one.dim() == 1)
    assert shape.linear + shape.head + norms == shape.parameters  # the head is tied
    assert shape.labels_only


def test_unknown_target_modules_are_refused_before_anything_runs(model: str) -> None:
    with pytest.raises(InputError, match="no layer of the model is named 'q_porj'") as caught:
        measure_shape(model, MethodConfig(target_modules=["q_porj"]))
    assert caught.value.kind == "unknown_target"


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
def test_a_steps_bytes_are_within_the_stated_factor(model: str, method: MethodConfig) -> None:
    rows = examples(4, 64)
    plan = plan_of(method, rows)
    shape = measure_shape(model, method)
    estimate = estimate_memory(shape, plan, forward_load(rows, plan))
    engine = engine_of(model, method)
    batch = collate(rows, "flat")
    weights = {one.data_ptr() for one in engine.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = label_losses(engine.model, batch).sum()
    loss.backward()
    gradients = sum(one.grad.nbytes for one in engine.model.parameters() if one.grad is not None)
    engine.step(1e-4)
    assert estimate.weights == sum(one.nbytes for one in engine.model.parameters())
    assert estimate.gradients == gradients
    assert estimate.optimizer == pytest.approx(engine.optimizer_bytes(), rel=0.01)
    # Of the three numbers a logit takes, the forward pass keeps one.
    measured = sum(kept.values())
    assert measured / BYTES_FACTOR < estimate.activations + estimate.logits / 3 < measured * BYTES_FACTOR
    assert estimate.total == sum(
        [estimate.weights, estimate.gradients, estimate.optimizer, estimate.activations, estimate.logits, PROCESS_BYTES]
    )


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
def test_operations_are_within_the_stated_factor(model: str, method: MethodConfig) -> None:
    rows = examples(4, 96)
    plan = plan_of(method, rows, epochs=1.0)
    engine = engine_of(model, method)
    with FlopCounterMode(display=False) as counter:
        label_losses(engine.model, collate(rows, layout_for(load_model(model)))).sum().backward()
    estimated = training_flops(measure_shape(model, method), plan, rows)
    assert counter.get_total_flops() / OPERATIONS_FACTOR < estimated < counter.get_total_flops() * OPERATIONS_FACTOR


def test_operations_grow_with_the_steps_and_with_recomputation(model: str) -> None:
    rows = examples(8, 32)
    shape = measure_shape(model, LORA)
    once = training_flops(shape, plan_of(LORA, rows, epochs=1.0), rows)
    assert training_flops(shape, plan_of(LORA, rows, epochs=3.0), rows) == pytest.approx(3 * once)
    again = training_flops(shape, plan_of(LORA, rows, epochs=1.0, activation_checkpointing=True), rows)
    assert again == pytest.approx(1.5 * once)
    full = measure_shape(model, FULL)
    ratio = training_flops(full, plan_of(FULL, rows, activation_checkpointing=True), rows)
    assert ratio == pytest.approx(4 / 3 * training_flops(full, plan_of(FULL, rows), rows))


BIG = ModelShape(
    parameters=8_000_000_000, trained=8_000_000_000, linear=7_000_000_000, head=500_000_000, layers=32, hidden=4096,
    attention=4096, key_value=1024, feed_forward=14336, vocabulary=128_000, labels_only=True,
)  # fmt: skip
LOAD = ForwardLoad(tokens=4096, labels=512)


def test_zero_stages_share_what_they_share() -> None:
    rows = examples(8, 32)
    shared = {
        stage: estimate_memory(BIG, plan_of(FULL, rows, workers=4, gpus_per_worker=1.0, stage=stage), LOAD)
        for stage in (0, 1, 2, 3)
    }
    assert shared[0].optimizer == 8 * BIG.trained
    assert shared[1].optimizer == 3 * BIG.trained  # two moments and a copy of the weights, over 4 workers
    assert (shared[1].gradients, shared[2].gradients) == (4 * BIG.trained, BIG.trained)
    assert shared[3].weights < shared[2].weights / 2
    assert shared[0].total > shared[1].total > shared[2].total > shared[3].total
    assert shared[0].buckets == 0
    assert shared[2].buckets >= 4 * 10**6  # whatever bucket the engine asks DeepSpeed for


def test_offload_moves_the_optimizer_to_the_host() -> None:
    plan = plan_of(FULL, examples(8, 32), workers=2, stage=2, offload_optimizer="cpu")
    estimate = estimate_memory(BIG, plan, LOAD)
    assert estimate.optimizer == 0
    assert estimate.host == 12 * BIG.trained // 2


def test_precision_packing_and_checkpointing_change_the_bytes() -> None:
    rows = examples(8, 32)
    lora = dataclasses.replace(BIG, trained=40_000_000)
    half = estimate_memory(lora, plan_of(LORA, rows, precision="bf16"), LOAD)
    single = estimate_memory(lora, plan_of(LORA, rows, precision="fp32"), LOAD)
    assert half.weights == 2 * BIG.parameters + 4 * lora.trained  # about twice the billions of parameters, in GB
    assert half.activations * 2 == single.activations
    recomputed = estimate_memory(lora, plan_of(LORA, rows, precision="bf16", activation_checkpointing=True), LOAD)
    assert recomputed.activations < half.activations / 10
    packed = plan_of(LORA, rows, sequence_packing=True, micro_batch_size=2)
    assert forward_load(rows, packed) == ForwardLoad(tokens=4 * 32, labels=4 * 16)  # a step has no more than 4 examples
    longer = examples(8, 200)
    assert forward_load(longer, plan_of(LORA, longer, sequence_packing=True, micro_batch_size=2)).tokens == 2 * 256
    assert forward_load([*rows, *examples(1, 60)], plan_of(LORA, rows)).tokens == 60 + 3 * 32


def test_time_follows_speed_and_an_unknown_speed_gives_none(model: str) -> None:
    rows = examples(8, 32)
    shape = measure_shape(model, LORA)
    plan = plan_of(LORA, rows, workers=2)
    record = estimate_time(shape, plan, rows, Speed(flops_per_second=1e9, assumption="given"))
    assert record["train_seconds"] == pytest.approx(record["train_flops"] / 2e9)
    assert estimate_time(shape, plan, rows, gpu_speed("NVIDIA Unheard Of", "bf16"))["train_seconds"] is None


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125), ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("Tesla T4", 65),
    ],
)  # fmt: skip
def test_gpus_are_known_by_name(name: str, half: float) -> None:
    speed = gpu_speed(name, "bf16")
    assert speed.flops_per_second == pytest.approx(0.4 * half * 1e12)
    slower = gpu_speed(name, "fp32").flops_per_second
    assert slower is not None
    assert slower < 0.4 * half * 1e12


def test_the_cpu_is_measured_and_its_threads_left_as_they_were() -> None:
    before = torch.get_num_threads()
    speed = cpu_speed("fp32", rows=64, inner=64, columns=128, threads=1)
    assert speed.flops_per_second is not None
    assert speed.flops_per_second > 1e6
    assert torch.get_num_threads() == before
