"""Which held-out rows a report shows: fixed, still wrong and broken ones first, spread over the whole file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Line = TypeVar("Line")
Outcome = Literal["fixed", "still_wrong", "broken", "still_right", "better", "worse", "unchanged"]
TELLING: tuple[Outcome, ...] = ("fixed", "better", "still_wrong", "unchanged", "broken", "worse")
"""Outcomes that take turns, in the page's order; rows that were always right fill what is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleRow:
    """One held-out row before and after."""

    row: int
    prompt: str
    expected: str
    base: str
    tuned: str
    base_score: float | None
    tuned_score: float | None
    outcome: Outcome
    scored_only: bool
    """There is no right and wrong here, only a score."""


def outcome_of(line: Mapping[str, Any], *, higher_is_better: bool) -> Outcome:
    """Return what fine-tuning did to one row of predictions.jsonl."""
    before, after = line["base_correct"], line["tuned_correct"]
    if before is not None and after is not None:
        if before:
            return "still_right" if after else "broken"
        return "fixed" if after else "still_wrong"
    base, tuned = line["base_score"], line["tuned_score"]
    if base is None or tuned is None or base == tuned:
        return "unchanged"
    return "better" if (tuned > base) == higher_is_better else "worse"


def choose_examples(
    predictions: Sequence[Mapping[str, Any]], *, task: str, higher_is_better: bool, count: int = 10
) -> tuple[ExampleRow, ...]:
    """Return up to `count` rows of a task, a mix of outcomes; the same rows every time."""
    groups: dict[Outcome, list[Mapping[str, Any]]] = {outcome: [] for outcome in (*TELLING, "still_right")}
    for line in predictions:
        if line["task"] == task:
            groups[outcome_of(line, higher_is_better=higher_is_better)].append(line)
    places = dict.fromkeys(groups, 0)
    turns = [outcome for turn in range(count) for outcome in TELLING if len(groups[outcome]) > turn]
    for outcome in turns[:count]:
        places[outcome] += 1
    places["still_right"] = min(count - sum(places.values()), len(groups["still_right"]))
    return tuple(
        _example(line, outcome) for outcome, lines in groups.items() for line in spread(lines, places[outcome])
    )


def spread(lines: Sequence[Line], count: int) -> list[Line]:
    """Return `count` lines at even distances: a file sorted by answer still shows different answers."""
    return [lines[(2 * index + 1) * len(lines) // (2 * count)] for index in range(count)]


def _example(line: Mapping[str, Any], outcome: Outcome) -> ExampleRow:
    return ExampleRow(
        row=line["row"],
        prompt=line["prompt"],
        expected=line["expected"],
        base=line["base"],
        tuned=line["tuned"],
        base_score=line["base_score"],
        tuned_score=line["tuned_score"],
        outcome=outcome,
        scored_only=line["base_correct"] is None,
    )
