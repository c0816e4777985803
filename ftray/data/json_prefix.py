"""How far a text is the beginning of a JSON document: a recogniser of RFC 8259 that needs no end.

It takes whole strings and numbers by regular expressions that never backtrack, so that it is linear in the text, and
it keeps its own stack, so that no nesting is too deep.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

_SPACE = re.compile(r"[ \t\n\r]*+")
_STRING_REST = re.compile(r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_HALF_ESCAPE = re.compile(r"(?:\\(?:u[0-9a-fA-F]{0,3}+)?)?")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_NUMBER_BEGINNING = re.compile(r"-?(?:(?:0|[1-9][0-9]*+)(?:\.(?:[0-9]++(?:[eE][+-]?[0-9]*+)?)?|[eE][+-]?[0-9]*+)?)?")
_WORDS = {"t": "true", "f": "false", "n": "null"}
_CLOSES = {"{": "}", "[": "]"}

_Expects = Literal["value", "value or end", "key", "key or end", "colon", "comma or end", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonPrefix:
    """How far a text is JSON, in characters."""

    length: int
    """Of the longest beginning that some JSON object or array begins with, blanks around it included."""
    complete: int | None
    """Where the object or array ends; None where it does not."""


def scan_json(text: str) -> JsonPrefix:
    """Return how far `text` is the beginning of one JSON object or array."""
    scanner = _Scanner(text=text)
    while scanner.step():
        pass
    return JsonPrefix(length=scanner.position, complete=scanner.complete)


@dataclass(slots=True, kw_only=True)
class _Scanner:
    """Everything before `position` has been taken."""

    text: str
    position: int = 0
    expects: _Expects = "value"
    open: list[str] = field(default_factory=list)
    """The brackets that are to come, innermost last."""
    complete: int | None = None

    def step(self) -> bool:
        """Take blanks and one token; return whether the text goes on as JSON."""
        self.position = self._end(_SPACE)
        if self.position == len(self.text) or self.expects == "nothing":
            return False
        character = self.text[self.position]
        if self.open and character == self.open[-1] and self.expects in ("value or end", "key or end", "comma or end"):
            self.position += 1
            self.open.pop()
            self._value_ended()
            return True
        match self.expects:
            case "comma or end":
                return self._take(character, ",", then="key" if self.open[-1] == "}" else "value")
            case "colon":
                return self._take(character, ":", then="value")
            case "key" | "key or end":
                return character == '"' and self._string(then="colon")
            case _:
                return self._value(character)

    def _value(self, character: str) -> bool:
        if character in _CLOSES:
            self.position += 1
            self.open.append(_CLOSES[character])
            self.expects = "key or end" if character == "{" else "value or end"
            return True
        if not self.open:
            # A bare number or word is JSON to the letter, but no structured answer.
            return False
        if character == '"':
            return self._string(then="comma or end")
        if character in _WORDS:
            return self._word(_WORDS[character])
        return self._number()

    def _take(self, character: str, wanted: str, *, then: _Expects) -> bool:
        if character != wanted:
            return False
        self.position += 1
        self.expects = then
        return True

    def _string(self, *, then: _Expects) -> bool:
        self.position += 1
        self.position = self._end(_STRING_REST)
        if self.text[self.position : self.position + 1] == '"':
            self.position += 1
            self.expects = then
            return True
        self.position = self._end(_HALF_ESCAPE)
        return False

    def _word(self, word: str) -> bool:
        given = self.text[self.position : self.position + len(word)]
        same = next((n for n, (one, other) in enumerate(zip(given, word, strict=False)) if one != other), len(given))
        self.position += same
        self._value_ended()
        return same == len(word)

    def _number(self) -> bool:
        start, end = self.position, self._end(_NUMBER_BEGINNING)
        self.position = end
        self._value_ended()
        return _NUMBER.fullmatch(self.text, start, end) is not None

    def _value_ended(self) -> None:
        self.expects = "comma or end" if self.open else "nothing"
        if not self.open:
            self.complete = self.position

    def _end(self, expression: re.Pattern[str]) -> int:
        found = expression.match(self.text, self.position)
        assert found is not None, "every expression matches nothing, too"
        return found.end()
