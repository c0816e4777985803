"""A submission as those see it who watch: JSON lines on every node, one trace through all processes, numbers."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from otlp_collector import Collector, attributes
from submit_world import Answer, LiveRay, make_job

pytestmark = [pytest.mark.ray]
TOKEN = "a-token-that-no-list-may-show-77d1"


@dataclass(frozen=True)
class Watched:
    """A run that was submitted with everything on."""

    answer: Answer
    spans: list[Any]
    lines: list[dict[str, Any]]
    storage: Path

    def span(self, name: str) -> Any:
        """Return the first span of a name."""
        return next(one for one in self.spans if one.name == name)


@pytest.fixture(scope="session")
def watched(live_ray: LiveRay, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("watched")
    job = make_job(folder / "job", base, name="watched", compute={"workers": 1})
    collector = Collector()
    process = live_ray.start(
        "submit", str(job), "--storage", str(folder / "storage"), "--wait", "--json",
        "--env", "FTRAY_LOG=json", "--env", f"OTEL_EXPORTER_OTLP_ENDPOINT={collector.url}",
        FTRAY_LOG="json", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
    )  # fmt: skip
    out, err = process.communicate(timeout=240)
    collector.close()
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    return Watched(Answer(process.returncode, out, err), collector.spans, lines, folder / "storage")


def test_it_ends_well(watched: Watched) -> None:
    assert watched.answer.exit_code == 0, watched.answer.stderr
    assert watched.answer.document["ended"] == "succeeded"


def test_the_commands_lines_are_objects_with_run_worker_and_step(watched: Watched) -> None:
    run = watched.answer.document["run_id"][:12]
    steps = [line for line in watched.lines if line.get("event") == "step"]
    assert [(line["run"], line["worker"], line["step"], line["job"]) for line in steps] == [
        (run, 0, 1, "watched"),
        (run, 0, 2, "watched"),
        (run, 0, 4, "watched"),
    ]
    assert steps[-1]["total_steps"] == 4
    assert steps[-1]["train/loss"] > 0


def test_workers_say_on_their_node_what_only_they_know(watched: Watched, live_ray: LiveRay) -> None:
    run = watched.answer.document["run_id"][:12]
    files = list(live_ray.folder.rglob("worker-*.err"))
    assert files
    said = [line for path in files for line in path.read_text().splitlines() if f'"run": "{run}"' in line]
    told = [json.loads(line) for line in said]
    assert {"loaded", "started", "done"} <= {line["event"] for line in told}
    assert {line["worker"] for line in told} == {0}


def test_one_trace_goes_through_all_processes(watched: Watched) -> None:
    spans, by_id = watched.spans, {one.span_id: one.name for one in watched.spans}
    assert len({one.trace_id for one in spans}) == 1
    parents = {one.name: by_id.get(one.parent_span_id) for one in spans}
    expected = {"submit": None, "run": "submit", "check": "run", "report": "run", "worker": "run", "load": "worker"}
    expected |= {"train": "worker", "validate": "train", "checkpoint": "train", "compare": "worker"}
    assert {name: parents[name] for name in expected} == expected
    assert attributes(watched.span("run"))["ftray.status"] == "completed"
    assert sorted(attributes(one)["ftray.step"] for one in spans if one.name == "checkpoint") == [2, 4]


@pytest.mark.slow
def test_prometheus_and_status_see_a_run_and_no_list_shows_its_token(
    live_ray: LiveRay, base: Path, tmp_path: Path
) -> None:
    settings = {"max_steps": 100_000, "learning_rate": 4e-3, "log_every": 1, "evaluate_every": 50}
    train = settings | {"early_stopping": None}
    job = make_job(tmp_path / "job", base, name="counted", train=train, compute={"workers": 1})
    words = ("--storage", str(tmp_path / "storage"), "--secret", "HF_TOKEN", "--json")
    submitted = live_ray.ftray("submit", str(job), *words, HF_TOKEN=TOKEN)
    assert submitted.exit_code == 0, submitted.stderr
    run = submitted.document["run_id"][:12]
    try:
        wanted = {"ray_ftray_train_step", "ray_ftray_train_loss", "ray_ftray_train_tokens_per_second"}
        seen: set[str] = set()
        deadline = time.monotonic() + 120
        while not wanted <= seen:
            assert time.monotonic() < deadline, f"Prometheus sees {seen}"
            time.sleep(1)
            found = re.findall(rf'^(ray_ftray_\w+)\{{[^}}]*run="{run}"', live_ray.metrics(), re.MULTILINE)
            seen = set(found)
        everything = live_ray.ftray("status", "--json").document
        (stands,) = [one for one in everything["submissions"] if one["run_id"].startswith(run)]
        assert (stands["state"], stands["total_steps"]) == ("running", 100_000)
        assert stands["tokens_per_second"] > 0
        assert stands["seconds_left"] > 0
        shown = live_ray.ftray("status").stdout
        assert "tokens/s" in shown
        assert "of 4 CPUs in use" in shown
        assert submitted.document["submission_id"] in shown
        for kind in ("actors", "tasks", "workers", "runtime_envs", "jobs"):
            assert TOKEN not in live_ray.get(f"/api/v0/{kind}?detail=true&limit=1000")
    finally:
        live_ray.ftray("stop", submitted.document["submission_id"])
