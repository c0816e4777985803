"""The Ray that workers stand on: connecting to it, what its nodes hold, and waiting for nodes of its autoscaler."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from ftray.errors import InputError
from ftray.train.address import ray_address, refused, require_answer
from ftray.train.plan import Plan

OBJECT_STORE_BYTES = 300 * 2**20
"""Embedded Ray's object store: records and results pass through it, never weights or data."""
Resources = Mapping[str, float]
"""What a node has, by Ray's names: CPU, GPU."""
Say = Callable[[str], None]
WAIT_VARIABLE = "FTRAY_WAIT_FOR_NODES"
"""Seconds that a command waits for nodes; without it only those that are up count."""
WAITING = f"{WAIT_VARIABLE}=SECONDS waits for them"
LOOK_SECONDS = 1.0
MORE_SECONDS = 120.0
"""How long nodes that a job can do without may keep it waiting."""


def require_place(plan: Plan, *, wanted: int | None = None, say: Say) -> int:
    """Return how many workers there are nodes for. Raises InputError `too_few_resources` when they are too few.

    Looks at the running Ray, or the cluster of RAY_ADDRESS, or this machine, where Ray would be started. With
    FTRAY_WAIT_FOR_NODES it waits for nodes that a cluster's autoscaler adds.

    `wanted`: workers that nodes are asked for, where more than the plan's fewest are of use. `say` is told of a wait.
    """
    seconds = seconds_to_wait()
    if ray_address() is None:
        if ray.is_initialized():
            return require_resources(plan, cluster_nodes(), "the Ray cluster")
        return require_resources(plan, [{"CPU": float(os.cpu_count() or 1), "GPU": float(_gpus())}], "this machine")
    connect()
    ask_for_nodes(plan, max(wanted or 0, plan.min_workers), seconds=seconds, say=say)
    where = f"after {seconds:g} s the Ray cluster" if seconds else "the Ray cluster"
    advice = "" if seconds else f" Where an autoscaler adds nodes, {WAITING}."
    return require_resources(plan, cluster_nodes(), where, advice=advice)


def seconds_to_wait() -> float:
    """Return how long to wait for nodes of an autoscaler. Raises InputError for what is no number of seconds."""
    given = os.environ.get(WAIT_VARIABLE) or "0"
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(
            f"{WAIT_VARIABLE}={given} is no number of seconds",
            kind="bad_value",
            given=given,
            allowed="seconds, 0 or more",
            hint=f"Set {WAIT_VARIABLE}=600 to wait ten minutes for nodes, or unset it.",
        )
    return seconds


def ask_for_nodes(plan: Plan, wanted: int, *, seconds: float, say: Say) -> None:
    """Wait until the nodes hold so many of the plan's workers, `seconds` at most.

    Beyond the fewest of the plan, only as long as nodes come. Each worker is asked for with a placement group of its
    own, which every autoscaler sees (one for all would be taken or left as a whole); they are given back when the nodes
    are there. An autoscaler leaves nodes that nobody uses for a while, long enough to start workers on them.
    """
    there = fitting_workers(plan, cluster_nodes())
    if there >= wanted or not seconds:
        return
    say(f"The cluster has nodes for {there} of {wanted} workers: waiting up to {seconds:g} s for its autoscaler's")
    now = time.monotonic()
    until, patience = now + seconds, now + MORE_SECONDS
    groups = [placement_group([worker_resources(plan)]) for _ in range(wanted)]
    try:
        while there < wanted and now < (until if there < plan.min_workers else min(until, patience)):
            time.sleep(LOOK_SECONDS)
            before, there, now = there, fitting_workers(plan, cluster_nodes()), time.monotonic()
            if there > before:
                patience = now + MORE_SECONDS
    finally:
        for group in groups:
            remove_placement_group(group)


def connect() -> bool:
    """Connect to RAY_ADDRESS or start Ray in this process, unless there is one; return whether there was none.

    Raises InputError `bad_address`, `no_cluster`, `bad_token` or `version_mismatch`.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    address = ray_address()
    if address is not None:
        require_answer(address)
    else:
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # Without an address Ray would join one that was started on this machine before.
        ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        if address is None:
            raise
        raise refused(address, error) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray's own handlers abort the process, without a result and without ending what was started.
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)
    return True


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def is_connected() -> bool:
    """Return whether this process has a Ray, its own or a cluster's."""
    return bool(ray.is_initialized())


def cluster_nodes() -> list[Resources]:
    """Return what each living node of the connected Ray has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def require_resources(plan: Plan, nodes: Sequence[Resources], where: str, *, advice: str = "") -> int:
    """Return how many workers these nodes can hold: each stands on one, whole. Raises InputError where too few.

    `advice`: what else can be done about it.
    """
    most = fitting_workers(plan, nodes)
    if plan.min_workers <= most:
        return most
    cpus, gpus = (sum(float(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU"))
    need_cpus, need_gpus = plan.min_workers * plan.cpus_per_worker, plan.min_workers * plan.gpus_per_worker
    nodes_word = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    raise InputError(
        f"{plan.min_workers} workers need {need_cpus:g} CPUs and {need_gpus:g} GPUs; "
        f"{where} has {cpus:g} CPUs and {gpus:g} GPUs{nodes_word}, room for {most}",
        kind="too_few_resources",
        given={"workers": plan.min_workers, "cpus": need_cpus, "gpus": need_gpus},
        allowed={"workers": most, "cpus": cpus, "gpus": gpus},
        hint=(
            f"Set compute.workers to {most} or fewer, or lower cpus_per_worker or gpus_per_worker."
            if most
            else "Set compute.workers: 0 to run in this process, or lower cpus_per_worker or gpus_per_worker."
        )
        + advice,
        path="compute.workers",
    )


def fitting_workers(plan: Plan, nodes: Sequence[Resources]) -> int:
    """Return how many workers these nodes can hold at a time: each stands on one node, whole."""
    return sum(_fitting_workers(plan, node) for node in nodes)


def _fitting_workers(plan: Plan, node: Resources) -> int:
    fits = [float(node.get("CPU", 0)) / plan.cpus_per_worker]
    if plan.gpus_per_worker:
        fits.append(float(node.get("GPU", 0)) / plan.gpus_per_worker)
    return int(min(fits) + 1e-9)


def worker_resources(plan: Plan) -> dict[str, float]:
    """Return what a worker of this plan takes, by Ray's names."""
    resources = {"CPU": plan.cpus_per_worker}
    if plan.gpus_per_worker:
        resources["GPU"] = plan.gpus_per_worker
    return resources
