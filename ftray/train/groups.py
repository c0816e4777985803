"""Placement groups that nobody uses any more.

Ray Train's cleaner of what a dead controller has left watches it through the dashboard; where there is none, the
workers' group stays for as long as the job lives (ray-project/ray#54305).
"""

from __future__ import annotations

import time
from collections.abc import Set
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

IDLE_SECONDS = 5.0
"""A placement group that stands empty at two looks this far apart is nobody's: Ray Train fills its own at once."""
LOOK_SECONDS = 0.5


def groups_of_this_job() -> dict[str, Any]:
    """Return the placement groups that this process and those it started have: their ids end in the job's."""
    job = ray.get_runtime_context().get_job_id()
    groups = placement_group_table()
    return {one: group for one, group in groups.items() if one.endswith(job) and group["state"] != "REMOVED"}


def idle_groups() -> set[str]:
    """Return this job's groups for workers that have no worker: all of their CPUs are free."""
    free = ray.available_resources()
    cpus = {
        one: sum(bundle.get("CPU", 0.0) for bundle in group["bundles"].values())
        for one, group in groups_of_this_job().items()
        if group["state"] == "CREATED"
    }
    # Drivers stand in groups of Tune's, which hold no CPU.
    return {one for one, number in cpus.items() if number and free.get(f"CPU_group_{one}", 0.0) >= number}


def remove_group(group_id: str) -> None:
    """Give back what a placement group holds; its workers are killed."""
    remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))


def remove_idle_groups(spared: Set[str]) -> None:
    """Give back what a controller that has died has left, of this job's; not what was there before, `spared`.

    Waits for workers that were its own to end, and looks at each group as long as its own Ray Train would leave it
    empty: three times IDLE_SECONDS at most.
    """
    until = time.monotonic() + 3 * IDLE_SECONDS
    since: dict[str, float] = {}
    while (left := groups_of_this_job().keys() - spared) and time.monotonic() < until:
        now, idle = time.monotonic(), idle_groups()
        since = {one: since.get(one, now) for one in left & idle}
        for group_id in [one for one, first in since.items() if now - first >= IDLE_SECONDS]:
            remove_group(group_id)
        time.sleep(LOOK_SECONDS)
