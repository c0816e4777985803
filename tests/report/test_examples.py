"""The rows a report shows: few, telling, spread, and the same every time."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ftray.report.examples import choose_examples, outcome_of, spread


def line(row: int, base: bool | None, tuned: bool | None, scores: tuple[float, float] = (0.0, 0.0)) -> dict[str, Any]:
    graded = {"base_correct": base, "tuned_correct": tuned, "base_score": scores[0], "tuned_score": scores[1]}
    return {"task": "task", "row": row, "prompt": "", "expected": "", "base": "", "tuned": "", **graded}


@given(st.lists(st.tuples(st.booleans(), st.booleans())), st.integers(1, 12))
def test_as_many_rows_as_asked_none_twice_and_every_telling_outcome(
    grades: list[tuple[bool, bool]], count: int
) -> None:
    lines = [line(row, *grade) for row, grade in enumerate(grades)]
    chosen = choose_examples(lines, task="task", higher_is_better=True, count=count)
    assert len(chosen) == min(count, len(lines))
    assert len({example.row for example in chosen}) == len(chosen)
    shown = {example.outcome for example in chosen}
    telling = {outcome_of(one, higher_is_better=True) for one in lines} - {"still_right"}
    assert len(shown & telling) == min(count, len(telling))


def test_scores_decide_where_there_is_no_right_and_wrong() -> None:
    rose = line(0, None, None, (1.0, 2.0))
    assert outcome_of(rose, higher_is_better=True) == "better"
    assert outcome_of(rose, higher_is_better=False) == "worse"
    assert outcome_of(line(0, None, None, (1.0, 1.0)), higher_is_better=False) == "unchanged"


def test_rows_of_other_tasks_are_left_out() -> None:
    assert choose_examples([line(0, False, True)], task="other", higher_is_better=True) == ()


def test_a_sorted_file_still_shows_its_middle_and_its_ends() -> None:
    rows = [one["row"] for one in spread([line(row, False, True) for row in range(100)], 4)]
    assert rows == [12, 37, 62, 87]
