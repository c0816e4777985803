"""What OpenAI's API answers: the shapes, for the OpenAPI document, and how pieces of an answer become them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ftray.config import Config
from ftray.serve.asking import Piece, TokenLogprob

End = Literal["stop", "length"]


class Usage(Config):
    """What an answer took."""

    prompt_tokens: int
    """Of the prompts, each once."""
    completion_tokens: int
    """Of all choices."""
    total_tokens: int
    """Both."""


class TopLogprob(Config):
    """One of the likeliest tokens."""

    token: str
    """Its text."""
    logprob: float
    """Under the whole distribution."""
    bytes: list[int] | None
    """Its text in UTF-8."""


class ChatLogprob(TopLogprob):
    """A token of an answer."""

    top_logprobs: list[TopLogprob]
    """The likeliest in its place."""


class ChatLogprobs(Config):
    """The tokens of an answer."""

    content: list[ChatLogprob]
    """In their order."""
    refusal: None = None
    """Null."""


class ChatMessage(Config):
    """An answer."""

    role: Literal["assistant"]
    """Who speaks."""
    content: str
    """Its text."""
    refusal: None = None
    """Null."""


class ChatChoice(Config):
    """One of n answers."""

    index: int
    """Its number."""
    message: ChatMessage
    """The answer."""
    logprobs: ChatLogprobs | None
    """Where they were asked for."""
    finish_reason: End
    """stop: it came to its end, or to a stop text. length: to max_tokens, or to the model's positions."""


class Answered(Config):
    """What both routes share."""

    id: str
    """What feedback names."""
    created: int
    """Seconds since the epoch."""
    model: str
    """As the request names it."""
    system_fingerprint: str | None
    """The adapter's digest, shortened, or `base`; null in experiments, which do not name the arm."""
    metadata: dict[str, str] | None = None
    """As given."""


class ChatCompletion(Answered):
    """An answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    """What it is."""
    choices: list[ChatChoice]
    """n answers."""
    usage: Usage
    """What they took."""


class TextLogprobs(Config):
    """The tokens of an answer, in columns."""

    tokens: list[str]
    """Their texts."""
    token_logprobs: list[float]
    """Under the whole distribution."""
    top_logprobs: list[dict[str, float]]
    """The likeliest in their places."""
    text_offset: list[int]
    """Where in the text they begin."""


class TextChoice(Config):
    """One of n answers to each prompt, in the prompts' order."""

    index: int
    """Its number."""
    text: str
    """The answer."""
    logprobs: TextLogprobs | None
    """Where they were asked for."""
    finish_reason: End
    """stop: it came to its end, or to a stop text. length: to max_tokens, or to the model's positions."""


class TextCompletion(Answered):
    """An answer of POST /v1/completions."""

    object: Literal["text_completion"]
    """What it is."""
    choices: list[TextChoice]
    """n answers to each prompt."""
    usage: Usage
    """What they took."""


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the counts."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return the tokens of an answer, or of a piece of it."""
    content = [
        _logprob(token.text, token.logprob)
        | {"top_logprobs": [_logprob(text, logprob) for _, text, logprob in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def text_logprobs(tokens: Sequence[TokenLogprob], *, offset: int) -> dict[str, Any]:
    """Return the tokens of an answer, or of a piece that begins at `offset`."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{text: logprob for _, text, logprob in token.top} for token in tokens],
        "text_offset": offsets,
    }


@dataclass(slots=True)
class Choice:
    """One answer as it grows."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: str | None = None
    offset: int = 0
    """Of the next token's text."""
    is_begun: bool = False

    def take(self, piece: Piece) -> None:
        """Grow by a piece."""
        self.text += piece.text
        self.logprobs.extend(piece.logprobs)
        self.end = piece.finish_reason or self.end


class ChatShape:
    """The spelling of POST /v1/chat/completions."""

    prefix = "chatcmpl-"
    whole, chunk = "chat.completion", "chat.completion.chunk"

    def __init__(self, *, has_logprobs: bool) -> None:
        self._has_logprobs = has_logprobs

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return a whole answer."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": chat_logprobs(choice.logprobs) if self._has_logprobs else None,
            "finish_reason": choice.end,
        }

    def piece(self, index: int, choice: Choice, piece: Piece) -> dict[str, Any]:
        """Return what an answer has grown by."""
        delta = {} if choice.is_begun else {"role": "assistant"}
        if piece.text or not choice.is_begun:
            delta["content"] = piece.text
        choice.is_begun = True
        return {
            "index": index,
            "delta": delta,
            "logprobs": chat_logprobs(piece.logprobs) if self._has_logprobs else None,
            "finish_reason": piece.finish_reason,
        }


class TextShape:
    """The spelling of POST /v1/completions."""

    prefix = "cmpl-"
    whole = chunk = "text_completion"

    def __init__(self, *, has_logprobs: bool) -> None:
        self._has_logprobs = has_logprobs

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return a whole answer."""
        logprobs = text_logprobs(choice.logprobs, offset=0) if self._has_logprobs else None
        return {"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.end}

    def piece(self, index: int, choice: Choice, piece: Piece) -> dict[str, Any]:
        """Return what an answer has grown by."""
        logprobs = text_logprobs(piece.logprobs, offset=choice.offset) if self._has_logprobs else None
        choice.offset += sum(len(token.text) for token in piece.logprobs)
        choice.is_begun = True
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}


Shape = ChatShape | TextShape
