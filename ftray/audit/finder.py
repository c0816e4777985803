"""The seam of the gate: every kind of fault is looked for by a `Finder`, which sees each row once and keeps little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ftray.audit.report import Check
from ftray.data.conversations import Example

TRAIN, VALIDATION, TEST = "train", "validation", "test"
"""Names of datasets; any other name is a general probe's."""


class Finder(Protocol):
    """Looks for one kind of fault in rows that go by, a million of them in a few GB.

    The evaluation sets (validation, test, probes) come first, whole; then the training rows, in chunks, in file order.
    """

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        """Take the next rows of a dataset."""

    def checks(self) -> Sequence[Check]:
        """Return what was found, after all rows have been seen."""
