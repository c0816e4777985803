"""The last look at the held-out rows: asked once, read again by a later attempt, and counted where asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from sweep_trials import trial

from ftray.campaign import SweepDirectory
from ftray.data.tokenization import TokenizedExample
from ftray.evaluate.config import Metric
from ftray.evaluate.predict import Answers, RowPrediction
from ftray.evaluate.tasks import Task, TaskRow
from ftray.sweep.choice import choose
from ftray.sweep.finals import Finals, compare_on_held_out_rows
from ftray.sweep.mode import BASE, Mode

EXAMPLE = cast(TokenizedExample, None)
ROWS = tuple(
    TaskRow(
        row=row,
        dataset="test",
        prompt=f"{row}?",
        prompt_tokens=(row,),
        expected="yes",
        example=EXAMPLE,
        num_bytes=3,
    )
    for row in range(40)
)
TASK = Task(name="task", role="task", metric=Metric(metric="exact_match"), rows=ROWS)
TRIALS = [
    replace(trial(name, accuracy, is_default=name == "d"), adapter=f"adapters/{name}")
    for name, accuracy in {"d": 0.5, "w": 0.9, "x": 0.8}.items()
]


class Answering:
    """Answers every row right, but the base none; counts how often it is asked."""

    asked = 0

    def answer(self, folders: Mapping[str, Path], which: Sequence[str], *, with_base: bool) -> dict[str, Answers]:
        assert list(which) == ["held_out"]
        self.asked += 1
        return {name: {"task": _rows(right=name != BASE)} for name in (*folders, BASE)}


def _rows(*, right: bool) -> list[RowPrediction]:
    known: dict[str, Any] = {"task": "task", "nll": None, "num_labels": 1, "num_bytes": 3}
    return [
        RowPrediction(
            row=row.row,
            prompt=row.prompt,
            expected=row.expected,
            prediction="yes" if right else "no",
            score=float(right),
            correct=right,
            **known,
        )
        for row in ROWS
    ]


def finals(mode: Answering, folder: Path, *, finalists: int) -> Finals:
    choice = choose(TRIALS, higher_is_better=True, finalists=finalists)
    return compare_on_held_out_rows(
        cast(Mode, mode), choice, SweepDirectory(folder), task=TASK, split="test", higher_is_better=True
    )


def test_the_rows_are_asked_once_and_counted_where_they_are_asked_again(tmp_path: Path) -> None:
    mode = Answering()
    first = finals(mode, tmp_path, finalists=1)
    again = finals(mode, tmp_path, finalists=1)
    assert (mode.asked, first.test_reads, again.test_reads) == (1, 1, 1)
    assert again.answers == first.answers
    assert again.comparison.winner.value == first.comparison.winner.value
    assert again.comparison.base.value == 0.0
    assert finals(mode, tmp_path, finalists=2).test_reads == mode.asked == 2
