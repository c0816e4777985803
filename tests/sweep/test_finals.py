"""The test rows of a campaign: every model is asked them once, whatever is asked of the campaign later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sweep_trials import trial

from ftray.campaign import SweepDirectory
from ftray.evaluate.config import Metric
from ftray.evaluate.predict import Answers, RowPrediction
from ftray.sweep.choice import choose
from ftray.sweep.finals import Finals, compare_on_held_out_rows

ROWS = [SimpleNamespace(row=row, prompt="q", expected="a") for row in range(4)]
TASK: Any = SimpleNamespace(name="task", metric=Metric(metric="exact_match"), rows=ROWS)


class Asking:
    """A mode that counts who is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def answer(self, folders: Mapping[str, Path], which: Sequence[str], *, with_base: bool) -> dict[str, Answers]:
        names = [*folders, *([""] if with_base else [])]
        self.asked += names
        return {name: {"task": [answered(row.row) for row in ROWS]} for name in names}


def answered(row: int) -> RowPrediction:
    right = {"prediction": "a", "score": 1.0, "correct": True, "nll": None, "num_labels": 1, "num_bytes": 1}
    return RowPrediction(task="task", row=row, prompt="q", expected="a", ended=True, kept=None, **right)  # type: ignore[arg-type]


def look(mode: Any, root: Path, *, finalists: int) -> Finals:
    results = [trial(name, 0.9 - index / 10, adapter=str(root)) for index, name in enumerate("abc")]
    choice = choose(results, higher_is_better=True, finalists=finalists)
    return compare_on_held_out_rows(
        mode, choice, SweepDirectory(root), task=TASK, split="test", higher_is_better=True
    )  # fmt: skip


def test_nobody_is_asked_twice_and_the_record_says_how_often_the_rows_were(tmp_path: Path) -> None:
    mode = Asking()
    assert look(mode, tmp_path, finalists=1).test_reads == 1
    assert look(mode, tmp_path, finalists=1).test_reads == 1
    assert mode.asked == ["a", ""]
    wider = look(mode, tmp_path, finalists=3)
    assert wider.test_reads == 2
    assert mode.asked == ["a", "", "b", "c"]
    assert look(mode, tmp_path, finalists=2).test_reads == 2
    assert mode.asked == ["a", "", "b", "c"]
