"""Give back what a stopped trial's workers hold.

Ray Tune ends a trial's driver, whose Ray Train controller dies with it; the workers' placement group stays for as long
as the job lives unless the dashboard runs (ray-project/ray#54305). So the drivers and workers of a trial note
themselves in a folder, and the campaign removes the groups of trials that have ended.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train.torch import TorchTrainer

from ftray.artifacts import is_held, try_lock
from ftray.train.groups import IDLE_SECONDS, groups_of_this_job, idle_groups, remove_group

GRACE_SECONDS = 1.0
"""After a driver's end, for its controller to follow: one that lives would replace the workers that it misses."""
LONGEST_WAIT_SECONDS = 20.0
"""For drivers that are being ended."""


def note_driver(folder: Path, tune_id: str) -> None:
    """Note this process as a driver of the trial, for as long as it lives."""
    with (folder / f"{tune_id}.{os.getpid()}.driver").open("w", encoding="utf-8") as file:
        try_lock(file)
        # A lock lasts until the last descriptor of this opening is closed: when the process ends.
        os.dup(file.fileno())


def note_group(folder: Path, tune_id: str) -> None:
    """Note the placement group that this worker stands in."""
    group = ray.util.get_current_placement_group()
    assert group is not None, "a worker of Ray Train stands in a placement group"
    (folder / f"{tune_id}.{group.id.hex()}.group").touch()


def remove_groups(folder: Path, tune_id: str = "*") -> None:
    """Remove the noted placement groups of a trial, or of all, and their notes."""
    for note in folder.glob(f"{tune_id}.*.group"):
        remove_group(note.name.split(".")[1])
        note.unlink()


class Clearing:
    """Removes groups that nobody uses while this driver's workers still wait for their places.

    A driver that was killed before its workers could note themselves leaves such a group.
    """

    def __init__(self, folder: Path, tune_id: str) -> None:
        self._folder = folder
        self._tune_id = tune_id
        self._idle: set[str] = set()
        self._next_look = time.monotonic() + IDLE_SECONDS

    def look(self) -> None:
        """Look again if it is time."""
        if time.monotonic() < self._next_look or any(self._folder.glob(f"{self._tune_id}.*.group")):
            return
        idle = idle_groups() - {note.name.split(".")[1] for note in self._folder.glob("*.group")}
        for group_id in idle & self._idle:
            remove_group(group_id)
        self._idle, self._next_look = idle, time.monotonic() + IDLE_SECONDS


class ReapedTrainer(TorchTrainer):
    """A trainer without Ray Train's own cleaner of placement groups.

    That is an actor that outlives its trainer, watches it through the dashboard, and never ends where there is none.
    """

    def _create_default_callbacks(self) -> list[Any]:
        above: Any = super()
        callbacks: list[Any] = above._create_default_callbacks()
        return [one for one in callbacks if type(one).__name__ != "PlacementGroupCleanerCallback"]


class Reaper(tune.Callback):
    """Removes the placement groups of trials that have ended, once their drivers have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Notes of an earlier command: its Ray, or its job on the cluster, has ended with it.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._ended: dict[str, float | None] = {}
        """Since when the driver of an ended trial is seen to be gone."""
        self._before = set(groups_of_this_job())

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended[trial.trial_id] = None

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended[trial.trial_id] = None

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        for tune_id, gone_since in list(self._ended.items()):
            if self._has_driver(tune_id):
                continue
            if gone_since is None:
                self._ended[tune_id] = now
            elif now - gone_since >= GRACE_SECONDS:
                remove_groups(self.folder, tune_id)
                del self._ended[tune_id]

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.reap()

    def reap(self) -> None:
        """Wait for the drivers that are being ended, then remove every group that the campaign has left."""
        deadline = time.monotonic() + LONGEST_WAIT_SECONDS
        while self._has_driver("*") and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(GRACE_SECONDS)
        remove_groups(self.folder)
        # Of a trial that ended before its workers could note where they stand.
        for group_id in set(groups_of_this_job()) - self._before:
            remove_group(group_id)
        self._ended.clear()

    def _has_driver(self, tune_id: str) -> bool:
        return any(is_held(lock) for lock in self.folder.glob(f"{tune_id}.*.driver"))
