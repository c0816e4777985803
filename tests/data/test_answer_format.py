"""What answers are meant to look like, and where they stop being that."""

from __future__ import annotations

import json
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from ftray.data.answer_format import AnswerFormat, FormatConfig, declared_format, infer_format
from ftray.errors import InputError

JSON = AnswerFormat(kind="json")
LABELS = AnswerFormat(kind="labels", labels=("GetWeather", "Play Music", "Play", "straße"))
PATTERN = AnswerFormat(kind="pattern", pattern=r"(yes|no)(, because \w+)?")


@pytest.mark.parametrize(
    ("format", "text", "length", "kept"),
    [
        (JSON, '{"a": 1}', 8, "valid"),
        (JSON, '{"a": 1} Hope this helps!', 9, "drifts"),
        (JSON, '{"a": 1, and so on', 9, "drifts"),
        (JSON, '{"a": [1, 2', 11, "truncated"),
        (JSON, "[Note] nothing", 1, "other"),
        (JSON, "Sure! {}", 0, "other"),
        (JSON, "  ", 2, "other"),
        (JSON, "", 0, "other"),
        (LABELS, "GetWeather", 10, "valid"),
        (LABELS, "  getweather \n", 14, "valid"),
        (LABELS, "STRASSE", 7, "valid"),
        (LABELS, "play \t music", 12, "valid"),
        (LABELS, "Play", 4, "valid"),
        (LABELS, "Play mu", 7, "truncated"),
        (LABELS, "Play my song", 6, "drifts"),
        (LABELS, "GetWeather, I think", 10, "drifts"),
        (LABELS, "GetWeather because", 11, "drifts"),
        (LABELS, "Playful", 4, "other"),
        (LABELS, "Get out", 3, "other"),
        (LABELS, "?", 0, "other"),
        (PATTERN, "yes", 3, "valid"),
        (PATTERN, "no, because rain", 16, "valid"),
        (PATTERN, "no, because ", 12, "truncated"),
        (PATTERN, "no, but rain", 5, "drifts"),
        (PATTERN, "yes.", 3, "drifts"),
        (PATTERN, "maybe", 0, "other"),
    ],
)
def test_a_text_keeps_to_its_format_up_to_here(format: AnswerFormat, text: str, length: int, kept: str) -> None:
    assert (format.valid_length(text), format.classify(text)) == (length, kept)
    assert format.is_valid(text) == (kept == "valid")


@pytest.mark.parametrize("format", [JSON, LABELS, PATTERN], ids=lambda one: one.kind)
@given(data=st.data())
def test_a_beginning_of_what_is_valid_is_valid(format: AnswerFormat, data: st.DataObject) -> None:
    valid = {
        "json": st.lists(st.integers() | st.text()).map(json.dumps),
        "labels": st.sampled_from(LABELS.labels),
        "pattern": st.from_regex(r"(yes|no)(, because [a-zé]+)?", fullmatch=True),
    }[format.kind]
    whole = data.draw(valid)
    assert format.is_valid(whole)
    text = whole[: data.draw(st.integers(0, len(whole)))] + data.draw(st.text(max_size=3))
    found = format.valid_length(text)
    assert all(format.valid_length(text[:length]) == min(length, found) for length in range(len(text) + 1))


@given(st.text(alphabet="yesno, bcau", max_size=16))
def test_a_pattern_is_matched_whole(text: str) -> None:
    assert PATTERN.is_valid(text) == bool(regex.fullmatch(PATTERN.pattern, text))


@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4))
def test_labels_are_compared_as_exact_match_compares(text: str, labels: list[str]) -> None:
    folded = {" ".join(label.split()).casefold() for label in labels} - {""}
    found = AnswerFormat(kind="labels", labels=tuple(labels)).is_valid(text)
    assert not (text.strip() and found != (" ".join(text.split()).casefold() in folded))


def test_a_declared_format_is_taken_as_declared() -> None:
    answers = ["Yes", "no", "yes ", ""]
    assert declared_format(None, answers) is None
    assert declared_format("json", answers) == JSON
    assert declared_format(FormatConfig(json=True), answers) == JSON
    assert declared_format("labels", answers) == AnswerFormat(kind="labels", labels=("Yes", "no"))
    assert declared_format(FormatConfig(labels=["b", "a", "A"]), answers) == AnswerFormat(
        kind="labels", labels=("a", "b")
    )
    assert declared_format(FormatConfig(pattern="a+"), answers) == AnswerFormat(kind="pattern", pattern="a+")


def test_a_format_is_written_as_the_job_has_it() -> None:
    assert FormatConfig(json=True).model_dump(mode="json") == {"json": True, "labels": None, "pattern": None}
    assert FormatConfig.model_validate(FormatConfig(labels=["a"]).model_dump()) == FormatConfig(labels=["a"])


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        (FormatConfig(), "bad_format", "names nothing"),
        (FormatConfig(json=True, pattern="a"), "bad_format", "json and pattern"),
        (FormatConfig(labels=["yes", " YES"]), "bad_format", "1 different label "),
        ("labels", "bad_format", "the training answers have 1 "),
        (FormatConfig(pattern="yes(no"), "bad_pattern", "missing \\) at character 6"),
        (FormatConfig(pattern="a**b"), "bad_pattern", r"at character 2 \('\*b'\)"),
        (FormatConfig(pattern=""), "bad_pattern", "nothing but the empty text"),
        (FormatConfig(pattern="^$"), "bad_pattern", "nothing but the empty text"),
    ],
)
def test_what_is_no_format_is_refused(config: Any, kind: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        declared_format(config, ["the same", "The  same"])
    assert raised.value.kind == kind
    assert raised.value.hint
    assert str(raised.value.path).startswith("evaluate.format")


def test_a_pattern_that_never_comes_to_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="takes longer than 1 second for an answer of 61 characters") as raised:
        AnswerFormat(kind="pattern", pattern="(a|aa)+[bc]").is_valid("a" * 60 + "d")
    assert raised.value.kind == "bad_pattern"


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (['{"a": 1}', "[]", "[1, 2", '{"b": 2} and so on', "no"], "json"),
        (['{"a": 1}', "no", "no, never"], None),
        (["yes", "no", "Yes", "no ", "yes, I think so"], "labels"),
        (["yes", "yes", "yes"], None),
        (["yes", "no"], None),
        (["a tale " * 10, "a tale " * 10, "a story " * 10, "a story " * 10], None),
        ([f"label {n % 101}" for n in range(404)], None),
        ([f"label {n % 100}" for n in range(400)], "labels"),
        ([], None),
    ],
)
def test_a_format_is_inferred_where_most_answers_have_it(answers: list[str], kind: str | None) -> None:
    found = infer_format(answers)
    assert (found.kind if found else None) == kind
    if kind == "labels":
        assert found is not None
        assert "yes, I think so" not in found.labels


def test_a_format_says_what_it_is() -> None:
    assert JSON.describe() == "one JSON object or array"
    assert LABELS.describe() == "one of 4 labels ('GetWeather', 'Play Music', 'Play', 'straße')"
    assert PATTERN.pattern in PATTERN.describe()
