"""Which texts are nearly the same: MinHash signatures over words and word pairs, found through bands (LSH).

A text's numbers are masked, so that a question with other numbers is the same question; text that most rows share (a
template written into the data) is left out. The sketches are rensa's (Broder 1997; Indyk and Motwani 1998).
Shapes: n rows, P permutations, B bands of R rows each (P = B * R).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftray.data.conversations import Example

Hashes = NDArray[np.uint64]
Signatures = NDArray[np.uint16]
PERMUTATIONS = 128
BANDS = 32
BAND_ROWS = PERMUTATIONS // BANDS
"""32 bands of 4 find 98.8 % of the pairs that are 0.6 alike, and 99.98 % of those that are 0.7 alike."""
SEED = 1
SHORT_WORDS, LONG_WORDS = 12, 24
SHORT_LIMIT, LONG_LIMIT = 0.8, 0.6
"""How alike two texts of so many words must be. Set on SNIPS and CLINC150: unrelated rows of one intent, joined to
texts of 25 words, are 0.49 alike in 1 of 100 cases; commands of 9 words are 0.8 alike by nature in 1 of 20."""
MASKED_SHARE = 1 / 3
"""Where more of the words than this have digits, the numbers are what the text is about, and stay."""
MASKED_WORDS = 6
"""Where fewer words than this are without digits, the numbers stay, too."""
CONSTANT_SHARE = 0.5
"""A word or pair in more than this share of the first rows belongs to a template."""
CONSTANT_ROWS = 500
LEAST_CONSTANT_ROWS = 20
SKETCHED_AT_ONCE = 8192
ESTIMATE_MARGIN = 0.15
"""Pairs whose estimate is farther below the limit (3.5 standard errors) are not compared word by word."""
EXACT_PAIRS = 20_000
"""So many pairs of one request are compared word by word, the most alike first; beyond, the estimate counts."""
_DIGITS = re.compile(r"\d+")
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shingles:
    """Hashes of each text's words and word pairs, end to end: row i is `hashes[starts[i]:starts[i + 1]]`, sorted."""

    hashes: Hashes
    starts: NDArray[np.int64]  # [n + 1]
    words: NDArray[np.int32]  # [n]

    def row(self, index: int) -> Hashes:
        """Return one text's hashes, each once."""
        return self.hashes[self.starts[index] : self.starts[index + 1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketches:
    """What is kept of texts to find similar ones among millions: half a KB each."""

    bands: Hashes  # [n, B]
    signatures: Signatures  # [n, P], the low bits: equal by chance once in 65,536
    words: NDArray[np.int32]  # [n]; 0 where there is nothing to compare


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Rows that are nearly the same, by index; `later` comes after `earlier`."""

    earlier: NDArray[np.int64]
    later: NDArray[np.int64]
    similarity: NDArray[np.float64]


def words_of(normalised: str) -> list[str]:
    """Return the words of a normalised text, numbers masked where the text is not about them."""
    words = normalised.split()
    masked = _DIGITS.sub("0", normalised)
    if masked == normalised:
        return words
    with_digits = sum(any(character.isdigit() for character in word) for word in words)
    if with_digits > MASKED_SHARE * len(words) or len(words) - with_digits < MASKED_WORDS:
        return words
    return masked.split()


def shingle(texts: Sequence[str], *, constant: Hashes | None = None) -> Shingles:
    """Hash the words and word pairs of normalised texts, without those in `constant` (sorted)."""
    from rensa import RMinHash

    words = [words_of(text) for text in texts]
    tokens = [[*row, *map(" ".join, itertools.pairwise(row))] for row in words]
    hashed = [np.unique(np.array(row, dtype=np.uint64)) for row in RMinHash.hash_token_sets(tokens)]
    if constant is not None and len(constant):
        hashed = [row[~np.isin(row, constant, assume_unique=True)] for row in hashed]
    starts = np.zeros(len(hashed) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in hashed], out=starts[1:])
    flat = np.concatenate(hashed) if hashed else np.zeros(0, dtype=np.uint64)
    counts = np.array([len(row) for row in words], dtype=np.int32)
    counts[np.diff(starts) == 0] = 0
    return Shingles(hashes=flat, starts=starts, words=counts)


def constant_text(texts: Sequence[str], *, most: int = CONSTANT_ROWS, least: int = LEAST_CONSTANT_ROWS) -> Hashes:
    """Return the words and pairs that most of the first texts share: a template that was written into the data.

    The first `most` texts are looked at; with fewer than `least` nothing is called constant.
    """
    sample = texts[:most]
    if len(sample) < least:
        return np.zeros(0, dtype=np.uint64)
    counts = Counter(shingle(sample).hashes.tolist())
    common = [value for value, count in counts.items() if count > CONSTANT_SHARE * len(sample)]
    return np.array(sorted(common), dtype=np.uint64)


def sketch(shingles: Shingles) -> Sketches:
    """Return what finds similar texts: signatures and their bands."""
    from rensa import RMinHash

    num_rows = len(shingles.words)
    if num_rows == 0:
        empty: Any = np.zeros((0, PERMUTATIONS))
        return Sketches(
            bands=empty[:, :BANDS].astype(np.uint64), signatures=empty.astype(np.uint16), words=shingles.words
        )
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles.hashes, shingles.starts, PERMUTATIONS, SEED)
    signatures = np.array(matrix.to_rows(), dtype=np.uint32)
    quarters = signatures.reshape(num_rows, BANDS, BAND_ROWS).astype(np.uint64)
    with np.errstate(over="ignore"):
        bands = np.zeros((num_rows, BANDS), dtype=np.uint64)
        for part in range(BAND_ROWS):
            bands = (bands ^ quarters[:, :, part]) * _MIX[part % 2]
            bands ^= bands >> np.uint64(29)
    return Sketches(bands=bands, signatures=signatures.astype(np.uint16), words=shingles.words)


def sketch_all(texts: Sequence[str], *, constant: Hashes) -> Sketches:
    """Return the sketches of normalised texts, without the words and pairs of `constant`."""
    starts = range(0, max(1, len(texts)), SKETCHED_AT_ONCE)
    return joined([sketch(shingle(texts[start : start + SKETCHED_AT_ONCE], constant=constant)) for start in starts])


def joined(sketches: Sequence[Sketches]) -> Sketches:
    """Return sketches of several batches as one."""
    return Sketches(
        bands=np.concatenate([one.bands for one in sketches]),
        signatures=np.concatenate([one.signatures for one in sketches]),
        words=np.concatenate([one.words for one in sketches]),
    )


def limit_for(words: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return how alike two texts must be to be nearly the same, when the shorter has so many words."""
    share = np.clip((words - SHORT_WORDS) / (LONG_WORDS - SHORT_WORDS), 0.0, 1.0)
    limits: NDArray[np.float64] = SHORT_LIMIT + share * (LONG_LIMIT - SHORT_LIMIT)
    return limits


def near_pairs(sketches: Sketches) -> Pairs:
    """Return each row with earlier rows it nearly repeats: the first and the last before it in each shared band.

    Similarities are estimated from the signatures (standard error 0.04). A row is compared with earlier rows only.
    """
    num_rows = len(sketches.words)
    found: list[NDArray[np.int64]] = []
    for band in range(BANDS):
        column = sketches.bands[:, band]
        order = np.argsort(column, kind="stable")
        order = order[sketches.words[order] > 0]
        values = column[order]
        same = values[1:] == values[:-1]
        starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(order) else np.zeros(0, dtype=np.int64)
        firsts = order[np.repeat(starts, np.diff(np.append(starts, len(order))))]
        later = order[1:][same]
        for earlier in (order[:-1][same], firsts[1:][same]):
            found.append(earlier * num_rows + later)
        # Keep the keys few while bands go by: rows that are alike share many of them.
        if len(found) >= 2:
            found = [np.unique(np.concatenate(found))]
    keys = found[0] if found else np.zeros(0, dtype=np.int64)
    earlier, later = keys // max(1, num_rows), keys % max(1, num_rows)
    similarity = _estimated(sketches.signatures, earlier, sketches.signatures, later)
    limits = limit_for(np.minimum(sketches.words[earlier], sketches.words[later]))
    near = similarity >= limits
    return Pairs(earlier=earlier[near], later=later[near], similarity=similarity[near])


def _estimated(
    firsts: Signatures, first: NDArray[np.int64], seconds: Signatures, second: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the share of equal entries of pairs of signatures: rows `first` of `firsts`, `second` of `seconds`."""
    similarity = np.zeros(len(first))
    for start in range(0, len(first), 100_000):
        part = slice(start, start + 100_000)
        similarity[part] = (firsts[first[part]] == seconds[second[part]]).mean(axis=1)
    return similarity


class Prints:
    """Shingles and sketches of rows, made once for all who ask for the same batch, without a template's words."""

    def __init__(self, constant: Hashes) -> None:
        """Take the hashes of words and pairs that belong to a template (`constant_text`)."""
        self.constant = constant
        self._of: Sequence[Example] | None = None
        self._made: tuple[Shingles, Sketches] | None = None

    def of(self, examples: Sequence[Example]) -> tuple[Shingles, Sketches]:
        """Return the prints of a batch; the last batch's are kept."""
        if self._made is None or self._of is not examples:
            shingles = shingle([example.normalised_prompt for example in examples], constant=self.constant)
            self._of, self._made = examples, (shingles, sketch(shingles))
        return self._made


class NearIndex:
    """Texts to be found again: asked with other texts, it names those that are nearly the same."""

    def __init__(self, texts: Sequence[str], *, constant: Hashes) -> None:
        """Take normalised texts; those that are equal need to be given once only."""
        self._shingles = shingle(texts, constant=constant)
        self._sketches = sketch(self._shingles)
        self._order = np.argsort(self._sketches.bands, axis=0, kind="stable")
        self._bands = np.take_along_axis(self._sketches.bands, self._order, axis=0)

    def find(self, shingles: Shingles, sketches: Sketches) -> Pairs:
        """Return pairs of an index row (`earlier`) and a row asked with (`later`).

        Similarities are exact, except that of very many pairs only the most alike are compared word by word.
        """
        keys = np.zeros(0, dtype=np.int64)
        for band in range(BANDS if len(self._bands) else 0):
            keys = np.union1d(keys, self._candidates(sketches, band))
        width = max(1, len(sketches.words))
        kept, asked = keys // width, keys % width
        similarity = _estimated(self._sketches.signatures, kept, sketches.signatures, asked)
        limits = limit_for(np.minimum(self._shingles.words[kept], shingles.words[asked]))
        hopeful = np.flatnonzero(similarity >= limits - ESTIMATE_MARGIN)
        for pair in hopeful[np.argsort(-similarity[hopeful], kind="stable")][:EXACT_PAIRS]:
            similarity[pair] = jaccard(self._shingles.row(kept[pair]), shingles.row(asked[pair]))
        near = hopeful[similarity[hopeful] >= limits[hopeful]]
        return Pairs(earlier=kept[near], later=asked[near], similarity=similarity[near])

    def _candidates(self, sketches: Sketches, band: int) -> NDArray[np.int64]:
        asked = np.flatnonzero(sketches.words > 0)
        values = sketches.bands[asked, band]
        first = np.searchsorted(self._bands[:, band], values, side="left")
        last = np.searchsorted(self._bands[:, band], values, side="right")
        hits = np.flatnonzero(last > first)
        counts = last[hits] - first[hits]
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = self._order[np.repeat(first[hits], counts) + offsets, band]
        # A row without words shares its bands with all others of its kind.
        has_words = self._shingles.words[kept] > 0
        keys: NDArray[np.int64] = (kept * len(sketches.words) + np.repeat(asked[hits], counts))[has_words]
        return keys


def jaccard(first: Hashes, second: Hashes) -> float:
    """Return the share of two sets' elements that both have; sorted, without repetitions."""
    if len(first) == 0 or len(second) == 0:
        return 0.0
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)
