"""What a row says, part by part: what was asked, what is answered, and all of it.

A prompt template's constant words are never part of it, nor is a system message that an earlier row had, too: a fault
in either would be found in every row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from ftray.data.conversations import Example

NUM_SYSTEMS = 10_000
"""Different system messages that are remembered; beyond them every one is read."""


def asked(example: Example) -> str:
    """Return what the row asks: the fields, or the talk before the last answer; empty for a text or constant prompt."""
    spoken = [turn.content for turn in example.prompt_messages if turn.role != "system"]
    return "\n".join(spoken if len(spoken) > 1 else example.fields.values())


def answers(example: Example) -> list[str]:
    """Return every turn of the assistant that says something; a text has none."""
    return [turn.content for turn in example.messages if turn.role == "assistant" and turn.content]


def has_answer(example: Example) -> bool:
    """Return whether the last answer is in words; a text has none, nor has a tool call."""
    is_call = bool(example.messages and example.messages[-1].tool_calls)
    return example.text is None and not is_call and bool(example.answer_text.strip())


class Passages:
    """Gives rows as one text each: what was asked, the last answer, tool calls, and a system message not seen yet."""

    def __init__(self) -> None:
        self._systems: set[int] = set()

    def whole(self, example: Example) -> str:
        """Return all that the row says."""
        if example.text is not None:
            return example.text
        return "\n".join((asked(example), example.answer_text, *self.around(example)))

    def around(self, example: Example) -> Iterator[str]:
        """Yield what is neither asked nor answered in words: new system messages, and the arguments of tool calls."""
        for turn in example.messages:
            if turn.role == "system" and self._is_new(turn.content):
                yield turn.content
            for call in turn.tool_calls:
                yield json.dumps(call["function"]["arguments"], ensure_ascii=False)

    def _is_new(self, system: str) -> bool:
        known = hash(system) in self._systems
        if not known and len(self._systems) < NUM_SYSTEMS:
            self._systems.add(hash(system))
        return not known
