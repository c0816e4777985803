"""What is asked of an engine and what it answers: the seam between the API and whoever runs the model.

Everything here crosses process borders, so it is plain data. A digest names an adapter (or a model of its own); None is
the base.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]
"""The model ended its answer, or a stop string did; max_tokens or the model's positions did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one answer is drawn. With the same seed, prompt and adapter it is the same, whoever shares the batch."""

    max_tokens: int | None = None
    """None: as many as the model has positions for."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are not part of it."""
    logprobs: int | None = None
    """None: none. N: of the chosen token, and of the N likeliest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One answer that is wanted; a request for n answers is n of these, with `index` 0 to n - 1."""

    request_id: str
    index: int = 0
    digest: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    """A chat, as OpenAI's API has it: rendered with the template that the adapter was trained with."""
    tools: tuple[Mapping[str, Any], ...] = ()
    prompt: str | tuple[int, ...] | None = None
    """A text, or its tokens; exactly one of messages and prompt is there."""
    sampling: Sampling = field(default_factory=Sampling)
    deadline: float | None = None
    """Seconds since the epoch; an answer that is not done by then ends with DeadlinePassed."""
    is_streamed: bool = True
    """False: nobody sees the answer grow, so that it may come in one piece."""
    is_shadow: bool = False
    """Answers that nobody waits for: they wait for everybody else, and are the first to be shed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token with its log-probability under the whole distribution at temperature 1, and the likeliest others."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What an answer has grown by. The last one has a finish_reason and the counts."""

    text: str = ""
    """Never half a character, and nothing that may still become a stop text."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSource:
    """A registered adapter, as an engine loads it."""

    name: str
    digest: str
    kind: Literal["adapter", "model"]
    folder: Path
    record: Mapping[str, Any]
    """record.json: what it was made from, its template, and its fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An adapter that is live, with the proof: its logits differ from the base's and match its fingerprint."""

    digest: str
    seconds: float
    max_abs_difference_from_base: float
    max_abs_difference_from_fingerprint: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """What an engine says of itself, for /metrics and the router."""

    digests: tuple[str, ...]
    running: int
    waiting: int
    slots: int
    steps: int
    """Forward passes so far."""
    prompt_tokens: int
    completion_tokens: int


class EngineFull(Exception):
    """There is no slot and the queue is full: 429. `retry_after_seconds` is a guess from the present rate."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class DeadlinePassed(Exception):
    """The answer was not done in time: 503 before its first piece, an error event after it."""


class UnknownAdapter(Exception):
    """No adapter of this digest is loaded."""


class EngineLost(Exception):
    """Whoever answered died, and nobody could take over: 503 before its first piece, an error event after it."""


class Engine(Protocol):
    """Who answers. Errors that a caller can mend are InputError (400), with `path` naming the request's field."""

    async def start(self) -> None:
        """Load the base; return when it answers."""

    def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Yield an answer as it grows. Closing the iterator, or cancelling its task, frees the slot at once.

        Raises EngineFull, DeadlinePassed, UnknownAdapter, and InputError for a prompt that does not fit.
        """

    async def load(self, source: AdapterSource) -> Loaded:
        """Load an adapter beside the running answers, and prove that it is live.

        Raises InputError `not_live` when it answers as the base or not as its fingerprint says, and what the bank
        raises for one that it cannot hold. What is loaded already is proven again.
        """

    async def unload(self, digest: str) -> None:
        """Forget an adapter; its running answers end first. Nobody waits for them."""

    def state(self) -> EngineState:
        """Return the counts."""

    def is_alive(self) -> bool:
        """Return whether what was started still runs: a dead one is replaced."""

    def positions(self) -> int | None:
        """Return the longest prompt and answer together, in tokens; None where there is no limit."""

    async def stop(self) -> None:
        """End whatever runs."""


Bundle = Sequence[AdapterSource]
