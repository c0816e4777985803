"""Training rows that repeat each other, exactly or nearly, and those that contradict each other.

A row is kept as some hashes and a sketch, less than a KB, until all have been seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ftray.audit.finder import TRAIN
from ftray.audit.report import Check, Pointer, Worst, found
from ftray.data.conversations import Example
from ftray.data.fingerprint import Pairs, Prints, Sketches, joined, near_pairs

DUPLICATES_LIMIT = 0.01
NEAR_LIMIT = 0.05


class Duplicates:
    """Finds repetitions, near-repetitions and contradictions among the training rows."""

    def __init__(self, prints: Prints) -> None:
        """Take what makes the prints of rows, shared with others who look for likeness."""
        self._prints = prints
        self._names: list[str] = []
        self._batches: list[NDArray[np.int64]] = []  # [n, 6]: dataset, row, digest, prompt, answer, is_text
        self._sketches: list[Sketches] = []
        self._found: Pairs | None = None

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        """Keep the training rows' hashes."""
        if dataset != TRAIN or not examples:
            return
        for name in dict.fromkeys(example.dataset for example in examples):
            if name not in self._names:
                self._names.append(name)
        self._batches.append(
            np.array(
                [
                    (
                        self._names.index(example.dataset),
                        example.row,
                        int(example.digest[:15], 16),
                        hash(example.normalised_prompt),
                        hash(example.normalised_answer),
                        example.text is not None,
                    )
                    for example in examples
                ],
                dtype=np.int64,
            )
        )
        self._found = None
        self._sketches.append(self._prints.of(examples)[1])

    def checks(self) -> list[Check]:
        """Return duplicates_exact, duplicates_near and conflicts."""
        self._settle()
        return [self._exact(), self._near(), self._conflicts()]

    def repeated(self) -> Iterator[tuple[str, int]]:
        """Yield dataset and row of every training row that repeats an earlier one."""
        rows = self._settle()
        for later in np.flatnonzero(_firsts(rows[:, 2]) != np.arange(len(rows))):
            yield self._place(int(later))

    def contradictory(self) -> Iterator[tuple[str, int]]:
        """Yield the rows of a question with several answers that do not give the answer of more than half of them."""
        rows = self._settle()
        asks = np.flatnonzero(rows[:, 5] == 0)
        first = asks[_firsts(rows[asks, 3])]
        torn = set(first[rows[asks, 4] != rows[first, 4]].tolist())
        answers: dict[int, Counter[int]] = {question: Counter() for question in torn}
        torn_rows = [
            (row, question) for row, question in zip(asks.tolist(), first.tolist(), strict=True) if question in torn
        ]
        for row, question in torn_rows:
            answers[question][int(rows[row, 4])] += 1
        for row, question in torn_rows:
            if 2 * answers[question][int(rows[row, 4])] <= answers[question].total():
                yield self._place(row)

    @property
    def largest_cluster(self) -> float:
        """The share of the training rows in the largest group of rows that resemble each other."""
        rows = self._settle()
        if not len(rows):
            return 0.0
        pairs = self._pairs()
        links = coo_array((np.ones(len(pairs.later)), (pairs.earlier, pairs.later)), shape=(len(rows), len(rows)))
        _, cluster = connected_components(links, directed=False)
        return float(np.bincount(cluster).max() / len(rows))

    def _settle(self) -> NDArray[np.int64]:
        """Return all rows' hashes as one array."""
        if len(self._batches) > 1:
            self._batches = [np.concatenate(self._batches)]
        return self._batches[0] if self._batches else np.zeros((0, 6), dtype=np.int64)

    def _pairs(self) -> Pairs:
        if not self._sketches:
            return Pairs(earlier=np.zeros(0, np.int64), later=np.zeros(0, np.int64), similarity=np.zeros(0))
        if self._found is None:
            self._found = near_pairs(joined(self._sketches))
        return self._found

    def _place(self, index: int) -> tuple[str, int]:
        rows = self._settle()
        return self._names[rows[index, 0]], int(rows[index, 1])

    def _pointer(self, later: int, earlier: int, similarity: float | None) -> Pointer:
        (dataset, row), (other_dataset, other_row) = self._place(later), self._place(earlier)
        return Pointer(
            dataset=dataset, row=row, other_dataset=other_dataset, other_row=other_row, similarity=similarity
        )

    def _exact(self) -> Check:
        rows, worst = self._settle(), Worst()
        first = _firsts(rows[:, 2])
        for later in np.flatnonzero(first != np.arange(len(rows))):
            worst.add(self._pointer(int(later), int(first[later]), 1.0))
        fix = (
            f"{worst.count} training rows repeat an earlier row: remove them, or say so with the source's `weight`. "
            "`ftray audit TRAIN --write-clean FILE` writes each once."
        )
        return found("duplicates_exact", worst, rows=len(rows), fix=fix, limit=DUPLICATES_LIMIT)

    def _near(self) -> Check:
        rows, worst = self._settle(), Worst()
        is_repeated = _firsts(rows[:, 2]) != np.arange(len(rows))
        pairs = self._pairs()
        best: dict[int, tuple[float, int]] = {}
        for earlier, later, similarity in zip(pairs.earlier, pairs.later, pairs.similarity, strict=True):
            if not is_repeated[later]:
                best[int(later)] = max(best.get(int(later), (0.0, 0)), (float(similarity), int(earlier)))
        for later, (similarity, earlier) in sorted(best.items()):
            worst.add(self._pointer(later, earlier, round(similarity, 3)), similarity)
        fix = (
            f"{worst.count} training rows nearly repeat the question of an earlier row: they teach little more, and "
            "weigh twice. Keep the better one of each pair, or collect more varied rows."
        )
        return found("duplicates_near", worst, rows=len(rows), fix=fix, limit=NEAR_LIMIT)

    def _conflicts(self) -> Check:
        """Count rows whose question an earlier row answers otherwise; texts have no answer."""
        rows, worst = self._settle(), Worst()
        asks = np.flatnonzero(rows[:, 5] == 0)
        first = asks[_firsts(rows[asks, 3])]
        for later, earlier in zip(asks, first, strict=True):
            if rows[later, 4] != rows[earlier, 4]:
                worst.add(self._pointer(int(later), int(earlier), None))
        fix = f"{worst.count} training rows answer a question otherwise than an earlier row: keep the right answer."
        return found("conflicts", worst, rows=len(rows), fix=fix, limit=0.0)


def _firsts(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each key, the index of its first occurrence."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]
