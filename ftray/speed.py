"""How fast a worker computes: a CPU is measured for a moment, a GPU is looked up by name. An unknown one is None."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ftray.train.plan import Plan

CPU_UTILISATION = 0.5
"""Share of the speed of large matrix products that a whole training step reaches."""
GPU_UTILISATION = 0.4
MEASURED_SECONDS = 0.05
MOST_ROWS, MOST_COLUMNS = 1024, 2048
"""Largest product that is measured: enough to fill a CPU, small enough to be over at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """A GPU by a part of its name, and its dense peaks in TFLOP/s as its maker states them."""

    name: str
    half: float
    single: float


ACCELERATORS = (
    Accelerator(name="B200", half=2250, single=75),
    Accelerator(name="H200", half=989, single=67),
    Accelerator(name="H100 PCIe", half=756, single=51),
    Accelerator(name="H100", half=989, single=67),
    Accelerator(name="A100", half=312, single=19.5),
    Accelerator(name="L40S", half=362, single=91.6),
    Accelerator(name="L4", half=121, single=30.3),
    Accelerator(name="A10G", half=70, single=35),
    Accelerator(name="A10", half=125, single=31.2),
    Accelerator(name="V100", half=125, single=15.7),
    Accelerator(name="T4", half=65, single=8.1),
    Accelerator(name="RTX 4090", half=165, single=82.6),
    Accelerator(name="RTX 3090", half=71, single=35.6),
    Accelerator(name="MI300X", half=1307, single=163),
)
"""Looked through in order: longer names before the shorter ones they contain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Operations a second that one worker's training step reaches; None when nobody knows, and the reason."""

    flops_per_second: float | None
    assumption: str

    def to_record(self) -> dict[str, Any]:
        """Return the speed as in check.json."""
        return asdict(self)


def gpu_speed(name: str, precision: str) -> Speed:
    """Return the speed of a GPU by the name torch gives it."""
    known = next((one for one in ACCELERATORS if one.name.lower() in name.lower()), None)
    if known is None:
        return Speed(flops_per_second=None, assumption=f"the speed of {name} is not known")
    peak = known.single if precision == "fp32" else known.half
    assumption = f"{GPU_UTILISATION:.0%} of {known.name}'s {peak:g} TFLOP/s ({precision})"
    return Speed(flops_per_second=peak * 1e12 * GPU_UTILISATION, assumption=assumption)


def worker_speed(plan: Plan, *, rows: int, inner: int, columns: int, here: bool) -> Speed:
    """Return the speed of one of the plan's workers; `here` says whether it runs on this machine.

    On a CPU a product [rows, inner] x [inner, columns] is measured: the model's feed-forward layer.
    """
    if plan.gpus_per_worker or (plan.engine == "torch" and torch.cuda.is_available()):
        if here and torch.cuda.is_available():
            return gpu_speed(torch.cuda.get_device_name(0), plan.precision)
        return Speed(flops_per_second=None, assumption="the cluster's GPUs are not known here")
    most = os.cpu_count() or 1
    threads = torch.get_num_threads() if plan.engine == "torch" else max(1, int(plan.cpus_per_worker))
    speed = cpu_speed(plan.precision, rows=rows, inner=inner, columns=columns, threads=min(threads, most))
    if here:
        return speed
    return Speed(
        flops_per_second=speed.flops_per_second, assumption=f"{speed.assumption}, as if the cluster were alike"
    )


def cpu_speed(precision: str, *, rows: int, inner: int, columns: int, threads: int) -> Speed:
    """Measure a matrix product for about 50 ms."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    rows, inner, columns = min(rows, MOST_ROWS), min(inner, MOST_COLUMNS), min(columns, MOST_COLUMNS)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
        out = left @ right  # the first product sets things up
        runs, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < MEASURED_SECONDS or runs == 0:
            torch.mm(left, right, out=out)
            runs += 1
    finally:
        torch.set_num_threads(before)
    reached = 2.0 * rows * inner * columns * runs / elapsed
    assumption = (
        f"{CPU_UTILISATION:.0%} of {reached / 1e9:.3g} GFLOP/s, measured just now on {threads} "
        f"{'threads' if threads > 1 else 'thread'} of this machine"
    )
    return Speed(flops_per_second=reached * CPU_UTILISATION, assumption=assumption)
