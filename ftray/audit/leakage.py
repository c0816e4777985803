"""Leakage between the two sides of the training data: what chooses the checkpoint must not have been trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftray.audit.finder import TRAIN, VALIDATION
from ftray.audit.overlap import Overlaps
from ftray.audit.report import Check, Worst, found, pointer, skipped
from ftray.audit.tally import rows
from ftray.data.config import SplitConfig
from ftray.data.conversations import Example
from ftray.data.split import as_time

LEAKAGE_LIMIT = 0.05
"""Share of validation rows beyond which the choice of a checkpoint is a choice by heart."""


class Leakage:
    """Finds validation rows that repeat training rows, share a group with them, or lie before them in time."""

    def __init__(self, overlaps: Overlaps, split: SplitConfig) -> None:
        """Take the finder that has compared validation with training rows, and how the job splits."""
        self._overlaps = overlaps
        self._split = split
        self._validation: list[Example] = []
        self._groups: set[Any] = set()
        self._latest: Any = None

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        """Keep the validation rows, and what the training rows say in the split's column."""
        if dataset == VALIDATION:
            self._validation += examples
        if dataset != TRAIN or self._split.column is None:
            return
        values = [value for value in map(self._value, examples) if value is not None]
        if self._split.by == "group":
            self._groups.update(map(str, values))
        elif values:
            self._latest = max(values if self._latest is None else [self._latest, *values])

    def checks(self) -> list[Check]:
        """Return split_leakage."""
        if not self._validation:
            return [skipped("split_leakage", "There are no validation rows to compare with.", limit=LEAKAGE_LIMIT)]
        worst, seen = Worst(), set()
        for leaked in self._overlaps.leaked():
            seen.add(leaked.row)
            worst.add(leaked, leaked.similarity or 0.0)
        for example in self._validation:
            if example.row not in seen and self._is_on_both_sides(example):
                worst.add(pointer(example), 2.0)
        by = {"content": "content", "group": f"group ({self._split.column})", "time": f"time ({self._split.column})"}
        fix = (
            f"{rows(worst.count)} of validation repeat training rows, exactly or nearly, or belong to a group or time "
            f"of theirs (split by {by[self._split.by]}): the checkpoint would be chosen by heart. Set `data.split` to "
            "what makes rows belong together ({by: group, column: NAME}), or take these rows out of training with "
            "`ftray audit TRAIN --against VALIDATION --write-clean CLEAN`."
        )
        return [
            found(
                "split_leakage",
                worst,
                rows=len(self._validation),
                fix=fix,
                limit=LEAKAGE_LIMIT,
                over="fail",
                under="warn",
            )
        ]

    def _value(self, example: Example) -> Any:
        value = example.columns.get(str(self._split.column))
        return as_time(value) if self._split.by == "time" else value

    def _is_on_both_sides(self, example: Example) -> bool:
        value = self._value(example) if self._split.column is not None else None
        if value is None:
            return False
        if self._split.by == "group":
            return str(value) in self._groups
        return self._latest is not None and bool(value <= self._latest)
