"""Whole campaigns on a real Ray: their records, their reproduction, and what killing any of their processes changes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from sweep_world import losses, write_job, write_world

from ftray.artifacts import RunDirectory, read_json, read_lines
from ftray.campaign import Ledger, SweepDirectory, TrialResult
from ftray.finetune import finetune
from ftray.job import load_job

pytestmark = [pytest.mark.slow, pytest.mark.ray]
PATIENCE_SECONDS = 300
TRAIN = {"learning_rate": 2e-3, "max_steps": 80, "batch_size": 8, "log_every": 1, "evaluate_every": 4}
SPACE = {"rank": [2, 8], "learning_rate": [1e-3, 8e-3]}
# A likelihood: it has values after few steps, and the lower is the better.
EVALUATE = {
    "task": {"metric": "nll"},
    "general": [{"name": "stories", "path": "stories.txt", "metric": "bits_per_byte"}],
}
KEYS = {
    "schema": str, "sweep_id": str, "name": str, "status": str, "mode": str, "mode_reason": str, "objective": dict,
    "searcher": str, "scheduler": str, "seed": int, "counts": dict, "base": dict, "default": dict, "winner": dict,
    "finalists": list, "winner_vs_default": dict, "recommended": str, "pareto": list, "importance": dict,
    "seconds": dict, "accelerator_hours": float, "test_reads": int,
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """`ftray sweep` on a job, again and again."""

    job: Path
    storage: Path
    sets: tuple[str, ...] = ()

    def start(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "ftray", "sweep", str(self.job), "--json", "--quiet"]
        words += ["--storage", str(self.storage), *(word for one in self.sets for word in ("--set", one))]
        self.storage.mkdir(exist_ok=True)
        with (self.storage / "stderr.txt").open("ab") as errors:
            return subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    def finish(self, process: subprocess.Popen[bytes] | None = None) -> dict[str, Any]:
        process = process or self.start()
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, (self.storage / "stderr.txt").read_text()[-3000:]
        return dict(json.loads(output))

    @property
    def directory(self) -> SweepDirectory | None:
        found = next(iter(self.storage.glob("tiny-sweep-*")), None)
        return None if found is None else SweepDirectory(found)

    def ended(self) -> list[str]:
        return [] if self.directory is None else [line["trial_id"] for line in read_lines(self.directory.ledger)]

    def evaluations(self) -> int:
        """Return how many evaluations trials that have not ended have written."""
        if self.directory is None:
            return 0
        open_trials = [
            one for one in self.directory.trials.glob("*/metrics.jsonl") if one.parent.name not in self.ended()
        ]
        return sum(b'"evaluation"' in line for one in open_trials for line in one.read_bytes().splitlines())


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, "it ended before the moment came"
        assert time.monotonic() < deadline, "it makes no progress"
        time.sleep(0.02)


def processes(driver: int, title: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(driver).children(recursive=True):
        try:
            if any(title in part for part in child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("campaigns")
    write_world(folder)
    return write_job(folder, "sweep.yaml", train=TRAIN, evaluate=EVALUATE, sweep={"space": SPACE, "slots": 2})


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, dict[str, Any]]:
    command = Command(world, tmp_path_factory.mktemp("undisturbed"))
    return command, command.finish()


def ledger(command: Command) -> dict[str, TrialResult]:
    assert command.directory is not None
    return {result.trial_id: result for result in Ledger(command.directory.ledger).results()}


def test_the_record_is_what_the_contract_says(undisturbed: tuple[Command, dict[str, Any]]) -> None:
    command, record = undisturbed
    for key, kind in KEYS.items():
        assert isinstance(record[key], kind), key
    assert record["status"] == "completed"
    assert record["mode"] == "shared"
    assert record["objective"] == {"metric": "nll", "split": "validation", "higher_is_better": False}
    assert record["counts"]["requested"] == 5
    states = ("completed", "pruned", "diverged", "failed", "budget")
    assert sum(record["counts"][state] for state in states) == 5
    assert record["test_reads"] == 1
    assert set(record["importance"]) == {"rank", "learning_rate"}
    trials = ledger(command)
    assert len(command.ended()) == len(trials) == 5
    assert sum(one.is_default for one in trials.values()) == 1
    best = min(trials.values(), key=lambda one: one.best.validation_accuracy if one.best else np.inf)
    assert record["winner"]["trial_id"] == best.trial_id
    assert record["winner"]["validation"]["value"] == best.best.validation_accuracy
    assert Path(record["winner"]["adapter"]["path"], "adapter_model.safetensors").is_file()
    assert record["forgetting_unit"] == "bits_per_byte"
    assert set(record["forgetting"]) == set(trials)
    assert record["base"]["validation"]["value"] > record["winner"]["validation"]["value"]
    assert command.directory is not None
    assert command.directory.report.exists()
    assert read_json(command.directory.sweep)["winner"] == record["winner"]


def test_the_same_command_again_prints_what_there_is(undisturbed: tuple[Command, dict[str, Any]]) -> None:
    command, record = undisturbed
    process = command.start()
    again = command.finish(process)
    assert again["reused"]
    assert {**again, "reused": False} == record


def test_a_run_of_the_winners_settings_is_its_trial(
    undisturbed: tuple[Command, dict[str, Any]], tmp_path: Path
) -> None:
    command, record = undisturbed
    loaded = load_job(command.job, sets=record["set"], storage=str(tmp_path))
    result = finetune(loaded, display=lambda line: None, on_plan=lambda prepared: None)
    assert command.directory is not None
    trial = command.directory.trial(record["winner"]["trial_id"])
    assert np.allclose(losses(RunDirectory(Path(result["path"]))), losses(RunDirectory(trial.root)), rtol=0, atol=1e-4)
    assert result["selected"]["value"] == pytest.approx(record["winner"]["validation"]["value"], abs=1e-4)
    assert result["test"]["tuned"]["value"] == pytest.approx(record["winner"]["test"]["value"], abs=1e-4)


def test_another_scheduler_ends_trials_otherwise(world: Path, tmp_path: Path) -> None:
    command = Command(world, tmp_path / "runs", ("sweep.scheduler=asha", "sweep.slots=1", "sweep.finalists=1"))
    record = command.finish()
    trials = ledger(command)
    pruned = [one for one in trials.values() if one.state == "pruned" and one.reason.startswith("asha")]
    assert pruned
    assert all(one.steps < TRAIN["max_steps"] for one in pruned)
    assert all(one.best is not None and one.adapter is not None for one in pruned)
    (default,) = [one for one in trials.values() if one.is_default]
    assert not default.reason.startswith("asha")
    assert record["counts"]["pruned"] >= len(pruned)


def test_whatever_is_killed_the_campaign_ends_as_if_it_had_not_been(
    world: Path, undisturbed: tuple[Command, dict[str, Any]], tmp_path: Path
) -> None:
    rng = random.Random(5)
    command = Command(world, tmp_path / "runs")
    process = command.start()
    wait_until(lambda: len(command.ended()) >= 1 and command.evaluations() >= 2, process)
    victims = psutil.Process(process.pid).children(recursive=True)
    for victim in [psutil.Process(process.pid), *victims]:
        if victim.is_running():
            victim.kill()
    process.communicate()
    before = {name: read_lines(command.directory.trial(name).metrics) for name in command.ended()}  # type: ignore[union-attr]
    assert before
    process = command.start()
    wait_until(lambda: bool(processes(process.pid, "TrainerActor")) and command.evaluations() >= 3, process)
    rng.choice(processes(process.pid, "TrainerActor")).kill()
    ended = len(command.ended())
    wait_until(lambda: len(command.ended()) > ended or command.evaluations() >= 6, process)
    clients = processes(process.pid, "ResourceTrainable")
    if clients:
        rng.choice(clients).kill()
    record = command.finish(process)
    expected, expected_record = ledger(undisturbed[0]), undisturbed[1]
    found = ledger(command)
    assert len(command.ended()) == len(found) == 5
    assert found.keys() == expected.keys()
    for trial_id, one in found.items():
        other = expected[trial_id]
        assert (one.state, one.steps) == (other.state, other.steps)
        assert one.best is not None
        assert other.best is not None
        assert one.best.step == other.best.step
        assert one.best.validation_accuracy == pytest.approx(other.best.validation_accuracy, abs=1e-4)
    # What had ended was not touched again.
    for name, lines in before.items():
        assert read_lines(command.directory.trial(name).metrics) == lines  # type: ignore[union-attr]
    assert record["winner"]["trial_id"] == expected_record["winner"]["trial_id"]
    assert record["test_reads"] == 1


def test_an_interrupted_campaign_says_so_and_leaves_nothing_running(world: Path, tmp_path: Path) -> None:
    command = Command(world, tmp_path / "runs")
    process = command.start()
    wait_until(lambda: command.evaluations() >= 1, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert json.loads(output)["status"] == "interrupted"
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
