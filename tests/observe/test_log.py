"""Log lines for machines: one object each, with run, trial, worker and step; nothing where people read."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import pytest
from typer.testing import CliRunner

from ftray.campaign import Point, TrialResult
from ftray.cli import app
from ftray.display import open_display
from ftray.errors import InputError, Interrupted
from ftray.observe import log
from ftray.submit.progress import said_so_far
from ftray.sweep.leaderboard import open_leaderboard


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(log.VARIABLE, "json")


def test_a_line_has_what_is_known() -> None:
    stream = io.StringIO()
    written = log.JsonLog(stream, run="abc", worker=3)
    written.bind(job="router")
    written.write("ran\naway", level="warning", step=7, trial=None, value=float("nan"))
    (line,) = lines(stream.getvalue())
    assert line["time"].endswith("Z")
    assert {name: line[name] for name in ("level", "message", "run", "worker", "job", "step")} == {
        "level": "warning", "message": "ran\naway", "run": "abc", "worker": 3, "job": "router", "step": 7,
    }  # fmt: skip
    assert line["pid"] == os.getpid()
    assert "trial" not in line
    assert line["value"] is None


def test_errors_are_lines(as_json: None, capfd: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(app, ["train", "/nowhere/job.yaml"])
    assert result.exit_code == 2
    (line,) = lines(result.stderr)
    assert (line["level"], line["exit_code"], line["event"]) == ("error", 2, "error")
    assert line["hint"]
    stream = io.StringIO()
    log.JsonLog(stream).error(Interrupted("interrupted", kind="interrupted"))
    assert lines(stream.getvalue())[0]["level"] == "warning"


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(log.VARIABLE, "xml")
    with pytest.raises(InputError) as caught:
        log.is_json()
    assert caught.value.allowed == ["text", "json"]
    result = CliRunner().invoke(app, ["train", "/nowhere/job.yaml", "--json"])
    assert (result.exit_code, json.loads(result.stdout)["kind"]) == (2, "bad_value")


def test_people_get_no_lines_for_machines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(log.VARIABLE, raising=False)
    log.say("nobody reads this")
    assert capsys.readouterr().err == ""


def test_a_runs_lines_say_how_far_it_is(as_json: None, capsys: pytest.CaptureFixture[str]) -> None:
    with open_display(quiet=False) as display:
        display({"kind": "event", "step": 0, "epoch": 0.0, "event": "started", "attempt": 1})
        display(
            {"kind": "step", "step": 5, "epoch": 0.5, "attempt": 1, "train/loss": 2.0, "train/losses": [1.0, 2.0],
             "train/tokens_per_second": 812.0}
        )  # fmt: skip
        display({"kind": "event", "step": 6, "epoch": 0.6, "event": "loss_spike", "message": "it jumped", "rows": []})
    started, step, spike = lines(capsys.readouterr().err)
    assert (started["event"], started["attempt"], started["worker"]) == ("started", 1, 0)
    assert (step["event"], step["step"], step["train/loss"]) == ("step", 5, 2.0)
    assert "train/losses" not in step
    assert (spike["level"], spike["message"]) == ("warning", "it jumped")
    assert said_so_far([json.dumps(started), json.dumps(step), "{torn", "step 3/9  loss 1"]).step == 3
    progress = said_so_far([json.dumps({**step, "total_steps": 9})])
    assert (progress.step, progress.total_steps, progress.tokens_per_second) == (5, 9, 812.0)


def test_a_campaigns_lines_name_their_trial(as_json: None, capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "step": 4, "epoch": 1.0, "tokens": 100, "validation_accuracy": 0.5, "validation_loss": 1.0,
        "best_validation_accuracy": 0.5, "train_loss": 1.1, "prefix_of": None,
    }  # fmt: skip
    point = Point(step=4, validation_accuracy=0.5, validation_loss=1.0)
    ended = TrialResult(
        trial_id="t1", config={"rank": 8}, seed=0, state="failed", reason="out of memory", steps=4, epochs=1.0,
        best=point, last=point, seconds=1.0, tokens=100, adapter=None,
    )  # fmt: skip
    with open_leaderboard(quiet=False, metric="exact_match") as board:
        board.on_plan({"name": "router", "sweep_id": "0123456789abcdef", "trials": 3})
        board.on_result("t1", {"rank": 8}, result)
        board.on_end(ended)
    told = lines(capsys.readouterr().err)
    assert {line["sweep"] for line in told} == {"0123456789ab"}
    evaluated, end = told[-2:]
    assert (evaluated["trial"], evaluated["step"], evaluated["config"]) == ("t1", 4, {"rank": 8})
    assert (end["level"], end["state"], end["message"], end["trial"]) == ("error", "failed", "out of memory", "t1")
    progress = said_so_far([json.dumps(line) for line in told])
    assert (progress.trials, progress.total_trials, progress.step) == (1, 3, None)


def test_workers_say_what_only_they_know(
    as_json: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log.bind(run="r", worker=1)
    log.say("a command's own display says this")
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(log, "_is_worker", True)
    log.say("has done its work", event="done", step=3)
    (line,) = lines(capfd.readouterr().err)
    assert (line["run"], line["worker"], line["step"], line["event"]) == ("r", 1, 3, "done")
