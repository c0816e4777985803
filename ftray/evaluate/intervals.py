"""Uncertainty of one metric and of the difference between two models on the same rows.

Every metric is a function of column sums over its rows, so one resampling serves means, macro-F1, BLEU and bits per
byte alike. All resampling is seeded: the same predictions give the same intervals.
Shapes: n rows, d sums per row, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

RESAMPLES = 2000
SEED = 20240229
LEVEL = 0.95
"""How sure an interval is, where it is not said; of several at once each is made surer (Bonferroni)."""
Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""
CHUNK_ELEMENTS = 4_000_000
"""Resampling weights held at once, in array elements (32 MB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its interval: the 95 % one, where it is not said."""

    value: float
    low: float
    high: float

    def to_record(self) -> dict[str, float | None]:
        """Return the JSON form; a number that is not finite becomes null."""
        return {"value": finite(self.value), "low": finite(self.low), "high": finite(self.high)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStatistics:
    """A metric over rows as a function of sums, so that resampling rows is one matrix product."""

    rows: FloatArray  # [n, d]
    value_of: Callable[[FloatArray], FloatArray]  # [R, d] sums -> [R] values

    @property
    def value(self) -> float:
        """The metric over all rows."""
        return float(self.value_of(self.rows.sum(axis=0, keepdims=True))[0])


def finite(number: float | None) -> float | None:
    """Return the number, or None where JSON has no word for it."""
    return number if number is not None and math.isfinite(number) else None


def wilson(successes: int, trials: int, *, level: float = LEVEL) -> Estimate:
    """Return a proportion with its score interval (Wilson 1927, JASA 22:209-212)."""
    if not 0 <= successes <= trials or trials == 0:
        raise AssertionError(f"{successes} successes in {trials} trials")
    z = _quantile(level)
    share = successes / trials
    shrink = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / shrink
    half_width = z / shrink * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # At 0 and at 1 the formula gives exactly that bound; rounding must not move it.
    low = 0.0 if successes == 0 else centre - half_width
    high = 1.0 if successes == trials else centre + half_width
    return Estimate(value=share, low=low, high=high)


def newcombe(both: int, only_first: int, only_second: int, neither: int, *, level: float = LEVEL) -> Estimate:
    """Return second - first of two shares of the same rows, with its score interval.

    Newcombe 1998 (Statistics in Medicine 17:2635-2650), method 10: the two Wilson intervals, squared and added, less
    what the rows' agreement takes away. It keeps a width where the two agree on every row, as a bootstrap does not.
    """
    rows = both + only_first + only_second + neither
    first, second = (wilson(both + only, rows, level=level) for only in (only_first, only_second))
    margins = math.prod((both + only_first, both + only_second, neither + only_first, neither + only_second))
    excess = float(both * neither - only_first * only_second)
    if excess > 0:
        excess = max(0.0, excess - rows / 2)
    agreement = excess / math.sqrt(margins) if margins else 0.0

    def half_width(of_second: float, of_first: float) -> float:
        # Rounding can push a sum of squares that is 0 just below it.
        return math.sqrt(max(0.0, of_second**2 + of_first**2 - 2 * agreement * of_second * of_first))

    value = second.value - first.value
    return Estimate(
        value=value,
        low=value - half_width(second.value - second.low, first.high - first.value),
        high=value + half_width(second.high - second.value, first.value - first.low),
    )


def _quantile(level: float) -> float:
    """Return how many standard deviations to either side hold `level` of a normal distribution."""
    return Z_95 if level == LEVEL else NormalDist().inv_cdf((1 + level) / 2)


def resample(samples: Sequence[RowStatistics], *, resamples: int = RESAMPLES, seed: int = SEED) -> list[FloatArray]:
    """Return each sample's bootstrap values [R]; resample k takes the same rows from every sample.

    Nonparametric bootstrap (Efron 1979, Annals of Statistics 7:1-26), paired over samples of the same rows.
    """
    num_rows = len(samples[0].rows)
    if num_rows == 0 or any(len(sample.rows) != num_rows for sample in samples):
        raise AssertionError("paired samples need the same, positive number of rows")
    random = np.random.default_rng(seed)
    chunks: list[list[FloatArray]] = [[] for _ in samples]
    for size in _chunk_sizes(resamples, num_rows):
        drawn = random.integers(num_rows, size=(size, num_rows))
        flat = (drawn + np.arange(size)[:, None] * num_rows).ravel()
        counts = np.bincount(flat, minlength=size * num_rows).reshape(size, num_rows).astype(np.float64)
        for sample, values in zip(samples, chunks, strict=True):
            values.append(sample.value_of(counts @ sample.rows))
    return [np.concatenate(values) for values in chunks]


def percentile_estimate(value: float, resampled: FloatArray, *, level: float = LEVEL) -> Estimate:
    """Return the value with the percentiles of its resampled values that hold `level` of them: 2.5 and 97.5."""
    # Rounded, so that the 95 % interval is that of 2.5 and 97.5 to the last digit.
    outside = round(50 * (1 - level), 12)
    low, high = np.percentile(resampled, [outside, 100 - outside])
    return Estimate(value=value, low=float(low), high=float(high))


def bootstrap(sample: RowStatistics, *, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Return the metric with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13)."""
    (values,) = resample([sample], resamples=resamples, seed=seed)
    return percentile_estimate(sample.value, values)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value that two models are right equally often.

    McNemar 1947 (Psychometrika 12:153-157) with the exact binomial: of the rows on which the models disagree, each
    favours either side with probability 1/2. Without such rows the p-value is 1.
    """
    disagreements = only_first + only_second
    term, tail = 1, 1
    for k in range(1, min(only_first, only_second) + 1):
        term = term * (disagreements - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / (1 << disagreements))


def randomisation(
    first: RowStatistics, second: RowStatistics, *, resamples: int = RESAMPLES, seed: int = SEED
) -> float:
    """Return the two-sided p-value that swapping the models row by row changes nothing.

    Approximate randomisation (Noreen 1989; Yeh 2000, arXiv:cs/0008005): each row's results are exchanged with
    probability 1/2, which for a mean is the sign-flip test of the paired differences. The observed arrangement counts
    as one of the R + 1, so the p-value is never 0 (Phipson and Smyth 2010, arXiv:1603.05766).
    """
    change = second.rows - first.rows
    first_sums, second_sums = first.rows.sum(axis=0), second.rows.sum(axis=0)
    observed = abs(second.value - first.value)
    tolerance = 1e-12 * max(1.0, observed)
    random = np.random.default_rng(seed)
    as_extreme = 0
    for size in _chunk_sizes(resamples, len(change)):
        swapped = random.integers(2, size=(size, len(change))).astype(np.float64) @ change
        difference = second.value_of(second_sums - swapped) - first.value_of(first_sums + swapped)
        as_extreme += int(np.count_nonzero(np.abs(difference) >= observed - tolerance))
    return (as_extreme + 1) / (resamples + 1)


def _chunk_sizes(resamples: int, num_rows: int) -> Iterator[int]:
    step = max(1, CHUNK_ELEMENTS // num_rows)
    for start in range(0, resamples, step):
        yield min(step, resamples - start)
