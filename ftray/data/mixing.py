"""How many replay rows an epoch has, and which: functions of counts, content and seed, never of position.

The loss of a step is a mean over its labels, so long replay rows weigh more than their share of the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeVar

from ftray.artifacts import digest_of


class Digested(Protocol):
    """A row that is known by its content."""

    @property
    def digest(self) -> str:
        """The SHA-256 of what is learned."""


Row = TypeVar("Row", bound=Digested)


def count_replay(num_task_rows: int, fraction: float) -> int:
    """Return how many replay rows beside the task's make up `fraction` of all rows: to within one, and never none."""
    return max(1, round(fraction / (1 - fraction) * num_task_rows))


def choose_replay(rows: Sequence[Row], count: int, *, seed: int) -> list[Row]:
    """Return `count` of the rows: every row equally often, and the rest by a hash of seed and content.

    Another order of the file changes nothing, and one row more takes at most one other's place.
    """
    assert rows, "there is nothing to choose from"
    copies, rest = divmod(count, len(rows))
    seen: Counter[str] = Counter()
    ranks = []
    for index, row in enumerate(rows):
        ranks.append((digest_of(["replay", seed, row.digest, seen[row.digest]]), index))
        seen[row.digest] += 1
    once_more = [rows[index] for _, index in sorted(ranks)[:rest]]
    return [*list(rows) * copies, *once_more]
