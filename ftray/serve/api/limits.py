"""How much one request, and one key, may ask for. What is beyond it is refused before anything is started."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from ftray.config import Config
from ftray.serve.api.openai_schema import ChatRequest, CompletionRequest, Wanted
from ftray.serve.api.problems import Problem, refused

Count = Annotated[int, Field(ge=1)]
MOST_CALLERS = 10_000
"""Callers whose rates are remembered."""


class Limits(Config):
    """What the API takes. An engine's own limit, the model's positions, comes on top."""

    body_bytes: Count = 1_048_576
    """Longest body, counted while it is read; 413 beyond."""
    body_seconds: Annotated[float, Field(gt=0)] = 15.0
    """Longest wait for a body; 408 beyond."""
    prompt_characters: Count = 262_144
    """Longest prompt: the texts of all messages and tools together, or of all prompts."""
    prompt_tokens: Count = 65_536
    """Most tokens, where a prompt is given as tokens."""
    messages: Count = 256
    """Longest chat."""
    choices: Count = 16
    """Most answers to one request: n times the prompts."""
    max_tokens: Count = 4096
    """Longest answer; also what an answer gets that asks for no limit."""
    stop_characters: Count = 256
    """Longest stop text."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Longest time from a request to the end of its answer."""
    requests_per_second: Annotated[float, Field(gt=0)] | None = 100.0
    """Of one key at one process of the API, in the long run; null: no limit. Without keys there is none either."""
    burst: Count = 200
    """Requests that a key which has been quiet may send at once."""
    shadows: Annotated[int, Field(ge=0)] = 16
    """Shadow arms' answers under way at one process of the API; more are shed."""


def require_within(limits: Limits, wanted: ChatRequest | CompletionRequest) -> None:
    """Raise Problem (400) for a request that asks for too much."""
    _require_answers(limits, wanted)
    if isinstance(wanted, ChatRequest):
        _at_most(limits.messages, len(wanted.messages), "messages", "messages")
        _at_most(limits.max_tokens, wanted.max_completion_tokens or 0, "max_completion_tokens", "tokens")
        texts = [len(message.model_dump_json()) for message in wanted.messages]
        tools = [len(tool.model_dump_json()) for tool in wanted.tools or ()]
        _at_most(limits.prompt_characters, sum(texts) + sum(tools), "messages", "characters")
        return
    prompts = wanted.prompts
    _at_most(limits.choices, (wanted.n or 1) * len(prompts), "prompt", "answers")
    characters = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
    _at_most(limits.prompt_characters, characters, "prompt", "characters")
    tokens = sum(len(prompt) for prompt in prompts if not isinstance(prompt, str))
    _at_most(limits.prompt_tokens, tokens, "prompt", "tokens")


def _require_answers(limits: Limits, wanted: Wanted) -> None:
    _at_most(limits.choices, wanted.n or 1, "n", "answers")
    _at_most(limits.max_tokens, wanted.max_tokens or 0, "max_tokens", "tokens")
    _at_most(limits.stop_characters, _longest(wanted.stops), "stop", "characters")


def _longest(texts: Sequence[str]) -> int:
    return max(map(len, texts), default=0)


def _at_most(limit: int, given: int, param: str, what: str) -> None:
    if given > limit:
        raise refused(f"{param!r} asks for {given} {what}; at most {limit} are allowed.", param=param, code="too_much")


class Rate:
    """A token bucket for each caller: each fills at a steady rate up to the burst."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = limits.requests_per_second, float(limits.burst), clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> None:
        """Count one request. Raises Problem (429), which says when the next one is allowed."""
        if self._rate is None:
            return
        now = self._clock()
        left, since = self._buckets.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        if len(self._buckets) >= MOST_CALLERS:
            # The one that has been quiet longest: its bucket is the fullest.
            self._buckets.pop(next(iter(self._buckets)))
        self._buckets[caller] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            raise Problem(
                429,
                f"This key may send {self._rate:g} requests a second.",
                code="rate_limit_exceeded",
                kind="rate_limit_error",
                retry_after=(1 - left) / self._rate,
            )
