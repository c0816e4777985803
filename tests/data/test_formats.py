from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.data.formats import convert, detect_format
from ftray.data.rows import Row
from ftray.errors import InputError

TEXT = st.text(st.characters(codec="utf-8"))
TALK = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)


def said(conversation):
    return [(turn.role, turn.content) for turn in conversation.messages]


def as_rows(*columns):
    return [Row(index=index, line=None, columns=row) for index, row in enumerate(columns)]


@given(TALK, st.none() | st.text(st.characters(codec="utf-8"), min_size=1))
def test_chat_formats_keep_every_word(talk, system):
    turns = [("system", system)] if system else []
    turns += [turn for asked, answered in talk for turn in (("user", asked), ("assistant", answered))]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    messages = {"messages": [{"role": role, "content": content} for role, content in turns]}
    sharegpt = {"conversations": [{"from": names[role], "value": content} for role, content in turns]}
    for row, format in ((messages, "messages"), (sharegpt, "sharegpt")):
        row = json.loads(json.dumps(row))
        assert detect_format(as_rows(row)) == format
        assert said(convert(format, row)) == turns


@given(TEXT, TEXT, TEXT)
def test_flat_formats_keep_every_word(asked, context, answered):
    question = f"{asked}\n\n{context}" if context else asked
    for format, row, prompt in (
        ("prompt_completion", {"prompt": asked, "completion": answered}, asked),
        ("prompt_completion", {"question": asked, "answer": answered}, asked),
        ("flan", {"inputs": asked, "targets": answered}, asked),
        ("alpaca", {"instruction": asked, "input": context, "output": answered}, question),
        ("dolly", {"instruction": asked, "context": context, "response": answered}, question),
    ):
        assert detect_format(as_rows(row)) == format
        assert said(convert(format, row)) == [("user", prompt), ("assistant", answered)]


def test_alpaca_history_and_system_come_first():
    row = {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert said(convert("alpaca", row)) == list(zip(roles, "sabcd", strict=True))


def test_sharegpt_tool_use():
    call, result = {"name": "add", "arguments": {"a": 1}}, '{"sum": 1}'
    values = [("human", "Add."), ("function_call", json.dumps(call)), ("observation", result), ("gpt", "1")]
    row = {"conversations": [{"from": who, "value": value} for who, value in values], "tools": '[{"name": "add"}]'}
    conversation = convert("sharegpt", row)
    assert said(conversation) == [("user", "Add."), ("assistant", ""), ("tool", result), ("assistant", "1")]
    assert conversation.messages[1].tool_calls == ({"type": "function", "function": call},)
    assert conversation.tools == ({"type": "function", "function": {"name": "add"}},)


def test_text_with_doubtful_company_is_not_guessed():
    assert detect_format(as_rows({"text": "a", "url": "b"})) == "text"
    with pytest.raises(InputError, match="text, intent") as caught:
        detect_format(as_rows({"text": "a", "intent": "b"}))
    assert caught.value.kind == "unknown_format"


def test_mixed_formats_are_refused():
    with pytest.raises(InputError, match="'alpaca', row 1 is 'flan'") as caught:
        detect_format(as_rows({"instruction": "a", "output": "b"}, {"inputs": "a", "targets": "b"}))
    assert caught.value.kind == "mixed_formats"
