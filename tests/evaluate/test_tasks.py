"""What a task is made of, and which metrics do not fit which rows."""

from __future__ import annotations

from typing import Any

import pytest

from ftray.data.conversations import Example, Message
from ftray.data.tokenization import Tokenization
from ftray.errors import InputError
from ftray.evaluate.config import Metric
from ftray.evaluate.tasks import build_task


def test_a_row_starts_generation_where_the_answer_would(tokenization: Tokenization, chat: Any, task_of: Any) -> None:
    (row,) = task_of(tokenization, ["Straße"], Metric()).rows
    assert list(row.prompt_tokens) == tokenization.encode_prompt(chat("question 0", "Straße"))
    assert (row.prompt, row.expected) == ("question 0", "Straße")
    assert row.num_bytes == len("Straße".encode())
    assert row.choices == ()


def test_a_text_is_its_own_label(tokenization: Tokenization, plain: Any) -> None:
    task = build_task(
        [plain("Once upon a time")],
        name="stories",
        role="general",
        metric=Metric(metric="bits_per_byte"),
        tokenization=tokenization,
    )
    (row,) = task.rows
    assert (row.prompt, row.prompt_tokens, row.expected, row.num_bytes) == ("", (), "Once upon a time", 16)


def test_choices_are_labelled_on_the_answer_alone(tokenization: Tokenization, chat: Any) -> None:
    talk = Example(
        messages=(
            Message(role="user", content="hello"),
            Message(role="assistant", content="good day"),
            Message(role="user", content="colour?"),
            Message(role="assistant", content="red"),
        ),
        dataset="test",
        row=0,
        fields={},
        columns={},
    )
    task = build_task(
        [talk, chat("colour?", "blue", row=1)],
        name="task",
        role="task",
        metric=Metric(metric="choice"),
        tokenization=tokenization,
    )
    assert task.choices == ("blue", "red")
    for row in task.rows:
        labelled = [candidate.tokens[candidate.is_label].tolist() for candidate in row.choices]
        assert [tokenization.tokenizer.decode(tokens) for tokens in labelled] == ["blue</s>", "red</s>"]


def test_a_tool_call_is_expected_as_its_template_writes_it(tokenization: Tokenization) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    messages = (Message(role="user", content="Rain?"), Message(role="assistant", content="", tool_calls=(call,)))
    example = Example(messages=messages, dataset="test", row=0, fields={}, columns={})
    task = build_task([example], name="task", role="task", metric=Metric(), tokenization=tokenization)
    assert task.rows[0].expected.startswith("<tool_call>")
    assert '"city": "Bern"' in task.rows[0].expected


@pytest.mark.parametrize(
    ("metric", "expected", "words"),
    [
        (Metric(metric="json_valid"), ["yes", "42"], "no expected answer of 'task' is a JSON"),
        (Metric(metric="json_fields"), ['{"a": 1}', "yes"], r"row 1 of 'task'"),
        (Metric(metric="choice"), ["yes", "Yes "], "at least two different answers"),
        (Metric(metric="choice", choices=["yes", "no"]), ["yes", "maybe"], "'maybe' is none of the choices"),
    ],
)
def test_answers_the_metric_cannot_grade_are_refused(
    tokenization: Tokenization, metric: Metric, expected: list[str], words: str, task_of: Any
) -> None:
    with pytest.raises(InputError, match=words) as raised:
        task_of(tokenization, expected, metric)
    assert raised.value.kind == "metric_mismatch"
    assert raised.value.hint


@pytest.mark.parametrize("metric", ["exact_match", "choice", "bleu"])
def test_texts_cannot_be_answered(tokenization: Tokenization, metric: str, plain: Any) -> None:
    with pytest.raises(InputError, match="plain text without a question") as raised:
        build_task(
            [plain("Once", row=7)],
            name="stories",
            role="general",
            metric=Metric(metric=metric),
            tokenization=tokenization,
        )
    assert raised.value.kind == "metric_mismatch"
    assert raised.value.path == "evaluate.general.stories.metric"


def test_an_empty_probe_is_refused(tokenization: Tokenization) -> None:
    with pytest.raises(InputError) as raised:
        build_task([], name="stories", role="general", metric=Metric(metric="nll"), tokenization=tokenization)
    assert raised.value.kind == "empty_probe"


def test_a_users_metric_is_tried_before_anything_starts(tokenization: Tokenization, task_of: Any) -> None:
    # posixpath.join takes two strings and returns no number.
    with pytest.raises(InputError, match="returned 'yes/yes'") as raised:
        task_of(tokenization, ["yes"], Metric(metric="posixpath:join"))
    assert raised.value.kind == "bad_metric"
