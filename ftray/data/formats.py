"""The shapes of a row, and how each becomes messages.

A preference pair (chosen, rejected) has two answers and no single conversation: it is refused, never halved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ftray.data.config import SourceFormat
from ftray.data.conversations import Message
from ftray.data.rows import Row
from ftray.data.turns import BadTurn, check_order, check_text, make_message, parse_tools
from ftray.errors import InputError

PAIRS = (("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("question", "answer"))
"""Column names that `prompt_completion` reads, first match wins."""
_METADATA = frozenset({"id", "idx", "meta", "metadata", "source", "url", "timestamp", "date", "license"})
"""Columns that may stand beside `text` without making it doubtful that the text is what is learned."""
_TURN_LISTS = ("messages", "conversations", "conversation")
_PREFERENCE_KEYS = ({"chosen", "rejected"}, {"chosen_response", "rejected_response"}, {"response_j", "response_k"})


class MissingColumn(Exception):
    """A column the format needs is not in the row; the reader adds the columns there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A row's content before it is given a place: messages or a text, tools, and the user's own words."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()


def detect_format(rows: Sequence[Row], *, file: str = "the rows") -> SourceFormat:
    """Return the format all rows share, recognised by their keys; mixed or unknown shapes are InputErrors."""
    first = _row_format(rows[0].columns)
    if first is None:
        columns = list(rows[0].columns)
        raise InputError(
            f"the format of {file} is not recognised; its columns are: {', '.join(map(str, columns)) or 'none'}",
            kind="unknown_format",
            given=columns,
            allowed=list(get_args(SourceFormat)),
            hint='Map the columns, e.g. prompt: "{text}" and completion: "{label}", or name the `format`.',
            file=file,
        )
    for row in rows:
        # A later row may be any of several shapes when the first is; only a different shape is a mixture.
        if (other := _row_format(row.columns)) != first:
            place = f"line {row.line}" if row.line else f"row {row.index}"
            raise InputError(
                f"{file} mixes formats: its first row is {first!r}, {place} is "
                f"{repr(other) if other else 'of no known format'} (columns: {', '.join(map(str, row.columns))})",
                kind="mixed_formats",
                given=[first, other],
                hint="Split the file by format and list the parts as separate sources.",
                file=file,
                line=row.line,
            )
    return first


def refuse_preferences(rows: Sequence[Row], *, file: str) -> None:
    """Raise if the rows are preference pairs."""
    for row in rows:
        if any(keys <= row.columns.keys() for keys in _PREFERENCE_KEYS):
            raise InputError(
                f"{file} holds preference pairs (a chosen and a rejected answer); ftray learns from single answers",
                kind="preference_data",
                given=list(row.columns),
                allowed=list(get_args(SourceFormat)),
                hint="To learn the chosen answers alone, write them as `messages` or `prompt_completion` rows.",
                file=file,
                line=row.line,
            )


def convert(format: SourceFormat, columns: Mapping[str, Any]) -> Conversation:
    """Return a row of one of the row-wise formats as a conversation; BadTurn and MissingColumn say what is wrong."""
    return _CONVERTERS[format](columns)


def one_turn(prompt: str, answer: str, system: Any = None) -> Conversation:
    """Return a question and its answer as a conversation."""
    opening = (make_message("system", system),) if system else ()
    return Conversation(messages=(*opening, make_message("user", prompt), make_message("assistant", answer)))


def _row_format(columns: Mapping[str, Any]) -> SourceFormat | None:
    keys = columns.keys()
    if {"message_id", "parent_id", "role", "text"} <= keys:
        return "oasst"
    turns = next((columns[key] for key in _TURN_LISTS if key in keys), None)
    if isinstance(turns, list):
        return "sharegpt" if turns and isinstance(turns[0], dict) and "from" in turns[0] else "messages"
    if {"instruction", "output"} <= keys:
        return "alpaca"
    if {"instruction", "response"} <= keys:
        return "dolly"
    if {"inputs", "targets"} <= keys:
        return "flan"
    if any(set(pair) <= keys for pair in PAIRS):
        return "prompt_completion"
    return "text" if "text" in keys and keys <= _METADATA | {"text"} else None


def _turn_list(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    key = next((key for key in _TURN_LISTS if key in columns), None)
    if key is None:
        raise MissingColumn(_TURN_LISTS[0])
    turns = columns[key]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadTurn(f"has `{key}` that is not a list of turns")
    return turns


def _messages(columns: Mapping[str, Any]) -> Conversation:
    turns = [
        make_message(turn.get("role"), turn.get("content"), tool_calls=turn.get("tool_calls"), name=turn.get("name"))
        for turn in _turn_list(columns)
    ]
    return Conversation(messages=check_order(turns), tools=parse_tools(columns.get("tools")))


def _sharegpt(columns: Mapping[str, Any]) -> Conversation:
    turns = [make_message(turn.get("from"), turn.get("value")) for turn in _turn_list(columns)]
    if columns.get("system"):
        turns.insert(0, make_message("system", columns["system"]))
    return Conversation(messages=check_order(turns), tools=parse_tools(columns.get("tools")))


def _prompt_completion(columns: Mapping[str, Any]) -> Conversation:
    for prompt, completion in PAIRS:
        if prompt in columns and completion in columns:
            return one_turn(_needed(columns, prompt), _needed(columns, completion))
    raise MissingColumn("completion" if "prompt" in columns else "prompt")


def _alpaca(columns: Mapping[str, Any]) -> Conversation:
    row = one_turn(_with_context(columns, "instruction", "input"), _needed(columns, "output"), columns.get("system"))
    opening, last = row.messages[:-2], row.messages[-2:]
    earlier: list[Message] = []
    for pair in columns.get("history") or ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadTurn("has a `history` that is not a list of [question, answer]")
        earlier += (make_message("user", pair[0]), make_message("assistant", pair[1]))
    return Conversation(messages=(*opening, *earlier, *last))


def _dolly(columns: Mapping[str, Any]) -> Conversation:
    return one_turn(_with_context(columns, "instruction", "context"), _needed(columns, "response"))


def _flan(columns: Mapping[str, Any]) -> Conversation:
    return one_turn(_needed(columns, "inputs"), _needed(columns, "targets"))


def _text(columns: Mapping[str, Any]) -> Conversation:
    text = _needed(columns, "text")
    if not text.strip():
        raise BadTurn("has an empty text")
    return Conversation(text=text)


def _with_context(columns: Mapping[str, Any], instruction: str, context: str) -> str:
    """Return the instruction, and after a blank line the context where there is one."""
    asked = _needed(columns, instruction)
    given = columns.get(context)
    return f"{asked}\n\n{check_text(given, f'the column {context!r}')}" if given else asked


def _needed(columns: Mapping[str, Any], name: str) -> str:
    if name not in columns:
        raise MissingColumn(name)
    return check_text(columns[name], f"the column {name!r}")


_CONVERTERS: dict[SourceFormat, Callable[[Mapping[str, Any]], Conversation]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "dolly": _dolly,
    "flan": _flan,
    "text": _text,
}
