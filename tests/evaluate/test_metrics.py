"""From rows to the headline value of each metric."""

from __future__ import annotations

import math
from typing import Any

import pytest
import sacrebleu

from ftray.evaluate.config import Metric
from ftray.evaluate.metrics import aggregate, estimate, higher_is_better


def test_shares_get_wilsons_interval(answers: Any) -> None:
    metric = Metric()
    rows = answers(["yes"] * 10, ["yes"] * 8 + ["no"] * 2, metric)
    assert aggregate(metric, rows) == 0.8
    assert estimate(metric, rows).low == pytest.approx(0.4901625, abs=1e-6)


def test_macro_f1_counts_every_class_once_and_foreign_answers_as_misses(answers: Any) -> None:
    metric = Metric(metric="macro_f1")
    rows = answers(["a", "a", "a", "b"], ["A", "a", "chatter", "a"], metric)
    # a: 2 right of 3 predicted and 3 expected; b: never predicted.
    assert aggregate(metric, rows) == pytest.approx((2 * 2 / (3 + 3) + 0) / 2)
    interval = estimate(metric, rows)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_bleu_is_sacrebleus_corpus_bleu_on_the_normalised_text(answers: Any) -> None:
    expected = ["The cat sat on the mat .", "A quick brown fox jumps over it", "no match at all here"]
    given = ["the cat sat on a mat .", "A quick brown fox jumped over", "something else"]
    cased = Metric(metric="bleu", normalise="none")
    assert aggregate(cased, answers(expected, given, cased)) == pytest.approx(
        sacrebleu.corpus_bleu(given, [expected]).score / 100
    )
    folded = Metric(metric="bleu")
    assert aggregate(folded, answers(expected, given, folded)) == pytest.approx(
        sacrebleu.corpus_bleu(given, [expected], lowercase=True).score / 100
    )


@pytest.mark.parametrize(
    ("metric", "value"), [("nll", 1.5), ("perplexity", math.exp(1.5)), ("bits_per_byte", 30 / math.log(2) / 80)]
)
def test_likelihood_metrics_are_totals_over_totals(metric: str, value: float, likelihoods: Any) -> None:
    rows = likelihoods([10.0, 20.0])
    assert aggregate(Metric(metric=metric), rows) == pytest.approx(value)
    assert not higher_is_better(Metric(metric=metric))
    interval = estimate(Metric(metric=metric), rows)
    assert interval.low <= interval.value <= interval.high


def test_a_hopeless_perplexity_stays_a_number(likelihoods: Any) -> None:
    assert math.isfinite(aggregate(Metric(metric="perplexity"), likelihoods([1e6])))


def test_other_metrics_are_means_with_a_bootstrap(answers: Any) -> None:
    metric = Metric(metric="token_f1")
    rows = answers(["red car", "blue"], ["red", "blue"], metric)
    interval = estimate(metric, rows)
    assert interval.value == pytest.approx((2 / 3 + 1) / 2)
    assert (interval.low, interval.high) == pytest.approx((2 / 3, 1.0))
