"""The record of a check: everything known, nothing started, and refusals as `finetune` would refuse."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from ftray.check import check_job, render_check, spell_seconds
from ftray.errors import InputError
from ftray.job import LoadedJob, evaluate_digest, load_job, run_directory, run_id_of
from ftray.quickstart.pretrain import tiny_base

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

INTENTS = ("music", "weather", "light")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("check")
    tiny_base(place / "model", seed=0)
    write_rows(place / "train.jsonl", 200)
    write_rows(place / "test.jsonl", 20, first=1000)
    write_rows(place / "seen.jsonl", 20)
    (place / "stories.txt").write_text("Once there was a fox.\nIt ran.\n")
    job = {
        "name": "router",
        "model": "model",
        "data": {"train": {"path": "train.jsonl"}, "validation": 0.1, "test": {"path": "test.jsonl"}},
        "evaluate": {"general": [{"name": "stories", "path": "stories.txt"}]},
        "compute": {"workers": 0},
        "storage": "runs",
    }
    (place / "job.yaml").write_text(yaml.safe_dump(job))
    return place


def write_rows(path: Path, count: int, *, first: int = 0) -> None:
    rows = [{"prompt": f"number {n}?", "completion": INTENTS[n % 3]} for n in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)


def load(folder: Path, *sets: str, **options: Any) -> LoadedJob:
    return load_job(folder / "job.yaml", sets=sets, **options)


def shown(record: dict[str, Any]) -> str:
    out = io.StringIO()
    render_check(record, Console(file=out, width=120))
    return out.getvalue()


def test_everything_is_known_and_nothing_is_made(folder: Path) -> None:
    loaded = load(folder)
    record = check_job(loaded)
    assert record["schema"] == "ftray/check/1"
    assert record["run_id"] == run_id_of(loaded)
    assert record["run"] == str(run_directory(loaded, record["run_id"]).root)
    assert record["state"] == "new"
    assert not (folder / "runs").exists()
    rows = record["rows"]
    assert rows["train"] + rows["validation"] == 200
    assert (rows["test"], rows["probes"]) == (20, {"stories": 2})
    tokens = record["tokens"]
    assert tokens["epoch"] == record["plan"]["data"]["train_tokens"]
    assert tokens["label_share"] == pytest.approx(tokens["labels"] / tokens["epoch"])
    assert tokens["lengths"]["p50"] <= tokens["lengths"]["p99"] <= tokens["longest"] <= tokens["max_length"] == 256
    steps = record["steps"]
    assert steps["total"] == record["plan"]["total_steps"] == 2 * steps["per_epoch"]
    assert steps["effective_batch"] == 16
    assert steps["evaluations"] >= 8
    assert record["resources"] == {
        "where": "this machine", "fits": True, "cpus": float(os.cpu_count() or 1), "gpus": 0.0,
    }  # fmt: skip
    assert record["memory"]["total"] > record["memory"]["weights"] > 0
    assert record["time"]["train_seconds"] > 0
    assert record["audit"]["status"] == "pass"
    assert record["warnings"] == []
    json.dumps(record, allow_nan=False)


def test_it_fits_one_screen_and_says_the_numbers(folder: Path) -> None:
    record = check_job(load(folder, "train.learning_rate=1e-3"))
    text = shown(record)
    assert len(text.splitlines()) <= 24
    assert f"{record['rows']['train']} train, {record['rows']['validation']} validation, 20 test, 2 stories" in text
    assert "115,008 weights" in text or "0.115M weights" in text
    assert "warning: train.learning_rate" in text
    assert "QLoRA" in text


def test_warnings_say_what_is_missing(folder: Path) -> None:
    record = check_job(load(folder, "data.test=null", "evaluate.general=[]", "train.epochs=6"))
    assert {one["field"] for one in record["warnings"]} == {"data.test", "evaluate.general", "train.epochs"}
    assert record["rows"]["test"] is None
    assert "no test" in shown(record)


def test_overlong_rows_are_counted(folder: Path) -> None:
    longest = check_job(load(folder))["tokens"]["longest"]
    record = check_job(load(folder, f"data.max_length={longest - 1}", "data.max_dropped=1.0"))
    assert record["dropped"]["overlong"] > 0
    assert record["tokens"]["longest"] < longest
    assert "data.max_dropped" in {one["field"] for one in record["warnings"]}
    assert f"{record['dropped']['overlong']} dropped: overlong" in shown(record)


def test_a_failed_gate_is_refused_with_the_numbers(folder: Path) -> None:
    with pytest.raises(InputError, match=r"dataset gate failed: overlap_exact.*training.*tokens.*steps") as caught:
        check_job(load(folder, "data.test.path=seen.jsonl"))
    assert caught.value.kind == "audit_failed"
    cleaned = check_job(load(folder, "data.test.path=seen.jsonl", "data.train.decontaminate=true"))
    assert cleaned["decontaminated"] == 20
    reason = "the overlap is what is tested"
    accept = [{"check": f"overlap_{how}", "reason": reason} for how in ("exact", "normalised")]
    accepted = check_job(load(folder, "data.test.path=seen.jsonl", f"audit.accept={json.dumps(accept)}"))
    assert {one["accepted"] for one in accepted["audit"]["findings"]} == {reason}
    assert f"accepted: {reason}" in shown(accepted)


def test_more_workers_than_this_machine_has_are_refused_without_ray(folder: Path) -> None:
    import ray

    many = 1000
    with pytest.raises(InputError) as caught:
        check_job(load(folder, f"compute.workers={many}"))
    assert caught.value.kind == "too_few_resources"
    assert not ray.is_initialized()


def test_a_cluster_is_not_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://nowhere:8265")
    record = check_job(load(folder, "compute.workers=1000", "compute.gpus_per_worker=1"))
    assert record["resources"]["fits"] is None
    assert "http://nowhere:8265" in record["resources"]["where"]
    assert record["time"]["train_seconds"] is None
    assert "unknown time" in shown(record)


def test_unknown_target_modules_are_refused(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        check_job(load(folder, "method.target_modules=[nothing]"))
    assert caught.value.kind == "unknown_target"


def test_the_state_of_the_run_is_told(folder: Path) -> None:
    loaded = load(folder, "seed=7")
    first = check_job(loaded)
    run = run_directory(loaded, first["run_id"])
    run.create()
    from ftray.artifacts import write_json

    evaluated = evaluate_digest(loaded)
    write_json(run.result, {"status": "completed", "evaluate_digest": evaluated})
    assert check_job(loaded)["state"] == "finished"
    write_json(run.result, {"status": "failed", "evaluate_digest": evaluated})
    assert check_job(loaded)["state"] == "new"


@pytest.mark.parametrize(
    ("seconds", "spelled"),
    [(None, "unknown time"), (9.6, "about 10 s"), (600.0, "about 10 min"), (9000.0, "about 2.5 h")],
)
def test_durations_are_spelled(seconds: float | None, spelled: str) -> None:
    assert spell_seconds(seconds) == spelled
