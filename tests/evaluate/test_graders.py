"""One answer against one expected answer, metric by metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.errors import InputError
from ftray.evaluate.config import LIKELIHOOD_METRICS, METRICS, Metric
from ftray.evaluate.graders import check_metric, grade, json_leaves, load_function, normalise

GENERATED = [name for name in METRICS if name not in LIKELIHOOD_METRICS and name != "instructions"]


@pytest.mark.parametrize(
    ("how", "prediction", "expected", "equal"),
    [
        ("none", "play music", "play music", True),
        ("none", " play music", "play music", False),
        ("whitespace", " play \n music", "play music", True),
        ("whitespace", "Play music", "play music", False),
        ("casefold", "  PLAY\tmusic ", "play music", True),
        ("casefold", "STRASSE", "straße", True),
        ("casefold", "play music now", "play music", False),
    ],
)
def test_exact_match_normalises_as_it_says(how: Any, prediction: str, expected: str, equal: bool) -> None:
    graded = grade(Metric(normalise=how), prediction, expected)
    assert (graded.correct, graded.score) == (equal, float(equal))


@given(st.text(), st.sampled_from(["none", "whitespace", "casefold"]))
def test_normalising_blanks_twice_changes_nothing(text: str, how: Any) -> None:
    if how != "casefold":
        assert normalise(normalise(text, how), how) == normalise(text, how)
    assert grade(Metric(normalise=how), text, text).correct


@pytest.mark.parametrize(
    ("metric", "prediction", "expected", "score"),
    [
        ("token_f1", "the red car", "a red car", 2 / 3),
        ("token_f1", "Red car.", "red car .", 1.0),
        ("token_f1", "", "red", 0.0),
        ("token_f1", "red red", "red", 2 / 3),
        ("rouge_l", "the cat sat", "the cat", 0.8),
        ("rouge_l", "кот сидит", "кот сидит", 1.0),
        ("bleu", "the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("bleu", "dog", "the cat sat on the mat", 0.0),
        ("json_valid", '{"a": 1}', "{}", 1.0),
        ("json_valid", '{"a": 1', "{}", 0.0),
        ("json_valid", '{"a": NaN}', "{}", 0.0),
        ("json_valid", "42", "{}", 0.0),
        ("json_valid", "[" * 100_000, "{}", 0.0),
        ("json_fields", '{"a": 1, "b": "X "}', '{"a": 1.0, "b": "x"}', 1.0),
        ("json_fields", '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 1 / 2),
        ("json_fields", '{"a": 1, "c": 2}', '{"a": 1, "b": 3}', 1 / 3),
        ("json_fields", '{"a": true}', '{"a": 1}', 0.0),
        ("json_fields", '{"a": {"b": [1, 2]}}', '{"a": {"b": [1, 3]}}', 1 / 2),
        ("json_fields", '{"a": []}', '{"a": {}}', 0.0),
        ("json_fields", "{}", "{}", 1.0),
        ("json_fields", "no", '{"a": 1}', 0.0),
    ],
)
def test_scores_equal_what_is_computed_by_hand(metric: str, prediction: str, expected: str, score: float) -> None:
    assert grade(Metric(metric=metric), prediction, expected).score == pytest.approx(score)


@given(st.sampled_from(GENERATED), st.text(), st.text())
def test_every_score_is_a_rate(metric: str, prediction: str, answer: str) -> None:
    expected = json.dumps({"answer": answer}) if metric.startswith("json") else answer
    graded = grade(Metric(metric=metric), prediction, expected)
    assert 0 <= graded.score <= 1
    assert graded.correct is None or graded.score == float(graded.correct)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.lists(json_values) | st.dictionaries(st.text(), json_values))
def test_a_json_answer_agrees_with_itself(document: Any) -> None:
    text = json.dumps(document)
    assert json_leaves(text)
    assert grade(Metric(metric="json_fields"), text, json.dumps(document, indent=2)).score == 1.0


def test_a_function_of_the_user_grades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_graders.py").write_text(
        "def first_letter(prediction, expected):\n    return prediction[:1] == expected[:1]\n"
        "def half(prediction, expected):\n    return 0.5\n"
        "def ten(prediction, expected):\n    return 10\n"
        "def alone(prediction):\n    return 1\n"
        "constant = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert grade(Metric(metric="my_graders:first_letter"), "yes", "yellow").correct is True
    assert grade(Metric(metric="my_graders:half"), "a", "b").score == 0.5
    assert load_function("my_graders:half") is load_function("my_graders:half")
    with pytest.raises(InputError, match="returned 10") as raised:
        grade(Metric(metric="my_graders:ten"), "a", "b")
    assert raised.value.kind == "bad_metric"
    with pytest.raises(InputError, match="no function 'halve'") as raised:
        load_function("my_graders:halve")
    assert raised.value.allowed == ["alone", "first_letter", "half", "ten"]
    with pytest.raises(InputError, match="too many positional arguments") as raised:
        load_function("my_graders:alone")
    assert raised.value.kind == "bad_metric"
    with pytest.raises(InputError, match="no function 'constant'"):
        load_function("my_graders:constant")
    with pytest.raises(InputError, match="cannot be imported"):
        load_function("no_such_module_anywhere:grade")


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(InputError) as raised:
        check_metric(Metric(metric="exact_mach"), path="evaluate.task")
    assert raised.value.kind == "unknown_metric"
    assert "exact_match" in raised.value.hint
    assert raised.value.path == "evaluate.task.metric"


@pytest.mark.parametrize(
    "metric", [Metric(metric="nll", choices=["a", "b"]), Metric(metric="choice", choices=["a", "a"])]
)
def test_choices_that_choose_nothing_are_refused(metric: Metric) -> None:
    with pytest.raises(InputError) as raised:
        check_metric(metric, path="evaluate.task")
    assert raised.value.kind == "metric_mismatch"
