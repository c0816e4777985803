"""Ray's workers on a store: their working copies are other folders than the command's, as on other machines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from store_world import Store, on_machine
from sweep_world import write_job, write_world
from trial_world import load_world
from typer.testing import CliRunner

from ftray.campaign import Ledger, SweepDirectory, TrialResult
from ftray.cli import app
from ftray.finetune import finetune
from ftray.job import LoadedJob, load_job
from ftray.sweep.run import TUNE_SETTINGS, sweep
from ftray.tracking import current_lines

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
STEPS = 12


@dataclass(frozen=True)
class Machines:
    """The command's working copies and those of Ray's workers."""

    driver: Path
    workers: Path


@pytest.fixture(scope="module")
def machines(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Start a Ray whose workers have a cache of their own."""
    import ray

    driver, workers = tmp_path_factory.mktemp("driver"), tmp_path_factory.mktemp("workers")
    settings = {**TUNE_SETTINGS, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "RAY_AUTH_MODE": "disabled"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=150 * 2**20, log_to_driver=False,
            logging_level="error", runtime_env={"env_vars": {"FTRAY_CACHE": str(workers)}},
        )  # fmt: skip
        with on_machine(driver):
            yield Machines(driver, workers)
        ray.shutdown()


def run(loaded: LoadedJob, told: list[dict[str, Any]]) -> dict[str, Any]:
    return finetune(loaded, display=told.append, on_plan=lambda prepared: None)


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["train/loss"] for line in lines if "train/loss" in line]


def payload(root: Path) -> list[Path]:
    """Return the weights of checkpoints below a folder."""
    return sorted(root.rglob("checkpoints/step-*/*.safetensors"))


def test_the_command_has_what_workers_elsewhere_write(machines: Machines, store: Store, tmp_path: Path) -> None:
    recipe = {"learning_rate": 1e-2, "max_steps": STEPS, "evaluate_every": 4, "checkpoint_every": 4}
    sections = {"method": {"kind": "lora", "rank": 4}, "train": recipe, "compute": {"workers": 1}}
    load_world(tmp_path, **sections)
    told: list[dict[str, Any]] = []
    result = run(load_job(tmp_path / "job.yaml", storage=store.new_url()), told)
    assert result["status"] == "completed", result["failure"]
    root = Path(result["path"])
    assert root.is_relative_to(machines.driver)
    assert Path(result["adapter"]["path"]) == root / "adapter"
    assert (root / "adapter" / "adapter_model.safetensors").is_file()
    assert (root / "report.html").is_file()
    assert payload(machines.driver) == []
    assert len(payload(machines.workers)) > 0
    lines = current_lines(root / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, STEPS + 1))
    # What they wrote was shown while they wrote it, or when they had ended.
    assert [line["step"] for line in told if line["kind"] == "step"] == list(range(1, STEPS + 1))
    alone = finetune(
        load_world(tmp_path, **{**sections, "compute": {"workers": 0}}),
        display=lambda line: None,
        on_plan=lambda prepared: None,
    )
    losses = [
        line["train/loss"] for line in current_lines(Path(alone["path"]) / "metrics.jsonl") if "train/loss" in line
    ]
    assert [line["train/loss"] for line in lines if "train/loss" in line] == pytest.approx(losses, rel=1e-5)


class Watch:
    """Watches a campaign."""

    def __init__(self) -> None:
        self.ended: list[TrialResult] = []

    def say(self, text: str) -> None: ...
    def remember(self, trial: Any) -> None: ...

    def on_plan(self, plan: dict[str, Any]) -> None: ...
    def on_result(self, trial_id: str, config: Any, result: Any) -> None: ...

    def on_end(self, trial: TrialResult) -> None:
        self.ended.append(trial)


def test_a_campaign_whose_trainers_are_elsewhere(machines: Machines, store: Store, tmp_path: Path) -> None:
    write_world(tmp_path)
    url = store.new_url()
    space = {"space": {"rank": [2, 4], "learning_rate": [1e-3, 4e-3]}, "slots": 2, "workers": 1, "scheduler": "none"}
    file = write_job(tmp_path, "sweep.yaml", sweep=space, storage=url)
    watch = Watch()
    record = sweep(load_job(file), display=watch)
    assert (record["status"], record["mode"], record["url"].startswith(url)) == ("completed", "shared", True)
    directory = SweepDirectory(Path(record["path"]))
    assert directory.root.is_relative_to(machines.driver)
    # The default and the grid.
    assert len(watch.ended) == 5
    for result in Ledger(directory.ledger).results():
        assert result.state == "completed"
        assert current_lines(directory.trial(result.trial_id).metrics)
        assert result.adapter is not None
        assert (Path(result.adapter) / "adapter_model.safetensors").is_file()
    assert (directory.root / "base.json").is_file()
    with on_machine(tmp_path / "third"):
        again = sweep(load_job(file), display=Watch())
        assert (again["reused"], again["winner"]["trial_id"]) == (True, record["winner"]["trial_id"])
        assert (Path(again["winner"]["adapter"]["path"]) / "adapter_model.safetensors").is_file()
        reported = CliRunner().invoke(app, ["report", "tiny-sweep", "--storage", url, "--json"])
        assert reported.exit_code == 0, reported.stderr
        page = Path(json.loads(reported.stdout)["report"])
        assert page.is_relative_to(tmp_path / "third")
        assert page.read_text() == directory.report.read_text()
    assert "FTRAY_CACHE" in os.environ
