"""Rungs in tokens: after every warm-up, at the first evaluation, and beyond the longest trial."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ftray.model.config import MethodConfig
from ftray.space import Range
from ftray.sweep.rungs import grace_tokens, most_tokens
from ftray.train.config import ComputeConfig, TrainConfig
from ftray.train.plan import DataCounts, Machine, Plan, make_plan

TOKENS_PER_STEP = 300
STEPS_PER_EPOCH = 5


def plan(**train: Any) -> Plan:
    return make_plan(
        method=MethodConfig(),
        train=TrainConfig.model_validate({"learning_rate": 1e-3, "batch_size": 8, **train}),
        compute=ComputeConfig(workers=0),
        data=DataCounts(
            train_rows=8 * STEPS_PER_EPOCH,
            train_tokens=TOKENS_PER_STEP * STEPS_PER_EPOCH,
            train_labels=50,
            longest=40,
            validation_rows=1,
            test_rows=1,
        ),
        machine=Machine(has_gpu=False, has_bf16=True),
        max_length=64,
        sequence_packing=False,
        seed=0,
        trained_parameters=1,
    )


def test_the_first_rung_is_the_first_evaluation() -> None:
    grace = grace_tokens(plan(max_steps=20, evaluate_every=4, warmup=2), {})
    assert 3 * TOKENS_PER_STEP < grace < 4 * TOKENS_PER_STEP


def test_a_long_warm_up_puts_it_off() -> None:
    assert grace_tokens(plan(max_steps=20, evaluate_every=4, warmup=7), {}) >= 7 * TOKENS_PER_STEP


@given(warmup=st.integers(0, 19), other=st.integers(1, 30), epochs=st.floats(1.0, 9.0))
def test_no_trial_is_stopped_in_its_warm_up_nor_at_its_end(warmup: int, other: int, epochs: float) -> None:
    one = plan(max_steps=20, evaluate_every=4, warmup=warmup)
    space = {"warmup": [other], "epochs": Range(uniform=[0.5, epochs])}
    assert grace_tokens(one, space) >= TOKENS_PER_STEP * max(warmup, other)
    assert most_tokens(one, space) > TOKENS_PER_STEP * max(20, epochs * STEPS_PER_EPOCH)
