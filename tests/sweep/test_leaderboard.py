from __future__ import annotations

import io
from typing import Any

import pytest
import sweep_records
from rich.console import Console

from ftray.campaign import TrialResult
from ftray.sweep.leaderboard import LiveBoard, PlainBoard, Standing, open_leaderboard

PLAN = {
    "name": "router-sweep", "trials": 16, "mode": "shared", "mode_reason": "LoRA that fits", "searcher": "optuna",
    "searcher_reason": "10 trials or more", "scheduler": "asha", "slots": 8, "workers": 2, "notes": ["few rows"],
}  # fmt: skip


def result(value: float, step: int = 10) -> dict[str, Any]:
    return {"step": step, "epoch": 0.25, "tokens": 4800, "best_validation_accuracy": value}


def ended(number: int, **changes: Any) -> TrialResult:
    return TrialResult.from_record({**sweep_records.trial(number), **changes})


def feed(board: PlainBoard | LiveBoard, *, trials: int) -> None:
    for number in range(trials):
        board.on_result(sweep_records.trial_id(number), sweep_records.config(number), result(0.1))
        board.on_result(sweep_records.trial_id(number), sweep_records.config(number), result(0.2, 20))
        board.on_end(ended(number))


def test_off_a_terminal_a_line_when_a_trial_starts_and_one_when_it_ends() -> None:
    file = io.StringIO()
    with open_leaderboard(quiet=False, metric="exact_match", console=Console(file=file, width=40)) as board:
        board.on_plan(PLAN)
        board.say("Measuring")
        board.on_result("aa", {"rank": 8, "learning_rate": 2e-4}, result(0.5))
        board.on_result("aa", {"rank": 8, "learning_rate": 2e-4}, result(0.6, 20))
        board.on_end(ended(3, trial_id="aa"))
    lines = file.getvalue().splitlines()
    assert lines[:5] == [
        "router-sweep: 16 trials",
        "mode: shared (LoRA that fits)",
        "searcher: optuna (10 trials or more)",
        "scheduler: asha",
        "trainers: 2, 8 trials on each at a time",
    ]
    assert lines[5:8] == ["note: few rows", "Measuring", "trial aa runs: rank=8 learning_rate=0.0002"]
    assert lines[8].startswith("trial aa pruned: exact_match 68.5% at step 40, 1.00 epochs; rank=4")
    assert lines[8].endswith("was not among the better third")
    assert len(lines) == 9


def test_now_and_then_it_says_where_the_campaign_is() -> None:
    file = io.StringIO()
    board = PlainBoard(Console(file=file), "exact_match")
    board.on_plan(PLAN)
    feed(board, trials=16)
    summaries = [line for line in file.getvalue().splitlines() if "trials ended" in line]
    assert 5 <= len(summaries) <= 10
    assert summaries[-1].startswith("16 of 16 trials ended (6 completed, 6 pruned, 2 diverged, 1 failed, 1 budget)")
    assert "best exact_match 96.3%: rank=32" in summaries[-1]


def test_quiet_is_silent() -> None:
    file = io.StringIO()
    with open_leaderboard(quiet=True, metric="exact_match", console=Console(file=file, force_terminal=True)) as board:
        board.on_plan(PLAN)
        board.on_result("aa", {"rank": 8}, result(0.5))
        board.on_end(ended(0))
    assert file.getvalue() == ""


def test_on_a_terminal_the_best_trials_stand_in_a_table() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=160, no_color=True)
    with open_leaderboard(quiet=False, metric="exact_match", console=console) as board:
        assert isinstance(board, LiveBoard)
        board.on_plan(PLAN)
        feed(board, trials=14)
        board.on_result("bb", {"rank": 3}, result(0.99))
    shown = io.StringIO()
    Console(file=shown, width=160).print(board.render())
    text = shown.getvalue()
    first = next(line for line in text.splitlines() if line.strip().startswith("1 "))
    assert first.split()[:5] == ["1", "99.0%", "0.25", "4,800", "running"]
    assert "and 5 more" in text
    assert "14 of 16 trials ended" in text
    assert "1 running" in text
    assert "trial 000000000000 (default) completed" in file.getvalue()


def test_before_the_first_result_there_is_what_happens_now() -> None:
    shown = io.StringIO()
    board = LiveBoard(Console(file=io.StringIO()), "exact_match")
    board.say("Measuring the speed")
    Console(file=shown, width=80).print(board.render())
    assert "Measuring the speed" in shown.getvalue()


def test_where_less_is_better_the_least_leads() -> None:
    standing = Standing("nll")
    for name, value in (("a", 2.0), ("b", 1.0), ("c", float("nan"))):
        standing.take(name, {"rank": 4}, result(value))
    assert [entry.trial_id for entry in standing.ranked()] == ["b", "a", "c"]
    assert standing.best() == "best nll 1: rank=4"


def test_a_seed_of_the_winner_is_no_candidate() -> None:
    standing = Standing("exact_match", total=2)
    standing.take("again", {"rank": 4}, result(0.9))
    standing.end(ended(0, trial_id="again", role="seed", seed=3))
    assert standing.ranked() == []
    assert standing.best() == ""


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_campaign_that_goes_on_counts_what_had_ended_before(is_terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=160, no_color=True)
    with open_leaderboard(quiet=False, metric="exact_match", console=console) as board:
        board.on_plan(PLAN)
        for number in range(12):
            board.remember(ended(number))
        board.on_result("aa", {"rank": 3}, result(0.99))
    assert board._standing.counts().startswith("12 of 16 trials ended")  # type: ignore[attr-defined]
    told = [line for line in file.getvalue().splitlines() if "completed" in line or "pruned" in line]
    assert not [line for line in told if line.startswith("trial 0")], "they are no news"
