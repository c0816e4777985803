"""What is read from lm-eval's records of rows: options, chosen answers by the metric's own rule, usable metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.evaluate.lm_eval_rows import answer_of, expected_of, options_of, prompt_of, score_metrics, task_row


def choice(options: list[str], likelihoods: list[float], *, target: Any = 0) -> dict[str, Any]:
    """Return the record of a row with options, as lm-eval writes it."""
    return {
        "doc_id": 3,
        "doc_hash": "ab",
        "target": target,
        "arguments": [("Question: why?\nAnswer:", f" {option}") for option in options],
        "filtered_resps": [(likelihood, False) for likelihood in likelihoods],
    }


def test_each_metric_chooses_by_its_own_rule() -> None:
    sample = choice(["no", "a long answer", "ééé"], [-3.0, -6.5, -5.0])
    chosen = {metric: answer_of(sample, metric=metric, delimiter=" ") for metric in ("acc", "acc_norm", "acc_bytes")}
    assert chosen == {"acc": "no", "acc_norm": "a long answer", "acc_bytes": "a long answer"}
    assert answer_of(choice(["no", "ééé"], [-2.0, -4.0]), metric="acc_norm", delimiter=" ") == "no"
    assert answer_of(choice(["no", "ééé"], [-2.0, -4.0]), metric="acc_bytes", delimiter=" ") == "ééé"
    assert answer_of(sample, metric="acc_mutual_info", delimiter=" ") == "", "its rule is not known here"


@given(
    st.lists(st.tuples(st.text("abc", min_size=1), st.floats(-1e3, -1e-3)), min_size=2, unique_by=lambda one: one[0])
)
def test_the_likeliest_option_is_the_answer(options: list[tuple[str, float]]) -> None:
    sample = choice([text for text, _ in options], [likelihood for _, likelihood in options])
    given_answer = answer_of(sample, metric="acc", delimiter=" ")
    assert dict(options)[given_answer] == max(likelihood for _, likelihood in options)


@pytest.mark.parametrize(
    ("target", "expected"), [(1, "b"), ("b", "b"), ([0, 1], "a | b"), (-100, "-100"), (7, "7"), (["x", "y"], "x | y")]
)
def test_the_expected_answer_is_written_out(target: Any, expected: str) -> None:
    assert expected_of(choice(["a", "b"], [-1.0, -2.0], target=target), delimiter=" ") == expected


def test_options_that_are_questions_are_no_answers() -> None:
    sample = choice(["a", "b"], [-1.0, -2.0], target="so he slept.")
    sample["arguments"] = [("Tom was tired", " so he slept."), ("The bed was tired", " so he slept.")]
    assert options_of(sample, delimiter=" ") == []
    assert answer_of(sample, metric="acc", delimiter=" ") == ""
    assert expected_of(sample, delimiter=" ") == "so he slept."


def test_a_generated_answer_is_the_filtered_text() -> None:
    sample = {
        "arguments": [("Q", {"until": ["\n"]})],
        "filtered_resps": ["42"],
        "resps": [["it is 42"]],
        "target": "41",
    }
    assert answer_of(sample, metric="exact_match", delimiter=" ") == "42"
    assert expected_of(sample, delimiter=" ") == "41"


def test_a_row_keeps_its_number_its_question_and_its_answer() -> None:
    sample = choice(["a", "b"], [-1.0, -2.0], target=1)
    row = task_row(sample, name="arc", delimiter=" ")
    assert (row.row, row.dataset, row.prompt, row.expected) == (3, "arc", prompt_of(sample), "b")


def test_only_means_of_row_scores_can_be_compared() -> None:
    samples = [{"acc": 1.0, "f1": (0, 1), "ter": 0.3, "exact_match": np.float64(0.0), "strict": np.True_, "p@1": 1.0}]
    is_mean = {"f1": False, "ter": True, "acc": True, "exact_match": True, "strict": True, "p@1": True, "absent": True}
    better = {name: name != "ter" for name in is_mean}
    assert score_metrics(samples, higher_is_better=better, is_mean=is_mean) == ["acc", "exact_match", "strict"]
    uneven = [*samples, {**samples[0], "acc": (1, 2)}]
    assert "acc" not in score_metrics(uneven, higher_is_better=better, is_mean=is_mean)
