from __future__ import annotations

import json

import pytest

from ftray.data.turns import BadTurn, check_order, make_message, parse_tool_calls, parse_tools

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    "given",
    [
        [{"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
        [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
        {"name": "add", "arguments": {"a": 1}},
        '{"name": "add", "arguments": "{\\"a\\": 1}"}',
        '[{"name": "add", "arguments": {"a": 1}}]',
    ],
)
def test_tool_calls_in_every_dialect(given):
    (call,) = parse_tool_calls(given)
    assert {key: value for key, value in call.items() if key != "id"} == CALL


def test_tools_are_wrapped_once():
    schema = {"name": "add", "parameters": {}}
    wrapped = {"type": "function", "function": schema}
    assert parse_tools([schema]) == parse_tools(json.dumps([wrapped])) == (wrapped,)
    assert parse_tools("[]") == parse_tools(None) == ()


@pytest.mark.parametrize(
    "bad", ["{", '{"arguments": {}}', '{"name": "f", "arguments": [1]}', '{"name": "f", "arguments": "x"}']
)
def test_a_tool_call_that_is_none_is_refused(bad):
    with pytest.raises(BadTurn):
        parse_tool_calls(bad)


@pytest.mark.parametrize(
    ("role", "content", "what"),
    [
        ("narrator", "x", "the role 'narrator'"),
        (None, "x", "the role None"),
        ("user", 3, "a number"),
        ("user", None, "nothing"),
        ("user", ["x"], "a list"),
        ("user", "\ud800", "half a character"),
    ],
)
def test_a_turn_that_is_none_is_refused(role, content, what):
    with pytest.raises(BadTurn, match=what):
        make_message(role, content)


def turns(roles):
    calls = {"name": "f", "arguments": {}}
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "c": "assistant"}
    return [make_message(names[role], "x", tool_calls=calls if role == "c" else None) for role in roles]


@pytest.mark.parametrize("roles", ["ua", "sua", "uaua", "ucta", "uctcta", "ucttaua", "uc"])
def test_orders_that_are_fine(roles):
    assert len(check_order(turns(roles))) == len(roles)


@pytest.mark.parametrize("roles", ["", "u", "a", "sa", "uua", "uaa", "usa", "uau", "uata", "ucua", "uct", "ta"])
def test_orders_that_are_refused(roles):
    with pytest.raises(BadTurn):
        check_order(turns(roles))
