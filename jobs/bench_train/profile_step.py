"""Where a training step of ftray spends its time: one in-process training under torch.profiler.

Kernels are told apart by name and by the shapes they work on; what is left of the step is Python, dispatch, laying out
batches, and the profiler itself.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ftray.data.collate import collate
from ftray.job import load_job, run_directory, run_id_of
from ftray.model.base import load_config
from ftray.model.forward import layout_for
from ftray.preflight import check
from ftray.train.batches import share_out
from ftray.train.memory import keep_freed_memory
from ftray.train.state import Training
from ftray.work import build_engine, build_model

WARMUP_STEPS = 5
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
ATTENTION = ("scaled_dot_product", "index_select", "index_copy_")
OPTIMIZER = ("adamw", "_foreach_norm", "linalg_vector_norm", "_foreach_mul_", "clip_grad", "aten::stack")
LOSS = ("log_softmax", "nll_loss", "cross_entropy")
BOOKKEEPING = (
    "aten::view", "aten::t", "aten::transpose", "aten::as_strided", "aten::empty", "aten::empty_strided",
    "aten::detach", "aten::reshape", "aten::_unsafe_view", "aten::unsqueeze", "aten::expand", "aten::slice",
    "aten::select", "aten::alias", "aten::to", "aten::_to_copy", "aten::linear", "aten::matmul", "aten::result_type",
    "aten::item", "aten::empty_like", "aten::new_zeros", "aten::zeros", "aten::_local_scalar_dense",
    "aten::resolve_conj",
)  # fmt: skip
REST = "Python, dispatch, batches"
PARTS = (
    "frozen layers",
    "LoRA",
    "attention",
    "norms, rotary, activations, residuals",
    "head and loss",
    "clipping and AdamW",
    REST,
)


def profile_step(job_file: Path, *, steps: int, threads: int) -> dict[str, Any]:
    """Return milliseconds per step of each part."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _profile(job_file, steps=steps, threads=threads)
    finally:
        torch.set_num_threads(before)


def _profile(job_file: Path, *, steps: int, threads: int) -> dict[str, Any]:
    keep_freed_memory()
    loaded = load_job(job_file, sets=["compute.workers=0"])
    run_id = run_id_of(loaded)
    prepared = check(loaded, run_id=run_id, run=run_directory(loaded, run_id))
    engine = build_engine(build_model(loaded.job, prepared.plan), prepared.plan)
    training = Training(prepared.plan, prepared.datasets.train)
    layout = layout_for(engine.model.get_base_model())
    engine.model.train()

    def step() -> int:
        inputs = training.upcoming()
        (batches,) = share_out(inputs.examples, prepared.plan.sharing(1))
        losses = engine.accumulate([collate(batch, layout) for batch in batches], normaliser=inputs.num_labels)
        loss = sum(float(part.sum()) for part in losses) / inputs.num_labels
        training.advance(inputs, loss=loss, grad_norm=engine.step(inputs.learning_rate))
        return inputs.num_tokens

    for _ in range(WARMUP_STEPS):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    unprofiled = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        started = time.perf_counter()
        tokens = sum(step() for _ in range(steps))
        profiled = time.perf_counter() - started

    rank = loaded.job.method.rank
    vocabulary = load_config(loaded.job.model).get_text_config().vocab_size
    spent: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        spent[_part(event.name, event.input_shapes, rank=rank, vocabulary=vocabulary)] += event.self_cpu_time_total
    milliseconds = {part: spent[part] / 1000 / steps for part in PARTS if part != REST}
    whole = 1000 * profiled / steps
    milliseconds[REST] = whole - sum(milliseconds.values())
    return {
        "threads": threads,
        "steps": steps,
        "tokens_per_step": tokens / steps,
        "step_milliseconds": whole,
        "unprofiled_milliseconds": 1000 * unprofiled / steps,
        "parts": [
            {"part": part, "milliseconds": spent_here, "share": spent_here / whole}
            for part, spent_here in milliseconds.items()
        ],
    }


def _part(name: str, shapes: Sequence[Any], *, rank: int, vocabulary: int) -> str:
    sizes = {size for shape in shapes if isinstance(shape, list | tuple) for size in shape}
    if not name.startswith("aten::") or name in BOOKKEEPING:
        return REST
    if any(word in name for word in OPTIMIZER):
        return "clipping and AdamW"
    if vocabulary in sizes or any(word in name for word in LOSS):
        return "head and loss"
    if any(word in name for word in ATTENTION):
        return "attention"
    if name in PRODUCTS:
        return "LoRA" if rank in sizes else "frozen layers"
    return "norms, rotary, activations, residuals"
