from __future__ import annotations

import io
from typing import Any

import pytest
import sweep_records
from rich.console import Console

from ftray.sweep_summary import show_sweep


def shown(record: dict[str, Any], command: str = "ftray sweep job.yaml") -> str:
    file = io.StringIO()
    show_sweep(record, Console(file=file, width=160), command=command)
    return file.getvalue()


def pairs(text: str) -> dict[str, str]:
    """Return the last line that begins with each word."""
    return {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.split()}


def numbers(text: str) -> dict[str, str]:
    """Return the first line that begins with each word: that of the table."""
    return {one.split()[0]: " ".join(one.split()[1:]) for one in reversed(lines(text))}


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.split()]


def test_the_end_says_what_to_take_and_shows_it() -> None:
    text = shown(sweep_records.sweep_record())
    assert text.splitlines()[1].startswith("take the winner")
    found = pairs(text)
    table = numbers(text)
    assert table["base"].startswith("2.1% (0.6% to 3.6%) 1.8% (0.6% to 3.0%) -")
    assert table["default"].startswith("83.5% (80.5% to 86.5%) 86.1% (83.1% to 89.1%) -")
    assert "91.2% (88.2% to 94.2%) +5.1 (+3.1 to +7.1)" in table["winner"]
    assert found["winner"].startswith("rank=32 alpha_over_rank=2")
    assert found["default"].startswith("rank=16 alpha_over_rank=2")
    assert text.count("finalist") >= 2
    assert found["trials"].startswith("6 completed, 6 pruned, 2 diverged, 1 failed, 1 budget, 2 equal")
    assert found["time"] == "6 min 11 s to the decision, 6 min 42 s in all, 0.214 accelerator-hours"
    assert found["adapter"] == f"trials/{sweep_records.trial_id(2)}/adapter"
    assert "100 validation rows" in found["note"]


def test_the_next_command_trains_the_winner_as_the_campaign_did() -> None:
    command = "ftray sweep 'my job.yaml' --set train.seed=3 --set sweep.trials=8 --force-mode shared --storage runs"
    found = pairs(shown(sweep_records.sweep_record(), command))["next"]
    settings = "method.rank=32 --set method.alpha=64 --set train.learning_rate=0.00071 --set train.epochs=3"
    assert found == (
        f"ftray train 'my job.yaml' --set train.seed=3 --storage runs --set {settings} (the winner, trained by itself)"
    )


def test_the_default_needs_no_settings_and_the_base_no_training() -> None:
    record = sweep_records.sweep_record() | {"recommended": "default"}
    found = pairs(shown(record))
    assert found["next"] == "ftray train job.yaml (the default, trained by itself)"
    assert found["adapter"] == f"trials/{sweep_records.trial_id(0)}/adapter"
    base = shown(record | {"recommended": "base"})
    assert base.splitlines()[1].startswith("keep the base")
    assert not {"next", "adapter"} & pairs(base).keys()


def test_the_verdict_stands_beside_the_recommendation() -> None:
    verdict = {"decision": "do_not_ship", "reasons": ["Probe 'stories' rose by 1.9 bits per byte."]}
    record = sweep_records.sweep_record() | {"verdict": verdict}
    assert pairs(shown(record))["verdict"] == "do not ship: Probe 'stories' rose by 1.9 bits per byte."
    assert "verdict" not in pairs(shown(record | {"recommended": "base"}))


@pytest.mark.parametrize(("status", "rest"), [("failed", " --fresh"), ("interrupted", "")])
def test_a_campaign_that_did_not_end_says_how_to_go_on(status: str, rest: str) -> None:
    record = sweep_records.sweep_record() | {"status": status, "winner": None, "default": None, "finalists": []}
    text = shown(record | {"reasons": ["Nothing has a value."]})
    assert text.splitlines()[1].startswith(status)
    assert "Nothing has a value." in text
    assert pairs(text)["next"].partition("   ")[0].partition(" (")[0] == f"ftray sweep job.yaml{rest}"
    assert "winner" not in text


def test_the_default_as_winner_stands_once() -> None:
    record = sweep_records.sweep_record()
    record |= {"winner": record["default"], "reused": True, "status": "budget", "recommended": "default"}
    text = shown(record)
    assert "winner: default" in text
    assert "reused" in text
    assert text.count("rank=16") == 1


def test_a_budget_that_ended_everything_is_no_word_on_the_base() -> None:
    record = sweep_records.sweep_record() | {"status": "budget", "winner": None, "default": None, "finalists": []}
    text = shown(record | {"recommended": "base", "reasons": ["No trial has a value."]})
    assert text.splitlines()[1].startswith("out of budget")
    assert "sweep.budget" in pairs(text)["next"]
