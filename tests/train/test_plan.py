"""What a job becomes on its data and machine, and which settings exclude each other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.errors import InputError
from ftray.model.config import MethodConfig
from ftray.train.config import ComputeConfig, TrainConfig
from ftray.train.plan import (
    FORWARD_TOKENS_CPU,
    FORWARD_TOKENS_GPU,
    DataCounts,
    Machine,
    Plan,
    make_plan,
)

CPU = Machine(has_gpu=False, has_bf16=True)


def plan(
    *,
    rows: int = 100,
    longest: int = 64,
    machine: Machine = CPU,
    max_length: int = 512,
    packing: bool = False,
    method: dict[str, Any] | None = None,
    compute: dict[str, Any] | None = None,
    **train: Any,
) -> Plan:
    counts = DataCounts(
        train_rows=rows, train_tokens=rows * 8, train_labels=rows, longest=longest, validation_rows=10, test_rows=0
    )
    return make_plan(
        method=MethodConfig.model_validate(method or {}),
        train=TrainConfig.model_validate({"learning_rate": 1e-4, **train}),
        compute=ComputeConfig.model_validate({"workers": 0, **(compute or {})}),
        data=counts,
        machine=machine,
        max_length=max_length,
        sequence_packing=packing,
        seed=3,
        trained_parameters=1000,
    )


def refusal(**settings: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        plan(**settings)
    assert caught.value.hint
    return caught.value


# Steps


@pytest.mark.parametrize(
    ("rows", "train", "per_epoch", "total"),
    [
        (100, {}, 7, 14),
        (96, {}, 6, 12),
        (100, {"epochs": 0.5}, 7, 4),
        (100, {"epochs": 0.01}, 7, 1),
        (100, {"epochs": 3, "batch_size": 8}, 13, 39),
        (100, {"max_steps": 5}, 7, 5),
        (100, {"max_steps": 500, "epochs": 1}, 7, 500),
        (1, {"epochs": 1}, 1, 1),
        (30, {"batch_size": 10, "epochs": 0.1 + 0.2}, 3, 1),
        (100, {"batch_size": 1, "epochs": 2.2}, 100, 220),  # 100 * 2.2 is a little more than 220
    ],
)
def test_steps(rows: int, train: dict[str, Any], per_epoch: int, total: int) -> None:
    made = plan(rows=rows, **train)
    assert (made.steps_per_epoch, made.total_steps, made.schedule.total_steps) == (per_epoch, total, total)


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({}, 1),  # 3 % of 14
        ({"warmup": 0}, 0),
        ({"warmup": 0.0}, 0),
        ({"warmup": 0.5}, 7),
        ({"warmup": 5}, 5),
        ({"warmup": 1, "max_steps": 1}, 1),
    ],
)
def test_warmup_is_a_share_or_a_number_of_steps(train: dict[str, Any], steps: int) -> None:
    assert plan(**train).schedule.warmup_steps == steps


@pytest.mark.parametrize("train", [{"warmup": 14}, {"warmup": 0.99}, {"warmup": 20, "max_steps": 10}])
def test_a_warmup_as_long_as_the_run_is_refused(train: dict[str, Any]) -> None:
    error = refusal(**train)
    assert (error.kind, error.path, error.given) == ("warmup_too_long", "train.warmup", train["warmup"])


@pytest.mark.parametrize(
    ("rows", "train", "evaluate", "checkpoint"),
    [
        (1600, {}, 25, 25),  # 100 steps an epoch: 4 times an epoch
        (160_000, {}, 500, 500),  # 10,000 steps an epoch: every 500 steps
        (40, {}, 1, 1),
        (1600, {"max_steps": 10}, 10, 10),
        (1600, {"evaluate_every": 7}, 7, 7),
        (1600, {"checkpoint_every": 9}, 25, 9),
        (1600, {"evaluate_every": 7, "checkpoint_every": 14}, 7, 14),
    ],
)
def test_cadence(rows: int, train: dict[str, Any], evaluate: int, checkpoint: int) -> None:
    made = plan(rows=rows, **train)
    assert (made.evaluate_every, made.checkpoint_every) == (evaluate, checkpoint)


def test_every_checkpoint_is_evaluated_and_the_last_step_is_both() -> None:
    made = plan(max_steps=11, evaluate_every=4, checkpoint_every=6)
    steps = range(1, 12)
    assert [step for step in steps if made.evaluates_at(step)] == [4, 6, 8, 11]
    assert [step for step in steps if made.checkpoints_at(step)] == [6, 11]


# Micro-batches


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"longest": 64}, 16),
        ({"longest": FORWARD_TOKENS_CPU // 4}, 4),
        ({"longest": FORWARD_TOKENS_CPU * 2}, 1),
        ({"longest": FORWARD_TOKENS_GPU // 8, "machine": Machine(has_gpu=True, has_bf16=True)}, 8),
        ({"compute": {"workers": 3}}, 6),
        ({"packing": True, "max_length": FORWARD_TOKENS_CPU // 2}, 2),
        ({"micro_batch_size": 4}, 4),
        ({"micro_batch_size": 400}, 16),
        ({"micro_batch_size": 12, "compute": {"workers": 2}}, 8),
    ],
    ids=str,
)
def test_micro_batches(settings: dict[str, Any], size: int) -> None:
    assert plan(**settings).micro_batch_size == size


@given(st.integers(1, 64), st.integers(0, 9), st.integers(1, 10_000))
def test_a_forward_pass_is_never_larger_than_a_workers_share(batch_size: int, workers: int, longest: int) -> None:
    made = plan(batch_size=batch_size, longest=longest, compute={"workers": workers})
    assert 1 <= made.micro_batch_size <= max(1, -(-batch_size // max(1, workers)))
    assert made.sharing(max(1, workers)).micro_batch_size == made.micro_batch_size


def test_packing_fills_rows_of_the_longest_length() -> None:
    assert plan(packing=True).packed_length == 512
    assert plan().packed_length is None
    assert plan(packing=True).sharing(2).packed_length == 512


# Machine


@pytest.mark.parametrize(
    ("precision", "machine", "chosen"),
    [
        ("auto", CPU, "fp32"),
        ("auto", Machine(has_gpu=True, has_bf16=True), "bf16"),
        ("auto", Machine(has_gpu=True, has_bf16=False), "fp32"),
        ("fp16", CPU, "fp16"),
        ("fp32", Machine(has_gpu=True, has_bf16=True), "fp32"),
    ],
)
def test_precision(precision: str, machine: Machine, chosen: str) -> None:
    assert plan(precision=precision, machine=machine).precision == chosen


@pytest.mark.parametrize(
    ("method", "compute", "engine", "stage", "workers"),
    [
        ("lora", {"workers": 0}, "torch", None, (0, 0)),
        ("lora", {}, "deepspeed", 0, (1, 1)),
        ("full", {}, "deepspeed", 2, (1, 1)),
        ("lora", {"workers": 2, "deepspeed": {"stage": 3}}, "deepspeed", 3, (2, 2)),
        ("lora", {"workers": [1, 4]}, "deepspeed", 0, (1, 4)),
    ],
    ids=str,
)
def test_engine(method: str, compute: dict[str, Any], engine: str, stage: int | None, workers: tuple[int, int]) -> None:
    made = plan(method={"kind": method}, compute={"workers": 1, **compute})
    assert (made.engine, made.stage, (made.min_workers, made.workers)) == (engine, stage, workers)
    assert ("plain torch" if engine == "torch" else f"stage {stage}") in made.mode_reason


def test_the_plan_is_a_record_of_json_types() -> None:
    made = plan(compute={"workers": 2}, early_stopping={"patience": 5})
    record = made.to_record()
    assert json.loads(json.dumps(record)) == record
    assert record["schema"] == "ftray/plan/1"
    assert record["early_stopping"]["patience"] == 5
    assert record["schedule"]["peak"] == 1e-4
    assert plan(early_stopping=None).to_record()["early_stopping"] is None


# Settings that exclude each other


@pytest.mark.parametrize(
    ("settings", "kind", "path"),
    [
        ({"compute": {"workers": [4, 1]}}, "bad_value", "compute.workers"),
        ({"compute": {"workers": [1, 2, 3]}}, "bad_value", "compute.workers"),
        ({"compute": {"workers": 0, "deepspeed": {"stage": 2}}}, "no_effect", "compute.deepspeed"),
        ({"compute": {"workers": 0, "deepspeed": {"offload_optimizer": "cpu"}}}, "no_effect", "compute.deepspeed"),
        (
            {"compute": {"workers": 1, "deepspeed": {"stage": 2, "offload_parameters": "cpu"}}},
            "incompatible",
            "compute.deepspeed.offload_parameters",
        ),
        (
            {"compute": {"workers": 1, "deepspeed": {"stage": 2, "offload_optimizer": "nvme"}}},
            "incompatible",
            "compute.deepspeed.offload_optimizer",
        ),
        (
            {"compute": {"workers": 1, "deepspeed": {"stage": 0, "offload_optimizer": "cpu"}}},
            "incompatible",
            "compute.deepspeed.offload_optimizer",
        ),
        (
            {"compute": {"workers": 1, "deepspeed": {"stage": 3, "nvme_path": "/x"}}},
            "no_effect",
            "compute.deepspeed.nvme_path",
        ),
        ({"compute": {"workers": 0, "gpus_per_worker": 1.0}}, "no_effect", "compute.gpus_per_worker"),
        ({"method": {"kind": "full", "rank": 8}}, "no_effect", "method.rank"),
        ({"schedule": "constant", "min_learning_rate": 1e-5}, "no_effect", "train.min_learning_rate"),
        ({"min_learning_rate": 1e-3}, "bad_value", "train.min_learning_rate"),
    ],
    ids=str,
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, Any], kind: str, path: str) -> None:
    error = refusal(**settings)
    assert (error.kind, error.path) == (kind, path)


@pytest.mark.parametrize(
    "deepspeed",
    [
        {"stage": 1, "offload_optimizer": "cpu"},
        {"stage": 3, "offload_optimizer": "nvme", "offload_parameters": "cpu", "nvme_path": "/fast"},
    ],
    ids=str,
)
def test_offload_goes_into_the_plan(deepspeed: dict[str, Any]) -> None:
    made = plan(compute={"workers": 2, "deepspeed": deepspeed})
    assert {name: getattr(made, name) for name in deepspeed} == deepspeed


def test_full_fine_tuning_offloads_at_its_own_stage() -> None:
    made = plan(method={"kind": "full"}, compute={"workers": 2, "deepspeed": {"offload_optimizer": "cpu"}})
    assert (made.stage, made.offload_optimizer) == (2, "cpu")
