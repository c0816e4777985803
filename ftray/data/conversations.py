"""What every reader produces: one example, a conversation or a plain text, with where it came from.

Two examples ask the same question when their `subject` agrees: the values put into a prompt template, never the
template's constant words, which would make all rows of a dataset look alike.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from ftray.artifacts import digest_of

Role = Literal["system", "user", "assistant", "tool"]
REPLAY = "replay"
"""The dataset of rows that are rehearsed beside the task's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn."""

    role: Role
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()  # {"type": "function", "function": {"name": str, "arguments": dict}}
    name: str | None = None  # of the tool that answers

    def to_dict(self) -> dict[str, Any]:
        """Return the message as chat templates expect it, without empty keys."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = list(self.tool_calls)
        if self.name is not None:
            message["name"] = self.name
        return message


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a dataset: messages that end with the assistant's answer, or a text."""

    messages: tuple[Message, ...]
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    dataset: str
    row: int
    """0-based index in the file as given."""
    fields: Mapping[str, str]
    """The values substituted into the prompt template, or the user's content when there is no template."""
    columns: Mapping[str, Any]
    """The row as read, for splitting by group or time."""

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of what is learned: messages, text and tools."""
        messages = [message.to_dict() for message in self.messages]
        return digest_of({"messages": messages, "text": self.text, "tools": list(self.tools)})

    @property
    def prompt_messages(self) -> tuple[Message, ...]:
        """Everything before the final assistant turn."""
        return self.messages[:-1]

    @property
    def prompt_text(self) -> str:
        """What the user asked last; empty for a text."""
        return next((turn.content for turn in reversed(self.prompt_messages) if turn.role == "user"), "")

    @property
    def answer_text(self) -> str:
        """The final assistant turn; empty for a text."""
        return self.messages[-1].content if self.messages else ""

    @property
    def is_blank(self) -> bool:
        """Whether a text, or any turn of the assistant, is blanks; a tool call is an answer."""
        if self.text is not None:
            return not self.text.strip()
        return any(
            turn.role == "assistant" and not turn.tool_calls and not turn.content.strip() for turn in self.messages
        )

    @cached_property
    def subject(self) -> str:
        """What makes two examples the same question: the text, the substituted fields, or the talk so far.

        With a constant prompt ("Tell a story.") nothing is left to tell examples apart but the answer.
        """
        if self.text is not None:
            return self.text
        spoken = [turn.content for turn in self.prompt_messages if turn.role != "system"]
        return "\n".join(spoken if len(spoken) > 1 else self.fields.values()) or self.answer_text

    @cached_property
    def normalised_prompt(self) -> str:
        """The subject without case, punctuation and spacing."""
        return normalise(self.subject)

    @cached_property
    def normalised_answer(self) -> str:
        """The answer without case, punctuation and spacing, with its tool calls."""
        calls = [call["function"] for call in self.messages[-1].tool_calls] if self.messages else []
        return normalise(self.answer_text) + (digest_of(calls) if calls else "")


class RowsDigest:
    """The digest of rows as they go by: what `digest_of` gives for the list of their own digests."""

    def __init__(self) -> None:
        self.rows = 0
        self._hash = hashlib.sha256(b"[")

    def add(self, example: Example) -> None:
        """Take the next row."""
        self._hash.update(f'{"," if self.rows else ""}"{example.digest}"'.encode())
        self.rows += 1

    def hexdigest(self) -> str:
        """Return the digest of the rows so far."""
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()


def examples_digest(examples: Iterable[Example]) -> str:
    """Return the digest of what was really read: the examples' own digests in order."""
    digest = RowsDigest()
    for example in examples:
        digest.add(example)
    return digest.hexdigest()


def without_repetitions(examples: Iterable[Example]) -> list[Example]:
    """Return each row once where a source's weight repeats it; equal rows of a file stay."""
    return list({(example.dataset, example.row, example.digest): example for example in examples}.values())


class _Blanks(dict[int, str]):
    """A translation table, filled as characters turn up: punctuation becomes a blank, except where it is meaning."""

    # C# is not C++, 2*3 is not 2/3, and a symbol (Unicode S: + = < € and emoji) is never punctuation.
    MEANING = frozenset("#%&*/@\\")

    def __missing__(self, code: int) -> str:
        character = chr(code)
        is_blank = unicodedata.category(character).startswith("P") and character not in self.MEANING
        self[code] = " " if is_blank else character
        return self[code]


_BLANKS = _Blanks()
_MINUS = re.compile(r"-(?=\s?\d)")
_INSIDE = re.compile(r"(?<=\w)['\N{RIGHT SINGLE QUOTATION MARK}](?=\w)|(?<=\d),(?=\d{3}(?!\d))")
"""What may be left out inside a word: the apostrophe of "what's", the comma of "1,000"."""


def normalise(text: str) -> str:
    """Casefold, turn punctuation into blanks and collapse them. A minus before a digit and operators stay."""
    folded = _INSIDE.sub("", unicodedata.normalize("NFKC", text).casefold())
    words = _MINUS.sub("\N{MINUS SIGN}", folded).translate(_BLANKS).split()
    # "?!" and "..." are not the same question as each other.
    return " ".join(words) if words else folded.strip()
