"""From graded rows to the one number of a metric, and its interval.

macro_f1, bleu and the likelihood metrics are functions of the whole set of rows, not means of row scores; each is
written here as a function of column sums (see `intervals.RowStatistics`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftray.evaluate.config import LOWER_IS_BETTER, Metric
from ftray.evaluate.graders import normalise
from ftray.evaluate.intervals import Estimate, FloatArray, RowStatistics, bootstrap, wilson
from ftray.evaluate.predict import RowPrediction

NATS_PER_BIT = float(np.log(2))
LARGEST_EXPONENT = 709.0
"""exp() of more than this is not a finite float64."""


def higher_is_better(metric: Metric) -> bool:
    """Return whether a larger value of the metric is the better one."""
    return metric.metric not in LOWER_IS_BETTER


def aggregate(metric: Metric, rows: Sequence[RowPrediction]) -> float:
    """Return the metric's value over all rows: what the record calls `value`."""
    return statistics(metric, rows).value


def estimate(metric: Metric, rows: Sequence[RowPrediction]) -> Estimate:
    """Return the value with a 95 % interval: Wilson's for shares of right answers, else bootstrapped."""
    if is_share(metric, rows):
        return wilson(sum(row.correct is True for row in rows), len(rows))
    return bootstrap(statistics(metric, rows))


def is_share(metric: Metric, rows: Sequence[RowPrediction]) -> bool:
    """Return whether the value is the share of right answers."""
    return metric.metric != "macro_f1" and all(row.correct is not None for row in rows)


def statistics(metric: Metric, rows: Sequence[RowPrediction]) -> RowStatistics:
    """Return the sums the metric is made of, one line per row."""
    match metric.metric:
        case "nll":
            return RowStatistics(rows=_likelihoods(rows)[:, [0, 1]], value_of=_ratio)
        case "perplexity":
            return RowStatistics(rows=_likelihoods(rows)[:, [0, 1]], value_of=_perplexity)
        case "bits_per_byte":
            return bits_per_byte(rows)
        case "macro_f1":
            return _macro_f1(metric, rows)
        case "bleu":
            return _bleu(metric, rows)
        case _:
            scores = np.array([[row.score, 1.0] for row in rows])
            return RowStatistics(rows=scores, value_of=_ratio)


def bits_per_byte(rows: Sequence[RowPrediction]) -> RowStatistics:
    """Return total bits over total UTF-8 bytes, which does not depend on how a tokenizer cuts the text."""
    return RowStatistics(rows=_likelihoods(rows)[:, [0, 2]] / [NATS_PER_BIT, 1.0], value_of=_ratio)


def _likelihoods(rows: Sequence[RowPrediction]) -> FloatArray:
    """Return nats, label tokens and bytes [n, 3]."""
    if any(row.nll is None for row in rows):
        raise AssertionError("a likelihood metric needs the likelihood of every row")
    return np.array([[row.nll, row.num_labels, row.num_bytes] for row in rows], dtype=np.float64)


def _ratio(sums: FloatArray) -> FloatArray:
    return sums[:, 0] / sums[:, 1]


def _perplexity(sums: FloatArray) -> FloatArray:
    return np.exp(np.minimum(_ratio(sums), LARGEST_EXPONENT))


def _macro_f1(metric: Metric, rows: Sequence[RowPrediction]) -> RowStatistics:
    """Count, per class, right predictions [0:K], predictions [K:2K] and expected answers [2K:3K].

    Classes are the expected answers. Generated text that is none of them misses the expected class and opens no class
    of its own, which would drown the mean in zeros.
    """
    expected = [normalise(row.expected, metric.normalise) for row in rows]
    given = [normalise(row.prediction, metric.normalise) for row in rows]
    classes = {answer: index for index, answer in enumerate(sorted(set(expected)))}
    sums = np.zeros((len(rows), 3 * len(classes)))
    for line, answer, right_answer in zip(sums, given, expected, strict=True):
        wanted = classes[right_answer]
        line[2 * len(classes) + wanted] = 1
        if answer in classes:
            line[len(classes) + classes[answer]] = 1
            line[wanted] = answer == right_answer
    return RowStatistics(rows=sums, value_of=_mean_f1)


def _mean_f1(sums: FloatArray) -> FloatArray:
    right, predicted, expected = np.split(sums, 3, axis=1)  # [R, K] each
    # A class that a resample happens to leave out has no F1; the mean is over those that occur.
    occurs = expected > 0
    f1 = np.divide(2 * right, predicted + expected, out=np.zeros_like(right), where=occurs)
    means: FloatArray = f1.sum(axis=1) / occurs.sum(axis=1)
    return means


def _bleu(metric: Metric, rows: Sequence[RowPrediction]) -> RowStatistics:
    """Count, per row, matched n-grams [0:4], n-grams [4:8], and the lengths of answer and reference."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(smooth_method="none")
    lines = []
    for row in rows:
        given, wanted = normalise(row.prediction, metric.normalise), normalise(row.expected, metric.normalise)
        score = scorer.corpus_score([given], [[wanted]])
        lines.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return RowStatistics(rows=np.array(lines, dtype=np.float64), value_of=_corpus_bleu)


def _corpus_bleu(sums: FloatArray) -> FloatArray:
    """Return corpus BLEU-4 [R], 0-1, with sacrebleu's default (exponential) smoothing."""
    from sacrebleu.metrics.bleu import BLEU

    counts = np.rint(sums).astype(int).tolist()
    scores = [
        BLEU.compute_bleu(
            correct=line[0:4], total=line[4:8], sys_len=line[8], ref_len=line[9], smooth_method="exp"
        ).score
        for line in counts
    ]
    return np.minimum(np.array(scores) / 100, 1.0)
