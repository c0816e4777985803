"""A sample of rows that go by: the rows with the smallest hashes, so that the same data give the same sample.

The hash is of the name of the row's own dataset (a training file's, where there are several) and of its number: rows
put at the end of a file change only what they displace.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ftray.data.conversations import Example

Kept = TypeVar("Kept")
LARGEST = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Sampled(Generic[Kept]):
    """A row of the sample: what was kept of it."""

    key: int
    dataset: str
    row: int
    kept: Kept


class Sample(Generic[Kept]):
    """Keeps at most `size` rows of a stream, each by what `keep` makes of it; None is not kept."""

    def __init__(self, size: int, keep: Callable[[Example], Kept | None]) -> None:
        self.num_seen = 0
        self._size = size
        self._keep = keep
        self._threshold = LARGEST
        self._rows: list[Sampled[Kept]] = []

    def see(self, examples: Sequence[Example]) -> None:
        """Take the next rows."""
        self.num_seen += len(examples)
        keys = _hashes(examples)
        for index in np.flatnonzero(keys <= np.uint64(self._threshold)).tolist():
            example = examples[index]
            kept = self._keep(example)
            if kept is not None:
                self._rows.append(Sampled(int(keys[index]), example.dataset, example.row, kept))
        if len(self._rows) >= 2 * self._size:
            self._shrink()

    @property
    def rows(self) -> list[Sampled[Kept]]:
        """The sample in the order of the hashes, which is as good as random."""
        self._shrink()
        return self._rows

    @property
    def is_all(self) -> bool:
        """Whether every row that could be kept was."""
        return self._threshold == LARGEST and len(self._rows) <= self._size

    def _shrink(self) -> None:
        self._rows.sort(key=attrgetter("key"))
        if len(self._rows) > self._size:
            del self._rows[self._size :]
            self._threshold = self._rows[-1].key


def _hashes(examples: Sequence[Example]) -> NDArray[np.uint64]:
    """Return 64-bit hashes (the finaliser of splitmix64, Steele et al. 2014)."""
    names = {example.dataset for example in examples}
    seeds = {name: zlib.crc32(name.encode()) * 0x9E3779B97F4A7C15 % 2**64 for name in names}
    rows = np.fromiter((example.row for example in examples), np.uint64, len(examples))
    mixed = rows + np.fromiter((seeds[example.dataset] for example in examples), np.uint64, len(examples))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
