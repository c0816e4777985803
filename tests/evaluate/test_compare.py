"""Base and tuned side by side."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from ftray.data.tokenization import Tokenization
from ftray.evaluate.compare import collapse, compare, predictions_lines
from ftray.evaluate.config import Metric

EXPECTED = ["a", "b", "c"] * 6


def test_paired_counts_and_their_exact_p_value(tokenization: Tokenization, answers: Any, task_of: Any) -> None:
    task = task_of(tokenization, EXPECTED, Metric())
    base = answers(EXPECTED, ["a"] * 18, task.metric)  # right on six
    tuned = answers(EXPECTED, ["x", *EXPECTED[1:]], task.metric)  # right on all but the first
    comparison = compare(task, base, tuned)
    record = comparison.to_record()
    assert record["paired"] == {"both": 5, "only_base": 1, "only_tuned": 12, "neither": 0}
    assert record["p_value"] == pytest.approx(2 * (1 + 13) / 2**13)
    assert (record["base"]["value"], record["tuned"]["value"]) == pytest.approx((6 / 18, 17 / 18))
    assert record["difference"]["low"] < 11 / 18 < record["difference"]["high"]
    assert record["higher_is_better"] is True
    assert record["bits_per_byte_change"] is None
    assert comparison.improvement == pytest.approx(11 / 18)
    assert comparison.harm == pytest.approx(-11 / 18)


@pytest.mark.parametrize("metric", ["nll", "perplexity", "bits_per_byte"])
def test_likelihood_probes_record_the_change_of_bits_per_byte(
    tokenization: Tokenization, metric: str, likelihoods: Any, task_of: Any
) -> None:
    task = task_of(tokenization, ["text"] * 8, Metric(metric=metric), role="general", name="probe")
    comparison = compare(task, likelihoods([10.0] * 8), likelihoods([14.0] * 8))
    assert comparison.bits_per_byte_change == pytest.approx(4 / math.log(2) / 40)
    assert comparison.harm == comparison.bits_per_byte_change
    assert comparison.improvement < 0
    assert comparison.p_value < 0.02
    assert (comparison.paired, comparison.collapse) == (None, None)


@pytest.mark.parametrize("metric", ["macro_f1", "bleu", "token_f1", "rouge_l"])
def test_other_metrics_are_compared_by_randomisation(
    tokenization: Tokenization, metric: str, answers: Any, task_of: Any
) -> None:
    expected = [f"the {colour} {thing} is here now" for colour, thing in product(("red", "blue"), ("cat", "dog", "ox"))]
    task = task_of(tokenization, expected, Metric(metric=metric))
    nothing = compare(task, answers(expected, expected, task.metric), answers(expected, expected, task.metric))
    assert nothing.p_value == 1.0
    assert nothing.difference.value == 0
    better = compare(task, answers(expected, ["no idea"] * 6, task.metric), answers(expected, expected, task.metric))
    assert better.p_value < 0.1
    assert better.difference.value == pytest.approx(1.0)
    # macro_f1 rows are right or wrong, but its value is no share of them.
    assert (better.paired is not None) == (metric == "macro_f1")


def test_degraded_rows_are_counted_as_they_are_graded(
    tokenization: Tokenization, answers: Any, likelihoods: Any, task_of: Any
) -> None:
    task = task_of(tokenization, ["a", "b", "c"], Metric())
    expected = ["a", "b", "c"]
    change = compare(task, answers(expected, ["a", "b", "x"], Metric()), answers(expected, ["x", "b", "c"], Metric()))
    assert (change.grading, change.degraded, change.to_record()["degraded"]) == ("right_or_wrong", 1, 1)
    texts = task_of(tokenization, ["text"] * 3, Metric(metric="nll"), role="general", name="probe")
    change = compare(texts, likelihoods([10.0, 10.0, 10.0]), likelihoods([10.9, 11.1, 5.0]))
    assert (change.grading, change.degraded) == ("likelihood", 1)
    scored = Metric(metric="token_f1")
    task = task_of(tokenization, ["one two three"] * 3, scored)
    before, after = ["one two three"] * 3, ["one two three", "one two", "four"]
    change = compare(
        task, answers(["one two three"] * 3, before, scored), answers(["one two three"] * 3, after, scored)
    )
    assert (change.grading, change.degraded) == ("score", 2)


def test_shares_of_ended_answers(tokenization: Tokenization, answers: Any, task_of: Any) -> None:
    task = task_of(tokenization, ["a", "b"], Metric())
    base = [replace(row, ended=False) for row in answers(["a", "b"], ["a", "b"], Metric())]
    tuned = [replace(row, ended=row.row == 0) for row in base]
    assert compare(task, base, tuned).to_record()["ended"] == {"base": 0.0, "tuned": 0.5}
    assert compare(task, answers(["a", "b"], ["a", "b"], Metric()), tuned).ended is None


def test_collapse_measures_how_varied_answers_are() -> None:
    varied = collapse(["a", "b", "c", "d "])
    assert (varied.distinct_share, varied.top_share, varied.entropy_bits) == (1.0, 0.25, 2.0)
    same = collapse(["a", "a ", "a", "a"])
    assert (same.distinct_share, same.top_share, same.entropy_bits) == (0.25, 1.0, 0.0)


def test_predictions_lines_hold_both_answers(tokenization: Tokenization, answers: Any, task_of: Any) -> None:
    task = task_of(tokenization, ["a", "b"], Metric())
    lines = predictions_lines(
        task, answers(["a", "b"], ["x", "b"], task.metric), answers(["a", "b"], ["a", "B"], task.metric)
    )
    assert lines[0] == {
        "task": "task", "row": 0, "prompt": "question 0", "expected": "a", "base": "x", "tuned": "a",
        "base_correct": False, "tuned_correct": True, "base_score": 0.0, "tuned_score": 1.0,
        "base_ended": None, "tuned_ended": None,
    }  # fmt: skip
    assert [line["tuned_correct"] for line in lines] == [True, True]


def test_different_rows_cannot_be_compared(tokenization: Tokenization, answers: Any, task_of: Any) -> None:
    task = task_of(tokenization, ["a", "b"], Metric())
    rows = answers(["a", "b"], ["a", "b"], task.metric)
    with pytest.raises(AssertionError, match="the same rows"):
        compare(task, rows, rows[::-1])
