"""Advice outside the usual ranges: with the number and its source, and silence inside them."""

from __future__ import annotations

from typing import Any

import pytest

from ftray.model.config import MethodConfig
from ftray.ranges import Advice, advise
from ftray.train.config import ComputeConfig, TrainConfig
from ftray.train.plan import DataCounts, Machine, make_plan


def advice(method: dict[str, Any], train: dict[str, Any], data: dict[str, int], parameters: int) -> list[Advice]:
    counts = {
        "train_rows": 1000, "train_tokens": 50_000, "train_labels": 5000, "longest": 60, "validation_rows": 10,
        "test_rows": 10,
    }  # fmt: skip
    lora, recipe = MethodConfig(**method), TrainConfig(**{"learning_rate": 1e-4, **train})
    plan = make_plan(
        method=lora,
        train=recipe,
        compute=ComputeConfig(workers=0),
        data=DataCounts(**{**counts, **data}),
        machine=Machine(has_gpu=False, has_bf16=False),
        max_length=64,
        sequence_packing=False,
        seed=0,
        trained_parameters=1000,
    )
    return advise(lora, recipe, plan, train_field="data.train", parameters=parameters)


def test_the_defaults_are_usual() -> None:
    assert advice({}, {}, {}, 10**9) == []
    assert advice({"kind": "full"}, {"learning_rate": 2e-5}, {}, 10**9) == []
    assert advice({"rank": 64, "alpha": 128.0}, {"learning_rate": 3e-4, "warmup": 0.1, "epochs": 5.0}, {}, 10**9) == []
    assert advice({}, {}, {"train_rows": 100}, 10**9) == []  # 3 % of few steps is rounded up to a whole one


@pytest.mark.parametrize(
    ("field", "method", "train", "data"),
    [
        ("train.learning_rate", {}, {"learning_rate": 1e-3}, {}),
        ("train.learning_rate", {}, {"learning_rate": 1e-6}, {}),
        ("train.learning_rate", {"kind": "full"}, {"learning_rate": 1e-4}, {}),
        ("train.epochs", {}, {"epochs": 6.0}, {}),
        ("train.epochs", {}, {"epochs": 0.5}, {}),
        ("train.max_steps", {}, {"max_steps": 10}, {}),
        ("train.warmup", {}, {"warmup": 0.0}, {}),
        ("train.warmup", {}, {"warmup": 50}, {}),
        ("train.batch_size", {}, {"batch_size": 2}, {}),
        ("train.batch_size", {}, {"batch_size": 64}, {}),
        ("train.weight_decay", {}, {"weight_decay": 0.5}, {}),
        ("method.rank", {"rank": 128, "alpha": 256.0}, {}, {}),
        ("method.alpha", {"alpha": 4.0}, {}, {}),
        ("method.alpha", {"alpha": 128.0}, {}, {}),
        ("data.train", {}, {}, {"train_rows": 99}),
        ("data.train", {}, {}, {"train_labels": 300}),
    ],
)
def test_outside_a_range_there_is_one_advice_with_number_and_source(
    field: str, method: dict[str, Any], train: dict[str, Any], data: dict[str, int]
) -> None:
    (found,) = advice(method, train, data, 10**9)
    record = found.to_record()
    assert set(record) == {"field", "given", "usual", "message", "source"}
    assert record["field"] == field
    low, high = record["usual"]
    given = record["given"]
    if (
        field != "train.max_steps"
        and not (field == "train.warmup" and isinstance(given, int))
        and field != "method.alpha"
    ):
        assert (low is not None and given < low) or (high is not None and given > high)
    assert record["source"]
    assert record["message"]


def test_a_small_model_may_need_a_higher_learning_rate() -> None:
    (found,) = advice({}, {"learning_rate": 1e-3}, {}, 3_000_000)
    assert "3M parameters often needs more" in found.message
    assert "1e-4 to 3e-4" in found.message


def test_alpha_scales_otherwise_with_rslora() -> None:
    assert advice({"alpha": 128.0, "rslora": True}, {}, {}, 10**9) == []
