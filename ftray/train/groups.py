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

    Waits up to IDLE_SECONDS for the workers that were its own to end, and as long again before it gives back.
    """
    until = time.monotonic() + IDLE_SECONDS
    while not (seen := idle_groups() - spared):
        if not groups_of_this_job().keys() - spared or time.monotonic() > until:
            return
        time.sleep(LOOK_SECONDS)
    time.sleep(IDLE_SECONDS)
    for group_id in seen & idle_groups():
        remove_group(group_id)
