"""A random Llama, random rows and a few steps of training, for the tests of this room and their rank processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ftray.data.collate import Layout, collate
from ftray.data.tokenization import TokenizedExample
from ftray.model import attention
from ftray.model.config import MethodConfig
from ftray.model.lora import attach_lora
from ftray.train.batches import share_out
from ftray.train.config import ComputeConfig, DeepSpeedConfig, TrainConfig
from ftray.train.engine import Engine, trainable
from ftray.train.plan import DataCounts, Machine, Plan, make_plan
from ftray.train.state import Progress, Training
from ftray.work import build_engine

VOCABULARY = 96
MAX_LENGTH = 48


@dataclass(frozen=True)
class Steps:
    """What a few optimizer steps gave."""

    training: Training
    losses: list[float]
    norms: list[float]


def example(
    tokens: Sequence[int], labels: Sequence[bool] | None = None, *, row: int = 0, digest: str | None = None
) -> TokenizedExample:
    """Return a row whose second half is learned, or the given labels."""
    half = len(tokens) // 2
    is_label = [position >= max(1, half) for position in range(len(tokens))] if labels is None else labels
    return TokenizedExample(
        tokens=np.asarray(tokens, dtype=np.int32),
        is_label=np.asarray(is_label, dtype=bool),
        prompt_length=half,
        dataset="train",
        row=row,
        digest=digest or hashlib.sha256(f"{row}".encode()).hexdigest(),
    )


def examples(count: int = 37, *, seed: int = 0) -> list[TokenizedExample]:
    """Return rows of 6 to 40 random tokens."""
    generator = np.random.default_rng(seed)
    return [
        example(generator.integers(3, VOCABULARY, size=int(generator.integers(6, 40))).tolist(), row=row)
        for row in range(count)
    ]


def base_model(seed: int = 0) -> LlamaForCausalLM:
    """Return a random Llama with grouped queries and an output head of its own."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=MAX_LENGTH, initializer_range=0.1, use_cache=False,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    attention.register()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.set_attn_implementation(attention.NAME)
    return model


def model(method: str = "lora", **options: Any) -> nn.Module:
    """Return what is trained: the base with an adapter, or all of it."""
    if method == "full":
        return base_model()
    return attach_lora(base_model(), MethodConfig(rank=4, alpha=8, **options), base_name="tiny", seed=0)


def plan(
    method: str = "lora",
    *,
    workers: int = 0,
    stage: int | None = None,
    offload_optimizer: str = "none",
    offload_parameters: str = "none",
    sequence_packing: bool = False,
    train_rows: int = 37,
    seed: int = 0,
    **train: Any,
) -> Plan:
    """Return the plan of a short training; keywords are those of the job's `train` section."""
    deepspeed = DeepSpeedConfig.model_validate(
        {"stage": stage, "offload_optimizer": offload_optimizer, "offload_parameters": offload_parameters}
    )
    recipe = {"learning_rate": 1e-3, "batch_size": 8, "max_steps": 20, "weight_decay": 0.1, "precision": "fp32"}
    return make_plan(
        method=MethodConfig.model_validate({"kind": method}),
        train=TrainConfig.model_validate(recipe | train),
        compute=ComputeConfig(workers=workers, deepspeed=deepspeed),
        data=DataCounts(
            train_rows=train_rows, train_tokens=1, train_labels=1, longest=40, validation_rows=1, test_rows=1
        ),
        machine=Machine(has_gpu=False, has_bf16=True),
        max_length=MAX_LENGTH,
        sequence_packing=sequence_packing,
        seed=seed,
        trained_parameters=sum(parameter.numel() for parameter in trainable(model(method)).values()),
    )


def engine(method: str = "lora", **changes: Any) -> Engine:
    """Return the engine of `plan(method, **changes)` with a fresh model."""
    return build_engine(model(method), plan(method, **changes))


def run(
    engine: Engine,
    plan: Plan,
    steps: int,
    *,
    rows: Sequence[TokenizedExample] | None = None,
    start: Progress | None = None,
    layout: Layout = "flat",
) -> Steps:
    """Do optimizer steps as the loop does them."""
    training = Training(plan, rows if rows is not None else examples())
    if start is not None:
        training.restore(start)
    losses, norms = [], []
    engine.model.train()
    for _ in range(steps):
        inputs = training.upcoming()
        shares = share_out(inputs.examples, plan.sharing(engine.group.size))
        batches = [collate(one, layout) for one in shares[engine.group.rank]]
        torch.manual_seed(inputs.seed + engine.group.rank)
        parts = engine.accumulate(batches, normaliser=inputs.num_labels)
        (total,) = engine.group.total([float(sum(part.double().sum().item() for part in parts))])
        norm = engine.step(inputs.learning_rate)
        training.advance(inputs, loss=total / inputs.num_labels, grad_norm=norm)
        losses.append(total / inputs.num_labels)
        norms.append(norm)
    return Steps(training, losses, norms)


def state(engine: Engine) -> dict[str, Tensor]:
    """Return a copy of every trained weight and both of its moments (collective)."""
    copied = {}
    for one in engine.states():
        copied[one.name] = one.weight.detach().clone()
        for index, moment in enumerate(one.moments or ()):
            copied[f"{one.name}|{index}"] = moment.detach().clone()
    return copied


def is_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Return whether two states are the same bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
