"""Instructions that can be checked, one by one and row by row."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ftray.data.conversations import Example, Message
from ftray.data.tokenization import Tokenization
from ftray.errors import InputError
from ftray.evaluate.config import Metric
from ftray.evaluate.instructions import Instruction, describe, follows, follows_all, read_instructions
from ftray.evaluate.predict import grade_row
from ftray.evaluate.tasks import build_task


def instruction(**fields: Any) -> Instruction:
    return TypeAdapter[Instruction](Instruction).validate_python(fields)


@pytest.mark.parametrize(
    ("fields", "answer", "followed"),
    [
        ({"kind": "words", "min": 3}, "one, two - three", True),
        ({"kind": "words", "max": 2}, "one, two - three", False),
        ({"kind": "words", "max": 2}, "", False),
        ({"kind": "characters", "max": 5}, "  12345 ", True),
        ({"kind": "characters", "min": 6}, "  12345 ", False),
        ({"kind": "sentences", "min": 3, "max": 3}, "It costs 3.50 now. Really?! Yes", True),
        ({"kind": "sentences", "max": 1}, 'He said "no." Then he left.', False),
        ({"kind": "sentences", "min": 2, "max": 2}, "今日は晴れ。明日は雨。", True),
        ({"kind": "lines", "min": 2, "max": 2}, "one\n\ntwo\n", True),
        ({"kind": "bullets", "min": 3, "max": 3}, "Three:\n- a\n* b\n  2. c\n-d", True),
        ({"kind": "lowercase"}, "no capitals, 42!", True),
        ({"kind": "lowercase"}, "One capital", False),
        ({"kind": "lowercase"}, "42", False),
        ({"kind": "uppercase"}, "ÄRGER", True),
        ({"kind": "json"}, ' {"a": 1} ', True),
        ({"kind": "json"}, '{"a": 1} as you asked', False),
        ({"kind": "contains", "words": ["cat", "the dog"]}, "A Cat and the\ndog.", True),
        ({"kind": "contains", "words": ["cat"]}, "concatenate", False),
        ({"kind": "contains", "words": ["C++"]}, "I like c++.", True),
        ({"kind": "lacks", "words": ["cat", "dog"]}, "A dog.", False),
        ({"kind": "lacks", "words": ["cat"]}, "concatenate", True),
        ({"kind": "starts_with", "text": "Dear "}, "\ndear Sir", True),
        ({"kind": "ends_with", "text": "Bye!"}, "Hello. Bye.", False),
        ({"kind": "ends_with", "text": "bye!"}, "Hello. Bye! ", True),
    ],
)
def test_an_instruction_is_followed_or_not(fields: dict[str, Any], answer: str, followed: bool) -> None:
    assert follows(instruction(**fields), answer) is followed


@given(st.text(), st.sampled_from(["words", "characters", "sentences", "lines", "bullets"]), st.integers(0, 9))
def test_at_least_and_at_most_leave_nothing_between(answer: str, kind: str, limit: int) -> None:
    at_least, at_most = instruction(kind=kind, min=limit + 1), instruction(kind=kind, max=limit)
    assert follows(at_least, answer) + follows(at_most, answer) == (1 if answer.strip() else 0)
    assert not follows_all([at_least, at_most], answer)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "has no column 'instructions'"),
        ([], "empty list"),
        ("[{", "not JSON"),
        ([{"kind": "poem"}], "'words'"),
        ([{"kind": "words"}], "give min, max or both"),
        ([{"kind": "words", "min": 3, "max": 2}], "min must not be above max"),
        ([{"kind": "words", "minimum": 3}], "0.words.minimum"),
        ([{"kind": "words", "min": "three"}], "0.words.min"),
        ([{"kind": "contains", "words": []}], "0.contains.words"),
        ({"kind": "json"}, "list"),
    ],
)
def test_what_cannot_be_checked_is_refused_with_its_row(value: Any, words: str) -> None:
    with pytest.raises(InputError, match="row 7 of 'rules'") as raised:
        read_instructions(value, dataset="rules", row=7)
    assert raised.value.kind == "bad_instruction"
    assert words in raised.value.message


def test_a_list_is_read_from_json_and_without_parquets_empty_keys() -> None:
    expected = (instruction(kind="words", max=3), instruction(kind="json"))
    assert read_instructions('[{"kind": "words", "max": 3}, {"kind": "json"}]', dataset="a", row=0) == expected
    columns = [{"kind": "words", "max": 3, "min": None}, {"kind": "json", "max": None, "min": None}]
    assert read_instructions(columns, dataset="a", row=0) == expected
    assert [describe(one) for one in expected] == ["at most 3 words", "JSON"]


def row(prompt: str, answer: str, **columns: Any) -> Example:
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(messages=messages, dataset="rules", row=0, fields={"prompt": prompt}, columns=columns)


def test_rows_without_an_answer_are_asked_and_graded(tokenization: Tokenization) -> None:
    rules = [{"kind": "uppercase"}, {"kind": "words", "min": 2, "max": 2}]
    example = row("Shout!", "", instructions=rules)
    task = build_task(
        [example],
        name="rules",
        role="instruction",
        metric=Metric(metric="instructions"),
        tokenization=tokenization,
    )
    assert list(task.rows[0].prompt_tokens) == tokenization.encode_prompt(example)
    assert task.rows[0].expected == "all uppercase; 2 words"
    assert [grade_row(task, task.rows[0], answer).correct for answer in ("OH NO", "OH", "oh no", "")] == [
        True, False, False, False,
    ]  # fmt: skip


def test_a_question_that_does_not_fit_is_refused_before_anything_starts(tokenization: Tokenization) -> None:
    example = row("Shout! " * 100, "", instructions=[{"kind": "uppercase"}])
    with pytest.raises(InputError, match="rules row 0 asks in") as raised:
        build_task(
            [example], name="rules", role="instruction", metric=Metric(metric="instructions"), tokenization=tokenization
        )
    assert raised.value.kind == "overlong"


def test_the_jobs_own_list_serves_all_rows(tokenization: Tokenization) -> None:
    metric = Metric(metric="instructions", instructions=[instruction(kind="lowercase")])  # type: ignore[list-item]
    task = build_task([row("Whisper", "x")], name="r", role="instruction", metric=metric, tokenization=tokenization)
    assert [one.kind for one in task.rows[0].instructions] == ["lowercase"]
    with pytest.raises(InputError, match="checked by the metric 'instructions'") as raised:
        build_task(
            [row("Whisper", "x")], name="r", role="general", tokenization=tokenization,
            metric=metric.model_copy(update={"metric": "exact_match"}),
        )  # fmt: skip
    assert raised.value.kind == "metric_mismatch"
