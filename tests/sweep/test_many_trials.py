"""Two hundred tiny trials, one after the other through the same slots: nothing of them stays."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table
from sweep_world import write_job, write_world

from ftray.campaign import TrialResult
from ftray.job import load_job
from ftray.sweep.run import sweep
from ftray.train.cluster import connect

pytestmark = [pytest.mark.slow, pytest.mark.ray]
TRIALS = 200
MEBIBYTE = 2**20
SPACE = {"rank": {"int": [2, 8]}, "learning_rate": {"loguniform": [1e-4, 1e-2]}}


class Watch:
    """Weighs the trainers as trials end."""

    def __init__(self) -> None:
        self.ended: list[TrialResult] = []
        self.bytes: list[int] = []

    def say(self, text: str) -> None: ...
    def remember(self, trial: Any) -> None: ...

    def on_plan(self, plan: Any) -> None: ...
    def on_result(self, trial_id: str, config: Any, result: Any) -> None: ...

    def on_end(self, trial: TrialResult) -> None:
        self.ended.append(trial)
        self.bytes.append(sum(process.memory_info().rss for process in named("TrainerActor")))


def named(*titles: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if any(title in part for title in titles for part in child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def test_two_hundred_trials_leave_nothing_behind(tmp_path: Path) -> None:
    write_world(tmp_path)
    job = write_job(
        tmp_path,
        "many.yaml",
        train={"max_steps": 2, "batch_size": 8, "evaluate_every": 1, "learning_rate": 1e-3},
        evaluate={"task": {"metric": "nll"}},
        sweep={"space": SPACE, "trials": TRIALS, "searcher": "random", "scheduler": "none", "slots": 2},
    )
    watch = Watch()
    assert connect()
    try:
        record = sweep(load_job(job), display=watch)
        deadline = time.monotonic() + 30
        while named("TrainerActor", "ResourceTrainable") and time.monotonic() < deadline:
            time.sleep(0.2)
        assert named("TrainerActor", "ResourceTrainable") == []
        assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
    finally:
        ray.shutdown()
    assert record["counts"]["completed"] == TRIALS
    assert len({trial.trial_id for trial in watch.ended}) == TRIALS
    early, late = (statistics.median(part) for part in (watch.bytes[50:100], watch.bytes[-50:]))
    assert late < early + 40 * MEBIBYTE
