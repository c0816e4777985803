from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sweep_records

from ftray.artifacts import RunDirectory, append_line, run_lock, write_json
from ftray.campaign import SweepDirectory
from ftray.errors import InputError
from ftray.runs import find_run, find_work, list_runs, storage_folder


def make_run(storage: Path, name: str, run_id: str, result: dict[str, Any] | None = None) -> RunDirectory:
    run = RunDirectory(storage / f"{name}-{run_id[:12]}")
    run.create()
    write_json(run.job, {"run_id": run_id, "smoke": False, "job": {"name": name}})
    append_line(run.metrics, {"step": 0, "attempt": 1, "kind": "event"})
    if result is not None:
        write_json(run.result, result)
    return run


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    make_run(tmp_path, "one", "a" * 64, {"status": "completed", "verdict": "ship"})
    make_run(tmp_path, "two", "b" * 64)
    make_run(tmp_path, "two", "c" * 64, {"status": "failed", "verdict": "none"})
    (tmp_path / "evaluations").mkdir()
    return tmp_path


def test_a_list_of_runs_says_how_each_ended(storage: Path) -> None:
    runs = {run["run_id"][0]: run for run in list_runs(storage)}
    assert {key: run["status"] for key, run in runs.items()} == {"a": "completed", "b": "interrupted", "c": "failed"}
    assert runs["a"]["verdict"] == "ship"
    assert runs["b"]["verdict"] == "none"
    assert {"run_id", "name", "status", "verdict", "path", "updated_at"} <= runs["a"].keys()
    assert runs["a"]["updated_at"].endswith("Z")


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"run_id": 3}'])
def test_a_damaged_run_does_not_hide_the_others(storage: Path, content: str) -> None:
    (storage / "broken").mkdir()
    (storage / "broken" / "job.json").write_text(content)
    runs = list_runs(storage)
    assert len(runs) == 4
    assert [(run["name"], run["verdict"]) for run in runs if run["status"] == "damaged"] == [("broken", "none")]


def test_a_run_that_a_process_holds_is_running_whatever_it_was_before(storage: Path) -> None:
    for folder in ("one-aaaaaaaaaaaa", "two-bbbbbbbbbbbb"):
        with run_lock(storage / folder / ".driver.lock"):
            (run,) = [run for run in list_runs(storage) if run["path"].endswith(folder)]
        assert (run["status"], run["verdict"]) == ("running", "none")


def test_no_folder_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nothing") == []


@pytest.mark.parametrize("text", ["one", "one-aaaaaaaaaaaa", "one-aaaa", "aaaaaaaaaaaa", "a" * 64])
def test_a_run_is_found_by_name_folder_or_id(storage: Path, text: str) -> None:
    assert find_run(text, storage).root == storage / "one-aaaaaaaaaaaa"
    assert find_run(str(storage / "one-aaaaaaaaaaaa"), Path("elsewhere")).root == storage / "one-aaaaaaaaaaaa"


@pytest.mark.parametrize(("text", "kind"), [("two", "ambiguous_run"), ("oen", "missing_run"), ("aaa", "missing_run")])
def test_what_names_no_run_or_several_is_refused(storage: Path, text: str, kind: str) -> None:
    with pytest.raises(InputError) as raised:
        find_run(text, storage)
    assert raised.value.kind == kind
    if text == "oen":
        assert "one" in raised.value.hint


def test_the_flag_is_stronger_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)
    assert storage_folder(None) == Path("./runs")
    monkeypatch.setenv("FTRAY_STORAGE", "/from/environment")
    assert storage_folder(None) == Path("/from/environment")
    assert storage_folder("/from/flag") == Path("/from/flag")


CAMPAIGN = f"router-sweep-{sweep_records.SWEEP_ID[:12]}"


def test_a_campaign_is_no_run(storage: Path) -> None:
    sweep_records.write(storage / CAMPAIGN, sweep_records.unfinished())
    assert {run["name"] for run in list_runs(storage)} == {"one", "two"}
    for text in (CAMPAIGN, str(storage / CAMPAIGN), "router-sweep"):
        with pytest.raises(InputError, match="campaign, not a run") as raised:
            find_run(text, storage)
        assert raised.value.kind == "missing_run"


@pytest.mark.parametrize("text", ["router-sweep", CAMPAIGN, "cd56", sweep_records.SWEEP_ID])
def test_a_campaign_is_found_by_name_folder_or_id(storage: Path, text: str) -> None:
    sweep_records.write(storage / CAMPAIGN, sweep_records.finished())
    assert find_work(text, storage) == SweepDirectory(storage / CAMPAIGN)
    assert find_work(str(storage / CAMPAIGN), Path("elsewhere")) == SweepDirectory(storage / CAMPAIGN)


def test_what_is_found_is_a_run_or_a_campaign_or_refused(storage: Path) -> None:
    assert find_work("one", storage) == RunDirectory(storage / "one-aaaaaaaaaaaa")
    sweep_records.write(storage / "broken-sweep-1", {})
    (storage / "broken-sweep-1/job.json").write_text("{}", encoding="utf-8")
    assert find_work("broken-sweep-1", storage) == SweepDirectory(storage / "broken-sweep-1")
    with pytest.raises(InputError) as raised:
        find_work("nothing", storage)
    assert raised.value.kind == "missing_run"
    with pytest.raises(InputError, match="no job"):
        find_work(str(storage / "evaluations"), storage)
