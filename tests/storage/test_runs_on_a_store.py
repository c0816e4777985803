"""Runs whose storage is a store that speaks S3, seen from machines that share nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from store_world import KEYS, Store, names, on_machine
from trial_world import load_world
from typer.testing import CliRunner

from ftray.artifacts import digest_file, read_json
from ftray.cli import app
from ftray.errors import InputError
from ftray.finetune import finetune
from ftray.job import LoadedJob, load_job
from ftray.registry.registry import open_registry
from ftray.runs import storage_folder
from ftray.serve.plan import serving_of_job
from ftray.storage.place import Place
from ftray.tracking import current_lines

STEPS = 12
LORA: dict[str, Any] = {
    "method": {"kind": "lora", "rank": 4},
    "train": {"learning_rate": 1e-2, "max_steps": STEPS, "evaluate_every": 4, "checkpoint_every": 4},
    "compute": {"workers": 0},
}
PATIENCE_SECONDS = 180


def run(loaded: LoadedJob) -> dict[str, Any]:
    return finetune(loaded, display=lambda line: None, on_plan=lambda prepared: None)


def final_weights(root: Path) -> str:
    return digest_file(root / "checkpoints" / f"step-{STEPS:08d}" / "adapter_model.safetensors")


def numbers(root: Path) -> list[tuple[Any, ...]]:
    lines = current_lines(root / "metrics.jsonl")
    return [
        (line["step"], line["kind"], line.get("train/loss"), line.get("val/loss"))
        for line in lines
        if line["kind"] != "event"
    ]


@dataclass(frozen=True)
class Both:
    """The same job, run in a folder and on a store."""

    folder: Path
    url: str
    in_folder: dict[str, Any]
    on_store: dict[str, Any]

    def load(self) -> LoadedJob:
        return load_job(self.folder / "job.yaml", storage=self.url)


@pytest.fixture(scope="module")
def both(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("both")
    in_folder = run(load_world(folder, **LORA))
    with on_machine(folder / "one"):
        url = store.new_url()
        yield Both(folder, url, in_folder, run(load_job(folder / "job.yaml", storage=url)))


def test_a_run_on_a_store_is_the_run_of_a_folder(both: Both) -> None:
    here, there = Path(both.in_folder["path"]), Path(both.on_store["path"])
    assert both.on_store["status"] == "completed", both.on_store["failure"]
    assert both.on_store["run_id"] == both.in_folder["run_id"]
    assert (final_weights(there), numbers(there)) == (final_weights(here), numbers(here))
    name = there.name
    assert both.on_store["url"] == f"{both.url}/{name}"
    assert both.in_folder["url"] is None
    assert {one.removeprefix(f"{name}/") for one in names(both.url) if one.startswith(f"{name}/")} >= {
        "job.json", "audit.json", "plan.json", "metrics.jsonl", "selection.json", "evaluation.json",
        "predictions.jsonl", "result.json", "diagnosis.json", "report.html", "adapter/adapter_model.safetensors",
        f"checkpoints/step-{STEPS:08d}/manifest.json",
    }  # fmt: skip
    assert not [one for one in names(both.url) if "/." in one or ".tmp" in one or ".lock" in one]


def test_what_is_in_the_store_says_nothing_of_its_keys(both: Both) -> None:
    objects = Place(both.url).objects()
    contents = b"".join(objects.read(name) or b"" for name in objects.find())
    assert not [key for key in KEYS.values() if key.encode() in contents]


def test_another_machine_finds_the_run_finished(both: Both, tmp_path: Path) -> None:
    with on_machine(tmp_path):
        again = run(both.load())
        assert (again["reused"], again["verdict"]) == (True, both.on_store["verdict"])
        assert Path(again["path"]).is_relative_to(tmp_path)
        assert (Path(again["adapter"]["path"]) / "adapter_model.safetensors").is_file()
        assert not list(Path(again["path"]).glob("checkpoints/*/*.safetensors")), "only records are fetched"


def invoke(*words: str) -> Any:
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_runs_report_evaluate_and_adapters_read_the_store(both: Both, tmp_path: Path) -> None:
    with on_machine(tmp_path):
        (listed,) = invoke("runs", "--storage", both.url)["runs"]
        assert (listed["name"], listed["status"]) == ("colours", "completed")
        shutil.rmtree(tmp_path)
        reported = invoke("report", "colours", "--storage", both.url)
        assert Path(reported["report"]).read_text().startswith("<!doctype html>")
        shutil.rmtree(tmp_path)
        evaluated = invoke("evaluate", both.on_store["url"], "--storage", both.url)
        assert evaluated["tasks"][0]["tuned"] == both.on_store["tasks"][0]["tuned"]
        (adapter,) = invoke("adapters", "list", "--storage", both.url)["adapters"]
        assert adapter["digest"] == both.on_store["registered"]["digest"]


def test_the_endpoint_takes_its_adapter_from_the_store(both: Both, tmp_path: Path) -> None:
    with on_machine(tmp_path):
        serving = serving_of_job(both.load())
        registered = both.on_store["registered"]
        assert serving.adapters == (f"{registered['name']}@{registered['digest']}",)
        source = serving.source(serving.registry(), serving.adapters[0])
        assert (source.folder / "adapter_model.safetensors").is_file()


def test_a_run_that_was_deleted_in_the_store_is_listed_no_more(both: Both, tmp_path: Path) -> None:
    with on_machine(tmp_path):
        folder = storage_folder(both.url)
        gone = folder / "gone-0123456789ab"
        gone.mkdir()
        (gone / "job.json").write_text("{}")
        storage_folder(both.url)
        assert not gone.exists()
        assert (folder / Path(both.on_store["path"]).name).is_dir()


def test_what_the_store_refuses_is_said_before_anything_starts(both: Both, tmp_path: Path) -> None:
    with on_machine(tmp_path):
        loaded = load_job(both.folder / "job.yaml", storage="s3://nobodys-bucket/runs")
        with pytest.raises(InputError, match="bucket does not exist"):
            run(loaded)
        for words in (["train", str(both.folder / "job.yaml")], ["runs"], ["adapters", "list"]):
            result = CliRunner().invoke(app, [*words, "--storage", "s3://nobodys-bucket/runs", "--json"])
            assert result.exit_code == 2, words
            assert json.loads(result.stdout)["kind"] == "bad_store"


def test_full_fine_tuning_by_several_workers_needs_a_shared_folder(store: Store, tmp_path: Path) -> None:
    with on_machine(tmp_path / "cache"):
        loaded = load_world(tmp_path, compute={"workers": 2}, storage=store.new_url())
        with pytest.raises(InputError, match="part of each checkpoint") as refused:
            run(loaded)
        assert (refused.value.kind, refused.value.path) == ("incompatible", "storage")


class Command:
    """`ftray train` as a process on a machine of its own."""

    def __init__(self, folder: Path, url: str, cache: Path) -> None:
        self.log = folder / f"{cache.name}.txt"
        words = [sys.executable, "-m", "ftray", "train", str(folder / "job.yaml"), "--storage", url, "--json"]
        environment = {**os.environ, "FTRAY_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as errors:
            self.process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True
            )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def finish(self) -> dict[str, Any]:
        output, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        assert self.process.returncode == 0, self.log.read_text()[-3000:]
        return dict(json.loads(output))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_on_another_machine(store: Store, tmp_path: Path) -> None:
    recipe = {**LORA, "train": {**LORA["train"], "max_steps": 240, "evaluate_every": 24, "checkpoint_every": 8}}
    undisturbed = run(load_world(tmp_path, **recipe))
    url = store.new_url()
    first = Command(tmp_path, url, tmp_path / "first")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while sum(name.endswith("/manifest.json") for name in names(url)) < 2:
        assert first.process.poll() is None, first.log.read_text()[-3000:]
        assert time.monotonic() < deadline, "no checkpoint comes to the store"
        time.sleep(0.1)
    first.kill()
    # The machine is gone, and with it its working copy.
    shutil.rmtree(tmp_path / "first")
    second = Command(tmp_path, url, tmp_path / "second").finish()
    assert (second["status"], second["attempts"]) == ("completed", 2)
    here, there = Path(undisturbed["path"]), Path(second["path"])
    assert there.is_relative_to(tmp_path / "second")
    events = [line["event"] for line in current_lines(there / "metrics.jsonl") if line["kind"] == "event"]
    assert events[0] == "started"
    assert events[1].startswith("resumed at step ")
    assert numbers(there) == numbers(here)
    last = f"checkpoints/step-{240:08d}/adapter_model.safetensors"
    assert digest_file(there / last) == digest_file(here / last)
    assert read_json(there / "selection.json")["step"] == read_json(here / "selection.json")["step"]
    assert open_registry(tmp_path, Place(url).registry_url).list()
