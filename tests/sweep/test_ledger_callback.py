"""What a campaign's ledger says of trials whose command was killed."""

from __future__ import annotations

from typing import Any

from ftray.sweep.callback import LedgerCallback

NOTHING: Any = None


def result(step: int, best_step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "best_step": best_step, "failure": "", "nonfinite": "", "finished": False, **more}


def callback(earlier: dict[str, dict[str, Any]]) -> LedgerCallback:
    return LedgerCallback(
        configurations=NOTHING,
        ledger=NOTHING,
        directory=NOTHING,
        mode=NOTHING,
        watcher=NOTHING,
        stops=dict,
        spent=NOTHING,
        earlier=earlier,
    )


def test_a_trial_that_ends_before_it_has_told_again_keeps_what_it_was_worth() -> None:
    ledger = callback({"a": result(50, 40)})
    assert ledger._told("a") == result(50, 40)
    ledger._last["a"] = result(20, 20)
    assert ledger._told("a") == result(50, 40)
    ledger._last["a"] = result(20, 20, failure="out of memory")
    assert ledger._told("a") == result(50, 40, failure="out of memory")
    ledger._last["a"] = result(60, 60)
    assert ledger._told("a") == result(60, 60)
    assert ledger._told("b") is None
