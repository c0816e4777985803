"""Turns of a conversation in the dialects people store them in, made into messages that are in order.

Tool calls become {"type": "function", "function": {"name", "arguments": object}}, the form chat templates expect;
arguments kept as a JSON string (OpenAI, ShareGPT) are parsed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ftray.data.conversations import Message, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_MAY_FOLLOW: dict[Role | None, tuple[Role, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "tool": ("tool", "assistant"),
}


class BadTurn(Exception):
    """A turn that cannot be used; the reader adds file and row. The message completes "the row …"."""


def make_message(role: Any, content: Any, *, tool_calls: Any = None, name: Any = None) -> Message:
    """Return one message, with the role in any known spelling."""
    known = ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise BadTurn(f"has a turn with the role {role!r}; known roles: {', '.join(ROLES)}")
    calls = parse_tool_calls(tool_calls)
    if calls and known != "assistant":
        raise BadTurn(f"has tool_calls in a turn of {role!r}; only the assistant calls tools")
    if role == "function_call":
        calls, content = parse_tool_calls(content), ""
        if not calls:
            raise BadTurn("has an empty function_call")
    if calls:
        check_text(json.dumps(calls, ensure_ascii=False), "tool calls")
    if content is None and calls:
        content = ""
    text = check_text(content, f"the content of the {role!r} turn")
    return Message(role=known, content=text, tool_calls=calls, name=name)


def check_text(value: Any, what: str) -> str:
    """Return `value` if it is text that can be encoded."""
    if not isinstance(value, str):
        raise BadTurn(f"has {what} as {_json_type(value)}, which must be text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadTurn(f"has {what} with half a character (a lone surrogate) at position {error.start}") from error
    return value


def check_order(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages if their roles are in order and the assistant has the last word."""
    before: Message | None = None
    for number, message in enumerate(messages):
        allowed = _MAY_FOLLOW[before.role if before else None]
        if before and before.tool_calls:
            allowed = ("tool",)
        if message.role not in allowed:
            after = f"after {before.role!r}" if before else "at the start"
            calls = " that calls a tool" if before and before.tool_calls else ""
            raise BadTurn(
                f"has roles out of order: turn {number} is {message.role!r} {after}{calls}, where only "
                f"{' or '.join(map(repr, allowed))} may stand"
            )
        before = message
    if before is None:
        raise BadTurn("has no turns")
    if before.role != "assistant":
        raise BadTurn(f"ends with a turn of {before.role!r}; there is no answer to learn")
    return tuple(messages)


def parse_tool_calls(calls: Any) -> tuple[dict[str, Any], ...]:
    """Return tool calls (an object, a list of them, or either as a JSON string) in the templates' form."""
    if calls is None or calls == "" or calls == []:
        return ()
    calls = _parsed(calls, "a tool call")
    return tuple(_tool_call(call) for call in (calls if isinstance(calls, list) else [calls]))


def parse_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    """Return tool definitions (a list, or a JSON string of one) in the templates' form."""
    if tools is None or tools == "":
        return ()
    tools = _parsed(tools, "the tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadTurn(f"has tools as {_json_type(tools)}, which must be a list of objects")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def _tool_call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadTurn('has a tool call without a name; it must be {"name": …, "arguments": {…}}')
    arguments = _parsed(function.get("arguments") or {}, f"the arguments of the call of {function['name']!r}")
    if not isinstance(arguments, dict):
        raise BadTurn(f"has arguments of the call of {function['name']!r} as {_json_type(arguments)}, not an object")
    known = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **known} if isinstance(call.get("id"), str) else known


def _parsed(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise BadTurn(f"has {what} that is not JSON: {error.msg} in {value[:80]!r}") from error


def _json_type(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "nothing (null)" if value is None else names.get(type(value), type(value).__name__)
