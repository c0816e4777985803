"""Counts rows with a fault: how many, in which datasets, of which kinds, and the few where it is worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from ftray.audit.report import Worst, pointer
from ftray.data.conversations import Example

NUM_KINDS = 1000
"""Different kinds that are counted apart; later ones are counted together."""
SHOWN_KINDS = 20


class Tally:
    """What a finder that judges rows one by one has to remember."""

    def __init__(self) -> None:
        self.worst = Worst()
        self.rows = 0
        self.kinds: Counter[str] = Counter()
        """Rows by kind of fault; a row may have several."""
        self._datasets: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self.worst.count

    def pass_by(self, examples: Sequence[Example]) -> None:
        """Count rows that are looked at."""
        self.rows += len(examples)

    def add(self, example: Example, kinds: Collection[str] = (), *, severity: float = 0.0) -> None:
        """Count a row with a fault, once, under each of its kinds."""
        self.worst.add(pointer(example), severity)
        self._datasets[example.dataset] += 1
        for kind in kinds:
            self.kinds[kind if kind in self.kinds or len(self.kinds) < NUM_KINDS else "others"] += 1

    @property
    def facts(self) -> dict[str, Any]:
        """The rows with a fault by dataset, and by kind where there are kinds; the commonest kinds first."""
        if not self.count:
            return {}
        kinds = {"kinds": dict(self.kinds.most_common(SHOWN_KINDS))} if self.kinds else {}
        return {"datasets": dict(self._datasets.most_common()), **kinds}

    def say(self, noun: str) -> str:
        """Return "12 rows have NOUN (10 in train, 2 in test)", in the words a fix begins with."""
        where = ", ".join(f"{number} in {dataset}" for dataset, number in self._datasets.most_common(5))
        return f"{rows(self.count)} {'has' if self.count == 1 else 'have'} {noun} ({where})"


def rows(number: int) -> str:
    """Return "1 row" or "12 rows"."""
    return f"{number} row" if number == 1 else f"{number} rows"
