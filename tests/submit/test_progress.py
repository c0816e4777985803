from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ftray.artifacts import RunDirectory
from ftray.campaign import SweepDirectory
from ftray.display import PlainLines
from ftray.submit.progress import (
    Progress,
    campaign_time_left,
    run_progress,
    said,
    said_so_far,
    seconds_of,
    sweep_progress,
)
from ftray.summary import duration


def step_line(step: int, *, attempt: int = 1, minute: int = 0, rate: float = 2000.0) -> dict[str, Any]:
    time = f"2026-01-01T00:{minute:02d}:00.000Z"
    numbers = {"train/loss": 1.25, "train/tokens_per_second": rate}
    return {"time": time, "attempt": attempt, "step": step, "epoch": 0.1, "kind": "step", **numbers}


def test_what_the_command_prints_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """The lines are those of the display itself: whoever changes them sees it here."""
    shown = PlainLines(Console(highlight=False, width=200), "exact_match")
    shown._course.total = 40
    shown(step_line(10))
    shown._course.first_time -= 100.0
    shown(step_line(20, rate=12345.0))
    progress = said_so_far(capsys.readouterr().out.splitlines())
    assert (progress.step, progress.total_steps, progress.tokens_per_second) == (20, 40, 12345.0)
    assert progress.seconds_left == pytest.approx(200, abs=2)


@pytest.mark.parametrize("seconds", [3.2, 12.0, 65.0, 600.0, 3720.0, 90000.0])
def test_durations_are_read_as_they_are_spelt(seconds: float) -> None:
    assert seconds_of(duration(seconds)) == pytest.approx(seconds, abs=30 if seconds > 3600 else 0.5)
    assert said(f"step 5/10  loss 1  {duration(seconds)} left")["seconds_left"] == seconds_of(duration(seconds))


def test_a_campaign_is_as_far_as_its_trials() -> None:
    lines = ["boxes: 16 trials", "mode: shared (it fits)", "3 of 16 trials ended (3 completed)  best 0.5"]
    assert said_so_far(lines) == Progress(trials=3, total_trials=16)


@pytest.mark.parametrize(
    "line", ["", "stepping stones", "the loss of step 5/10", "a: trials", "Traceback (most recent"]
)
def test_other_lines_say_nothing(line: str) -> None:
    assert said(line) == {}


def test_a_runs_folder_says_more_than_its_log(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run_progress(run) == Progress()
    run.plan.write_text('{"total_steps": 100}')
    lines = [step_line(90, minute=59), step_line(10, attempt=2, minute=0), step_line(30, attempt=2, minute=2)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    progress = run_progress(run)
    assert (progress.step, progress.total_steps, progress.tokens_per_second) == (90, 100, 2000.0)
    # The newest attempt took 2 minutes for 20 steps.
    assert progress.seconds_left == pytest.approx(10 * 6.0)


def campaign(folder: Path, *, metric: str = "exact_match") -> SweepDirectory:
    """Return a campaign of four trials: one has ended, one runs, one's seed is another."""
    sweep = SweepDirectory(folder)
    job = {"campaign": {"trials": 4}, "job": {"evaluate": {"task": {"metric": metric}}}}
    sweep.job.write_text(json.dumps(job))
    ended = {"trial_id": "a", "state": "pruned", "best": {"validation_accuracy": 0.5}}
    seed = {"trial_id": "s", "role": "seed", "state": "completed", "best": {"validation_accuracy": 0.9}}
    sweep.ledger.write_text(f'{json.dumps(ended)}\n{json.dumps(seed)}\n{{"trial_id": "to')
    for name, seconds in (("a", 1000), ("b", 1100)):
        trial = sweep.trial(name)
        trial.root.mkdir(parents=True)
        (trial.root / "trial.json").write_text("{}")
        os.utime(trial.root / "trial.json", (seconds, seconds))
    lines = [{**step_line(10 * count, minute=count), "train/tokens": 600 * count} for count in (1, 2, 3)]
    lines.append({**lines[-1], "kind": "evaluation", "val/accuracy": 0.7})
    sweep.trial("b").metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return sweep


def test_how_far_a_campaign_is(tmp_path: Path) -> None:
    sweep = campaign(tmp_path)
    progress = sweep_progress(sweep)
    assert (progress.trials, progress.total_trials, progress.best_value) == (1, 4, 0.7)
    assert progress.states == {"pruned": 1, "running": 1}
    assert progress.tokens_per_second == pytest.approx(1200 / 120)
    assert sweep.ledger.read_text().endswith("to"), "another process writes it"


def test_a_metric_may_be_better_when_it_is_lower(tmp_path: Path) -> None:
    assert sweep_progress(campaign(tmp_path, metric="perplexity")).best_value == 0.5


def test_a_campaign_that_has_only_begun_has_no_rate(tmp_path: Path) -> None:
    assert sweep_progress(SweepDirectory(tmp_path)) == Progress(trials=0, states={})


def test_the_rest_of_a_campaign_is_at_the_pace_so_far() -> None:
    begun = {"a": 1000.0, "b": 1100.0}
    assert campaign_time_left(begun, 2, 8, now=1300.0) == pytest.approx(6 * 150.0)
    assert campaign_time_left(begun, 0, 8, now=1300.0) is None
    assert campaign_time_left({}, 2, 8, now=1300.0) is None
