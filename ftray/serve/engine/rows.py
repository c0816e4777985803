"""One answer as it grows: its tokens, their text, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from ftray.model.bank_route import BASE
from ftray.serve.asking import FinishReason, Piece, Sampling, TokenLogprob
from ftray.serve.engine.detokenise import Detokeniser, StopTexts, Vocabulary
from ftray.serve.engine.sampler import Chosen, Draw


class Speech:
    """What of an answer has been said, and what is held back."""

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()) -> None:
        self._vocabulary = vocabulary
        self._detokeniser = Detokeniser(vocabulary)
        self._stops = StopTexts(stop)
        self._text = ""
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def add(self, chosen: Chosen, *, with_logprobs: bool) -> bool:
        """Take a token; return whether a stop text has ended the answer."""
        assert chosen.token is not None
        self._tokens.append(chosen.token)
        if with_logprobs:
            say = self._vocabulary.text_of
            top = tuple((token, say(token), logprob) for token, logprob in chosen.top)
            text = say(chosen.token)
            self._logprobs.append(TokenLogprob(token_id=chosen.token, text=text, logprob=chosen.logprob, top=top))
        text, ended = self._stops.add(self._detokeniser.add(chosen.token))
        self._text += text
        return ended

    def finish(self) -> bool:
        """Say what was held back; return whether a stop text was in it."""
        text, ended = self._stops.add(self._detokeniser.finish())
        self._text += text if ended else text + self._stops.finish()
        return ended

    def piece(self) -> Piece | None:
        """Return what has been said since the last piece, with its tokens; None where there is no text."""
        if not self._text:
            return None
        return self.last_piece(None)

    def last_piece(self, reason: FinishReason | None, *, prompt: int | None = None, count: int | None = None) -> Piece:
        """Return what is left, whether or not there is text."""
        piece = Piece(
            text=self._text,
            token_ids=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
            finish_reason=reason,
            prompt_tokens=prompt,
            completion_tokens=count,
        )
        self._text, self._tokens, self._logprobs = "", [], []
        return piece


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One answer."""

    prompt: Sequence[int]
    limit: int
    """Most tokens of the answer."""
    stops: frozenset[int]
    """Tokens that end it and are not part of it."""
    draw: Draw
    speech: Speech
    slot: int = BASE
    is_streamed: bool = True
    """False: it is said in one piece when it has ended."""
    is_shadow: bool = False
    deadline: float | None = None
    answer: list[int] = field(default_factory=list)
    cached: int = 0
    """Tokens of prompt and answer that are in the cache."""
    ended: bool = False
    probe: Future[Tensor] | None = None
    """For who asks for the logits [V] after the prompt instead of an answer."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def most_columns(self) -> int:
        """Columns of the cache that it may need; the last token needs none."""
        return len(self.prompt) + self.limit - 1

    def uncached(self, number: int) -> list[int]:
        """Return the next tokens that the cache lacks, `number` at most."""
        whole = [*self.prompt, *self.answer] if self.answer else self.prompt
        return list(whole[self.cached : self.cached + number])

    def take(self, chosen: Chosen) -> Piece | None:
        """Take the next token; return what the answer has grown by, if anything."""
        assert chosen.token is not None
        if chosen.token in self.stops:
            return self._end("stop")
        self.answer.append(chosen.token)
        if self.speech.add(chosen, with_logprobs=self.draw.logprobs is not None):
            return self._end("stop", is_cut=True)
        if len(self.answer) == self.limit:
            return self._end("length")
        return self.speech.piece() if self.is_streamed else None

    def _end(self, reason: FinishReason, *, is_cut: bool = False) -> Piece:
        self.ended = True
        if not is_cut and self.speech.finish():
            reason = "stop"
        return self.speech.last_piece(reason, prompt=len(self.prompt), count=len(self.answer))


def make_probe(tokens: Sequence[int], vocabulary: Vocabulary, *, slot: int = BASE) -> Row:
    """Return a row that reads tokens as any prompt is read, and gives the logits after them."""
    return Row(
        prompt=tokens,
        limit=1,
        stops=frozenset(),
        draw=Draw(Sampling(temperature=0.0), seed=0),
        speech=Speech(vocabulary),
        slot=slot,
        probe=Future(),
    )
