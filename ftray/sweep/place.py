"""How many copies of the base the cluster holds: a trainer for each GPU, or for each CPU that has memory for one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from ftray.train.cluster import Resources

PROCESS_BYTES = 700 * 2**20
"""A trainer without its base: Python, torch, transformers, the rows."""
MEMORY_SHARE = 0.8
"""Of a node's memory that trainers may take; trials and batches need some, too."""
MOST_SLOTS = 32
WAVES = 2
"""Trials run in so many waves at least, where later ones depend on earlier ones."""
BYTES_PER_WEIGHT = {"fp32": 4, "bf16": 2, "fp16": 2}


def base_bytes(parameters: int, precision: str) -> int:
    """Return the bytes of a frozen base."""
    return parameters * BYTES_PER_WEIGHT[precision]


def trainers_that_fit(nodes: Sequence[Resources], *, base: int) -> int:
    """Return how many trainers these nodes hold, at least 1: what else would train is not known better.

    `base`: bytes of the base. A node's resources are Ray's: CPU, GPU, and memory in bytes.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if gpus:
        return gpus
    fitting = 0
    for node in nodes:
        by_memory = MEMORY_SHARE * node["memory"] / (base + PROCESS_BYTES) if "memory" in node else float("inf")
        fitting += int(min(float(node.get("CPU", 0)), by_memory))
    return max(1, fitting)


def num_trainers(wanted: int | Literal["auto"], nodes: Sequence[Resources], *, base: int, num_trials: int) -> int:
    """Return how many trainers a campaign starts: no more than fit, than trials, or than the job says."""
    fitting = trainers_that_fit(nodes, base=base)
    return min(num_trials, fitting if wanted == "auto" else min(wanted, fitting))


def shortage(asked: int | Literal["auto"], *, held: int, num_trials: int) -> str | None:
    """Return what is said where there is room for fewer trainers (`held`) than the job asks for; else None."""
    if asked == "auto" or held >= min(asked, num_trials):
        return None
    return f"sweep.workers asks for {asked}: there is room for {held}"


def most_slots(wanted: int | Literal["auto"], *, num_trials: int, workers: int, learns: bool) -> int:
    """Return how many trials a trainer can hold: as many as the job says, else as many as could come to it.

    `learns`: whether trials that have ended decide about others. These need some that have ended before they begin.
    """
    if wanted != "auto":
        return wanted
    return min(MOST_SLOTS, math.ceil(num_trials / workers / (WAVES if learns else 1)))
