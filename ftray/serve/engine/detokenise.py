"""Tokens to text, piece by piece: the pieces joined are what the tokenizer makes of all tokens at once.

A piece never ends inside a character, and holds nothing that may still become a stop text. What a token says depends on
the tokens around it (a leading blank, a character of several byte tokens), so tokens are decoded behind those that were
last said, and only what these do not say is new.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

REPLACEMENT = "�"
"""What a decoder writes for bytes that are no character, or not one yet."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Vocabulary:
    """What a tokenizer's tokens say."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.unsaid = frozenset(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._texts: dict[int, str] = {}

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of some tokens, control tokens left out."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def byte_tokens(self) -> frozenset[int]:
        """Tokens that are one byte each; a decoder reads a run of them together, and wholly or not at all."""
        return frozenset(index for token, index in self.tokenizer.get_vocab().items() if _BYTE.fullmatch(token))

    def text_of(self, token: int) -> str:
        """Return what one token says inside a text; control tokens by their names."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._say(token)
        return text

    def _say(self, token: int) -> str:
        if token in self.unsaid:
            return str(self.tokenizer.convert_ids_to_tokens(token))
        before = self._letter
        both, alone = self.decode([*before, token]), self.decode(before)
        return both[len(alone) :] if both.startswith(alone) else self.decode([token])

    @cached_property
    def _letter(self) -> list[int]:
        """Tokens of a letter, behind which a blank is not a leading one."""
        letters: list[int] = self.tokenizer("a", add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return letters


class Detokeniser:
    """One answer's text as it grows."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokens: list[int] = []  # those that say something
        self._from = 0  # where the tokens begin that are decoded with the new ones
        self._said = 0  # tokens whose text has been given
        self._behind = ""  # what tokens[_from:_said] say
        self._length = 0

    def add(self, token: int) -> str:
        """Take a token; return the text that is certain now and was not before."""
        vocabulary = self._vocabulary
        if token in vocabulary.unsaid:
            return ""
        self._tokens.append(token)
        if token in vocabulary.byte_tokens:
            return ""
        text = vocabulary.decode(self._tokens[self._from :])
        if text.endswith(REPLACEMENT) or not text.startswith(self._behind):
            return ""
        new = text[len(self._behind) :]
        self._from, self._said = self._said, len(self._tokens)
        self._behind = vocabulary.decode(self._tokens[self._from : self._said])
        self._length += len(new)
        return new

    def finish(self) -> str:
        """Return what is left: half characters as the tokenizer shows them."""
        if self._said == len(self._tokens):
            return ""
        text = self._vocabulary.decode(self._tokens)
        self._said = len(self._tokens)
        new = text[self._length :]
        self._length = len(text)
        return new


class StopTexts:
    """Looks for texts that end an answer, in pieces as they come."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """Take a piece; return what can be said, and whether a stop text has ended the answer."""
        if not self._texts:
            return piece, False
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._texts) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((_overlap(text, stop) for stop in self._texts), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def finish(self) -> str:
        """Return what was held back for a stop text that did not come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how much of the end of `text` begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
