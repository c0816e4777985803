"""Long runs of words that evaluation rows and training rows share, found by hashes of all runs of a chunk at once.

Shapes: T words of all rows end to end, G runs held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
RUN_WORDS = 13
"""Words in a row that two texts do not share by chance (Brown et al. 2020, arXiv:2005.14165, appendix C)."""
ANSWER_WORDS = 8
"""The shortest answer that is looked for whole."""
COMMON_ROWS = 3
COMMON_SHARE = 0.01
"""A run in more rows of the evaluation sets than this is a phrase of the data set, and tells nothing."""
CONSTANT_LEAST_ROWS = 20
"""Fewer evaluation rows than this do not show what is a template."""
_BASE = 0x9E3779B97F4A7C15
_TOP = 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A held row and a row asked with that share a run of words."""

    held: int
    asked: int


class RunIndex:
    """Runs of words of evaluation rows, to be found in training rows."""

    def __init__(self, questions: Sequence[str], answers: Sequence[str], datasets: Sequence[str]) -> None:
        """Take normalised texts and the evaluation set they are of, one of each a row."""
        sizes = Counter(datasets)
        texts: dict[str, list[str]] = {dataset: [] for dataset in sizes}
        for question, answer, dataset in zip(questions, answers, datasets, strict=True):
            texts[dataset].append(f"{question} {answer}")
        constant = {dataset: _constant_pairs(some) for dataset, some in texts.items()}
        owners: dict[int, list[tuple[int, int]]] = {}
        frequency: Counter[tuple[str, int, int]] = Counter()
        for row, (question, answer, dataset) in enumerate(zip(questions, answers, datasets, strict=True)):
            held = {
                (RUN_WORDS, value) for text in (question, answer) for value in _telling_runs(text, constant[dataset])
            }
            short = answer.split()
            if ANSWER_WORDS <= len(short) < RUN_WORDS:
                held.add((len(short), _row_runs(short, len(short))[0]))
            for length, value in held:
                frequency[dataset, length, value] += 1
                owners.setdefault(length, []).append((value, row))
        most = {dataset: max(COMMON_ROWS, COMMON_SHARE * size) for dataset, size in sizes.items()}
        self._runs: dict[int, Hashes] = {}
        self._rows: dict[int, NDArray[np.int64]] = {}
        # In the order of the lengths: that of a set of hashes differs from process to process.
        for length, runs in sorted(owners.items()):
            kept = sorted(
                (value, row) for value, row in runs if frequency[datasets[row], length, value] <= most[datasets[row]]
            )
            self._runs[length] = np.array([value for value, _ in kept], dtype=np.uint64)
            self._rows[length] = np.array([row for _, row in kept], dtype=np.int64)

    def find(self, texts: Sequence[str]) -> Iterator[Hit]:
        """Yield every pair of a held row and a text (normalised) that share a run."""
        if not any(len(runs) for runs in self._runs.values()):
            return
        rows = [text.split() for text in texts]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        words = _hashes([word for row in rows for word in row])
        row_of = np.repeat(np.arange(len(rows)), lengths)
        for length, held in self._runs.items():
            if len(words) < length or not len(held):
                continue
            runs = _runs(words, length)
            inside = row_of[: len(runs)] == row_of[length - 1 :]
            first, last = np.searchsorted(held, runs, side="left"), np.searchsorted(held, runs, side="right")
            hits = np.flatnonzero(inside & (last > first))
            counts = last[hits] - first[hits]
            # Every row that holds the run: its places lie side by side.
            offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            places = np.repeat(first[hits], counts) + offsets
            found = np.stack([self._rows[length][places], np.repeat(row_of[hits], counts)], axis=1)
            yield from (Hit(held=int(one), asked=int(other)) for one, other in np.unique(found, axis=0))


def _hashes(words: Sequence[str]) -> Hashes:
    """Hash words; the hashes live as long as the process, which is all that is compared."""
    return np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)


def _runs(words: Hashes, length: int) -> Hashes:
    """Return the hash of every run of `length` words [T - length + 1], also of those that cross rows."""
    count = len(words) - length + 1
    total = np.zeros(max(0, count), dtype=np.uint64)
    factor = 1
    for offset in range(length):
        factor = factor * _BASE % _TOP
        # Each word is mixed first, or sums of neighbours would collide.
        part = words[offset : offset + count] * np.uint64(factor)
        total += part ^ (part >> np.uint64(31))
    return total


def _constant_pairs(texts: Sequence[str]) -> Hashes:
    """Return the word pairs that most of the texts share: a template's."""
    if len(texts) < CONSTANT_LEAST_ROWS:
        return np.zeros(0, dtype=np.uint64)
    counts = Counter(pair for text in texts for pair in set(_row_runs(text.split(), 2)))
    return np.array([pair for pair, count in counts.items() if 2 * count > len(texts)], dtype=np.uint64)


def _telling_runs(text: str, constant: Hashes) -> list[int]:
    """Return the runs of a text that are not mostly a template's words."""
    words = _hashes(text.split())
    if len(words) < RUN_WORDS:
        return []
    runs = _runs(words, RUN_WORDS)
    is_told = ~np.isin(_runs(words, 2), constant)
    told = np.convolve(is_told, np.ones(RUN_WORDS - 1, dtype=np.int64), mode="valid")
    return list(map(int, runs[2 * told >= RUN_WORDS - 1]))


def _row_runs(words: list[str], length: int) -> list[int]:
    return list(map(int, _runs(_hashes(words), length))) if len(words) >= length else []
