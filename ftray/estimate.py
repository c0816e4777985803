"""What a run will need, before anything is loaded: memory per worker, arithmetic, and with a speed, time.

Coarse on purpose: right within a factor of about two, so that a job that cannot fit is seen before it is started.
N is all weights, P the trained ones, W the workers, T tokens and M labels of a forward pass; b is bytes a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ftray.data.tokenization import TokenizedExample
from ftray.model.base import load_config, needs_own_attention
from ftray.model.config import MethodConfig
from ftray.model.lora import attach_lora
from ftray.speed import Speed
from ftray.train.deepspeed import deepspeed_config
from ftray.train.plan import Plan

FP32_BYTES = 4
ADAM_BYTES = 8
"""Two fp32 moments for each trained weight."""
LOGIT_BYTES = 12
"""For each logit: itself, its log-probability and its gradient, in fp32."""
PROCESS_BYTES = 600_000_000
"""A worker process before it holds a weight: Python, torch, transformers, PEFT; on a GPU, CUDA's context."""
ZERO3_LIVE = 1_000_000_000
"""DeepSpeed's default `stage3_max_live_parameters`: so many weights stay gathered on every worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a model that its needs follow from."""

    parameters: int
    """All weights of the base, N."""
    trained: int
    """Weights that are trained, P: those of the adapter, or all."""
    linear: int
    """Weights that every token is multiplied with; of experts, those a token is sent to."""
    head: int
    """Weights of the output head: hidden x vocabulary."""
    layers: int
    hidden: int
    attention: int
    """Width of the queries: heads x head size."""
    key_value: int
    """Width of the keys."""
    feed_forward: int
    vocabulary: int
    labels_only: bool
    """Whether the head runs at labelled positions only; else at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardLoad:
    """The largest forward pass of a worker."""

    tokens: int
    labels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes one worker needs, by what they hold; `host` is what offload moves to host memory, outside the total."""

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    activations: int
    logits: int
    process: int
    host: int

    @property
    def total(self) -> int:
        """Bytes on the device (CPU workers: in host memory)."""
        bytes_of: dict[str, int] = asdict(self)
        return sum(bytes_of.values()) - self.host

    def to_record(self) -> dict[str, int]:
        """Return the estimate as in check.json."""
        return {"total": self.total, **asdict(self)}


def measure_shape(model: str, method: MethodConfig) -> ModelShape:
    """Return the sizes of a model from its configuration, without its weights: it is built on the meta device.

    Raises InputError `unknown_target` for target modules that the model does not have.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(model)
    text: Any = config.get_text_config()
    with torch.device("meta"):
        base: Any = AutoModelForCausalLM.from_config(config)
        parameters = sum(weight.numel() for weight in base.parameters())
        linear = _linear_weights(base, text)
        trained = parameters
        if method.kind == "lora":
            adapted = attach_lora(base, method, base_name=model, seed=0)
            trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelShape(
        parameters=parameters,
        trained=trained,
        linear=linear,
        head=text.hidden_size * text.vocab_size,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        attention=heads * head_size,
        key_value=(getattr(text, "num_key_value_heads", None) or heads) * head_size,
        feed_forward=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        labels_only=bool(base._supports_attention_backend) and not needs_own_attention(config),
    )


def _linear_weights(base: Any, text: Any) -> int:
    """Count the matrices but embeddings and head. Three-dimensional ones are experts, of which a token sees a few."""
    tables = {id(module.weight) for module in base.modules() if isinstance(module, nn.Embedding)}
    head = base.get_output_embeddings()
    tables |= {id(head.weight)} if head is not None else set()
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None) or 1
    share = (getattr(text, "num_experts_per_tok", None) or experts) / experts
    matrices = [weight for weight in base.parameters() if weight.dim() >= 2 and id(weight) not in tables]
    return int(sum(weight.numel() * (share if weight.dim() == 3 else 1) for weight in matrices))


def forward_load(examples: Sequence[TokenizedExample], plan: Plan) -> ForwardLoad:
    """Return the largest forward pass there can be: the longest examples together in one micro-batch."""
    lengths = sorted((len(example.tokens) for example in examples), reverse=True)
    labels = sorted((int(np.count_nonzero(example.is_label)) for example in examples), reverse=True)
    size = plan.micro_batch_size
    if plan.packed_length is None:
        return ForwardLoad(tokens=sum(lengths[:size]), labels=sum(labels[:size]))
    # A packed micro-batch is `size` rows, but never more examples than a worker's share of the step.
    share = math.ceil(plan.batch_size / max(1, plan.min_workers))
    tokens = min(size * plan.packed_length, sum(lengths[:share]))
    return ForwardLoad(tokens=tokens, labels=min(tokens, sum(labels[:share])))


def estimate_memory(shape: ModelShape, plan: Plan, load: ForwardLoad) -> MemoryEstimate:
    """Return the bytes one worker needs at its peak.

    Weights: LoRA b·(N) for the frozen base in the run's precision and 4·P for the adapter; full 4·N, and 2·N more for
    the copies that autocast keeps in bf16 or fp16. Gradients 4·P, AdamW 8·P, and under ZeRO an fp32 copy 4·P. Stage 1
    divides the optimizer by W, stage 2 also the gradients, stage 3 also the weights, of which up to 10^9 stay gathered
    (Rajbhandari et al. 2020, arXiv:1910.02054; DeepSpeed's defaults). A rule of thumb agrees: full mixed-precision
    training takes about 18 bytes a weight, LoRA in 16 bit about 2 bytes a weight.
    Logits: 12 bytes for each of M·vocabulary (T·vocabulary where the head runs everywhere).
    """
    stage, workers = plan.stage or 0, max(1, plan.min_workers)
    run_bytes = FP32_BYTES if plan.precision == "fp32" else 2
    weights = _weight_bytes(shape, plan, run_bytes)
    kept = min(shape.parameters, ZERO3_LIVE) * weights // shape.parameters
    if stage == 3:
        weights = weights // workers + kept
    optimizer = shape.trained * (ADAM_BYTES + (FP32_BYTES if stage in (1, 2) else 0)) // (workers if stage else 1)
    host = optimizer if plan.offload_optimizer == "cpu" else 0
    if plan.offload_optimizer != "none":
        optimizer = 0
    if plan.offload_parameters != "none":
        host += weights - kept if plan.offload_parameters == "cpu" else 0
        weights = kept
    return MemoryEstimate(
        weights=weights,
        gradients=shape.trained * FP32_BYTES // (workers if stage >= 2 else 1),
        optimizer=optimizer,
        buckets=_bucket_bytes(shape, plan, stage),
        activations=_activation_bytes(shape, plan, load, run_bytes),
        logits=LOGIT_BYTES * shape.vocabulary * (load.labels if shape.labels_only else load.tokens),
        process=PROCESS_BYTES,
        host=host,
    )


def _weight_bytes(shape: ModelShape, plan: Plan, run_bytes: int) -> int:
    if plan.method == "lora":
        return shape.parameters * run_bytes + shape.trained * FP32_BYTES
    return shape.parameters * (FP32_BYTES + (run_bytes if run_bytes < FP32_BYTES else 0))


def _bucket_bytes(shape: ModelShape, plan: Plan, stage: int) -> int:
    """Return DeepSpeed's buffers for gradients under way. On a GPU they are taken whole, however small the model."""
    if stage == 0:
        return 0
    zero = deepspeed_config(plan)["zero_optimization"]
    bucket = int(zero["reduce_bucket_size"])
    if not plan.gpus_per_worker:
        # Pages of an ordinary allocation that are never written take no memory.
        bucket = min(bucket, shape.trained)
    return FP32_BYTES * bucket * (2 if zero.get("overlap_comm") else 1)


def _activation_bytes(shape: ModelShape, plan: Plan, load: ForwardLoad, run_bytes: int) -> int:
    """Return what a forward pass keeps for the backward pass.

    Our own count for a Llama layer without dropout and with fused attention, in numbers a token: two norms keep their
    input, its normalised form and their output (6·hidden), attention its queries, keys, values and output
    (2·attention + 2·key_value), the feed-forward its gate, its activation, its up projection and their product
    (4·feed_forward), the residual stream 2·hidden. Korthikanti et al. 2022 (arXiv:2205.05198) count 17·hidden for a
    GPT layer with dropout. Recomputed, one layer's worth and each layer's input are kept.
    """
    layer = 8 * shape.hidden + 2 * shape.attention + 2 * shape.key_value + 4 * shape.feed_forward
    if plan.activation_checkpointing:
        return load.tokens * run_bytes * (layer + shape.layers * shape.hidden)
    return load.tokens * run_bytes * layer * shape.layers


def training_flops(shape: ModelShape, plan: Plan, examples: Sequence[TokenizedExample]) -> float:
    """Return the floating-point operations of all training steps, evaluations not counted.

    A linear layer costs 2 operations a weight and token forward, 2 for the gradient of its input and, only where it is
    trained, 2 for its own: 4·linear for LoRA's frozen base, 6·linear for full, 6·P for the adapter. The head likewise,
    at labelled tokens only. Causal attention: 6·width·length² a layer and example, backward included (half of the
    12·width·length² of Kaplan et al. 2020, arXiv:2001.08361, since half of the pairs are masked). Activation
    checkpointing repeats the forward pass: about a third more.
    """
    passes = 4 if plan.method == "lora" else 6
    data = plan.data
    scored = data.train_labels if shape.labels_only else data.train_tokens
    each_epoch = float(passes * (shape.linear * data.train_tokens + shape.head * scored))
    each_epoch += 6 * shape.layers * shape.attention * sum(len(example.tokens) ** 2 for example in examples)
    if plan.method == "lora":
        each_epoch += 6 * shape.trained * data.train_tokens
    if plan.activation_checkpointing:
        each_epoch *= 1 + 2 / passes
    return each_epoch * plan.total_steps / plan.steps_per_epoch


def estimate_time(shape: ModelShape, plan: Plan, examples: Sequence[TokenizedExample], speed: Speed) -> dict[str, Any]:
    """Return the arithmetic of the training steps and, where the speed is known, their seconds, as in check.json."""
    flops = training_flops(shape, plan, examples)
    each = speed.flops_per_second
    seconds = flops / (each * max(1, plan.workers)) if each else None
    return {"train_flops": flops, "train_seconds": seconds, **speed.to_record()}
