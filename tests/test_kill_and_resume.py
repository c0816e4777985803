"""Kill a run with SIGKILL at seeded random moments, run the command again, compare the final weights bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ftray.artifacts import digest_file, read_json
from ftray.quickstart.pretrain import tiny_base
from ftray.quickstart.task import write_task
from ftray.tracking import current_lines

STEPS = 48
IN_PROCESS_KILLS = 12
RAY_DRIVER_KILLS = 3
RAY_WORKER_KILLS = 5
PATIENCE_SECONDS = 240
RAY_WORKER_TITLE = "RayTrainWorker"

JOB = """
name: killed
model: {base}
data:
  train: {{path: {train}, prompt: "Which intent is this? {{text}}", completion: "{{intent}}", limit: 160}}
  test: {{path: {test}, prompt: "Which intent is this? {{text}}", completion: "{{intent}}", limit: 16}}
method: {{dropout: 0.1}}
train: {{learning_rate: 2e-3, max_steps: {steps}, batch_size: 8, checkpoint_every: 4, evaluate_every: 4,
  early_stopping: null, log_every: 1}}
evaluate: {{task: {{max_new_tokens: 4}}}}
compute: {{workers: {workers}, max_failures: {failures}}}
tracking: []
"""


class Run:
    """One job in a folder of its own, started again and again."""

    def __init__(self, folder: Path, world: Path, *, workers: int) -> None:
        self.folder = folder
        self.job = folder / "job.yaml"
        folder.mkdir()
        paths = {"base": world / "base", "train": world / "train.jsonl", "test": world / "test.jsonl"}
        self.job.write_text(JOB.format(**paths, steps=STEPS, workers=workers, failures=RAY_WORKER_KILLS + 1))

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ftray", "train", str(self.job), "--json", "--quiet"]
        command += ["--storage", str(self.folder / "runs")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}
        with (self.folder / "stderr.txt").open("ab") as errors:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)

    @property
    def root(self) -> Path | None:
        return next(iter((self.folder / "runs").glob("killed-*")), None)

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl that are whole: the last one may be in the making."""
        if self.root is None or not (self.root / "metrics.jsonl").exists():
            return []
        whole = (self.root / "metrics.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in whole if line.endswith("}\n")]

    def attempts(self) -> int:
        return max((int(line["attempt"]) for line in self.lines()), default=0)

    def last_step(self, *, after: int = 0) -> int:
        """Return the last step logged by an attempt later than `after`; -1 where there is none."""
        steps = (line["step"] for line in self.lines() if line["kind"] == "step" and line["attempt"] > after)
        return max(steps, default=-1)

    def is_writing(self) -> bool:
        """Return whether a checkpoint folder stands there without its manifest."""
        if self.root is None:
            return False
        return any(not (path / "manifest.json").exists() for path in (self.root / "checkpoints").glob("step-*"))

    def finish(self) -> dict[str, object]:
        process = self.start()
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, (self.folder / "stderr.txt").read_text()[-3000:]
        return dict(json.loads(output))

    def final_weights(self) -> str:
        assert self.root is not None
        last = self.root / "checkpoints" / f"step-{STEPS:08d}"
        return "".join(digest_file(path) for path in sorted(last.glob("*.safetensors")))

    def history(self) -> list[tuple[int, object, object]]:
        assert self.root is not None
        lines = current_lines(self.root / "metrics.jsonl")
        return [
            (line["step"], line.get("train/loss"), line.get("val/loss")) for line in lines if line["kind"] != "event"
        ]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], *, pause: float) -> bool:
    """Return True once the condition holds, False when the process ended first."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None:
        assert time.monotonic() < deadline, "the run makes no progress"
        if condition():
            return True
        time.sleep(pause)
    return False


def wait_for_moment(
    run: Run, process: subprocess.Popen[bytes], rng: random.Random, *, step: int, after: int
) -> str | None:
    """Wait for a random moment at or after `step` of an attempt later than `after`; None: the run ended.

    Every other time the moment is inside a checkpoint's writing. Where earlier attempts got further than `step`, the
    moment is soon after the new attempt's first step.
    """
    if not wait_until(lambda: run.last_step(after=after) >= step, process, pause=0.01):
        return None
    if rng.random() < 0.5:
        return "writing" if wait_until(run.is_writing, process, pause=0.0) else None
    time.sleep(rng.uniform(0.0, 0.15))
    return "anywhere"


def kill_driver(run: Run, rng: random.Random, step: int, *, tree: bool = True) -> str | None:
    """Start the run and kill it at a random moment: with all it has started, as a lost machine, or the driver alone."""
    attempts = run.attempts()
    process = run.start()
    moment = wait_for_moment(run, process, rng, step=step, after=attempts)
    victims = psutil.Process(process.pid).children(recursive=True) if tree and process.poll() is None else []
    process.send_signal(signal.SIGKILL)
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.communicate()
    return moment


def ray_workers(driver: int) -> list[psutil.Process]:
    """Return the Ray Train workers that descend from this driver."""
    found = []
    for child in psutil.Process(driver).children(recursive=True):
        try:
            if any(RAY_WORKER_TITLE in part for part in child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny_base(folder / "base", seed=0)
    write_task(folder, seed=0)
    return folder


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, world: Path) -> None:
    rng = random.Random(20)
    undisturbed = Run(tmp_path / "undisturbed", world, workers=0)
    undisturbed.finish()
    run = Run(tmp_path / "killed", world, workers=0)
    moments: list[str | None] = []
    for kill in range(IN_PROCESS_KILLS):
        moments.append(kill_driver(run, rng, step=round((kill + 0.5) * STEPS / (IN_PROCESS_KILLS + 1))))
    result = run.finish()
    assert None not in moments
    assert moments.count("writing") >= 2
    assert moments.count("anywhere") >= 2
    assert result["attempts"] == IN_PROCESS_KILLS + 1
    assert run.final_weights() == undisturbed.final_weights()
    assert run.history() == undisturbed.history()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Run:
    run = Run(tmp_path_factory.mktemp("ray") / "undisturbed", world, workers=2)
    run.finish()
    return run


@pytest.mark.slow
@pytest.mark.ray
def test_workers_that_outlive_their_driver_do_no_harm(tmp_path: Path, world: Path, undisturbed: Run) -> None:
    run = Run(tmp_path / "orphaned", world, workers=2)
    assert kill_driver(run, random.Random(22), step=3, tree=False) is not None
    result = run.finish()
    assert result["attempts"] == 2
    assert run.final_weights() == undisturbed.final_weights()
    assert run.history() == undisturbed.history()


@pytest.mark.slow
@pytest.mark.ray
def test_ray_workers_and_drivers_may_be_killed_at_any_moment(tmp_path: Path, world: Path, undisturbed: Run) -> None:
    rng = random.Random(21)
    run = Run(tmp_path / "killed", world, workers=2)
    for kill in range(RAY_DRIVER_KILLS):
        assert kill_driver(run, rng, step=3 + 6 * kill) is not None
    attempts = run.attempts()
    process = run.start()
    for kill in range(RAY_WORKER_KILLS):
        # Each kill meets the group that replaced the last one, once it trains.
        assert wait_for_moment(run, process, rng, step=20 + 5 * kill, after=attempts + kill) is not None
        workers = ray_workers(process.pid)
        assert len(workers) == 2
        rng.choice(workers).kill()
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, (run.folder / "stderr.txt").read_text()[-3000:]
    result = json.loads(output)
    assert result["workers"] == 2
    # A crowded machine may lose one more group while it starts: `max_failures` allows for it.
    assert result["attempts"] - (RAY_DRIVER_KILLS + RAY_WORKER_KILLS + 1) in (0, 1)
    assert read_json(Path(result["path"]) / "result.json")["status"] == "completed"
    assert run.final_weights() == undisturbed.final_weights()
    assert run.history() == undisturbed.history()


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_ray_run_says_so_and_leaves_nothing_running(
    tmp_path: Path, world: Path, number: signal.Signals
) -> None:
    run = Run(tmp_path / "interrupted", world, workers=2)
    process = run.start()
    assert wait_until(lambda: run.last_step() >= 2, process, pause=0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert json.loads(output)["status"] == "interrupted"
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
