"""The way of a question: ask the engine, note the exposure meanwhile, and let nothing out before it is on the disk.

A unit's first request is asked of the arm that its hash says, while the store commits. Where the store knows the unit
under another arm, that answer is thrown away and the unit's own arm asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from ftray.observe import spans
from ftray.serve.api.metrics import Meters
from ftray.serve.api.problems import problem_of, unavailable
from ftray.serve.api.router import Router, Target
from ftray.serve.asking import Ask, DeadlinePassed, Engine, Piece, UnknownAdapter
from ftray.serve.experiment.spec import Contradiction
from ftray.serve.outcomes.async_outcomes import AsyncOutcomes

GRACE_SECONDS = 0.5
"""The engine watches the deadline itself; so much later nobody waits for it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request for answers."""

    response_id: str
    model: str
    unit: str | None
    asks: tuple[Ask, ...]
    """One for each choice, without a digest yet."""
    text: str = ""
    """The prompt as it is kept, where prompts are kept."""
    received_at: float = field(default_factory=time.perf_counter)
    deadline: float
    """Seconds since the epoch."""

    def asks_of(self, digest: str | None) -> tuple[Ask, ...]:
        """Return the asks to one model."""
        return tuple(replace(ask, digest=digest) for ask in self.asks)


async def together(engine: Engine, asks: Sequence[Ask]) -> AsyncGenerator[tuple[int, Piece]]:
    """Yield the pieces of several answers as they come, with the number of the answer."""
    if len(asks) == 1:
        pieces = engine.generate(asks[0])
        try:
            async for piece in pieces:
                yield 0, piece
        finally:
            await _close(pieces)
        return
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()

    async def answer(number: int, ask: Ask) -> None:
        pieces = engine.generate(ask)
        try:
            async for piece in pieces:
                queue.put_nowait((number, piece))
            queue.put_nowait(None)
        except Exception as error:
            # Whatever it is, whoever reads the pieces raises it.
            queue.put_nowait(error)
        finally:
            await _close(pieces)

    tasks = [asyncio.create_task(answer(number, ask)) for number, ask in enumerate(asks)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _close(pieces: AsyncIterator[Piece]) -> None:
    if isinstance(pieces, AsyncGenerator):
        await pieces.aclose()


class Flow:
    """Pieces that are already being made while nobody looks at them yet."""

    def __init__(self, pieces: AsyncGenerator[tuple[int, Piece]]) -> None:
        self._pieces = pieces
        self._first: asyncio.Task[tuple[int, Piece] | None] | None = asyncio.create_task(self._next())

    async def _next(self) -> tuple[int, Piece] | None:
        return await anext(self._pieces, None)

    async def begun(self) -> None:
        """Wait for the first piece. Raises what the engine raises instead of it."""
        if self._first is not None:
            await asyncio.shield(self._first)

    async def next(self) -> tuple[int, Piece] | None:
        """Return the next piece; None after the last."""
        first, self._first = self._first, None
        return await (first or self._next())

    async def aclose(self) -> None:
        """Stop; whoever makes the pieces has stopped, too, when this returns."""
        first, self._first = self._first, None
        if first is not None:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        await self._pieces.aclose()


@dataclass(slots=True)
class Finished:
    """What came of a question."""

    texts: list[str]
    ends: list[str]
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class Running:
    """An answer under way. Its first piece is there, and its exposure on the disk."""

    def __init__(self, question: Question, target: Target, flow: Flow, meters: Meters) -> None:
        self.question, self.target = question, target
        self._flow, self._meters = flow, meters
        self.finished: Finished | None = None
        """Set when the last piece has been taken."""
        self._request = spans.carrier().get(spans.PARENT)

    async def aclose(self) -> None:
        """Stop the engine, also where nobody has taken a piece yet."""
        await self._flow.aclose()

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """Yield every piece with the number of its choice. Closing it stops the engine."""
        who, count = self.target.who, len(self.question.asks)
        last: list[float | None] = [None] * count
        done = Finished([""] * count, ["cancelled"] * count, 0, 0, 0.0)
        end = "cancelled"
        try:
            while (item := await self._within_deadline()) is not None:
                number, piece = item
                self._measure_piece(last, number)
                done.texts[number] += piece.text
                if piece.finish_reason is not None:
                    done.ends[number] = piece.finish_reason
                    done.completion_tokens += piece.completion_tokens or 0
                    # A prompt that is answered n times is one prompt.
                    done.prompt_tokens += (piece.prompt_tokens or 0) if self.question.asks[number].index == 0 else 0
                yield item
            done.seconds = time.perf_counter() - self.question.received_at
            self.finished = done
            self._meters.answered(
                who, done.seconds, prompt_tokens=done.prompt_tokens, completion_tokens=done.completion_tokens,
                ends=done.ends,
            )  # fmt: skip
            # After the request's own span, where the answer is streamed.
            spans.past(
                "answer",
                done.seconds,
                parent=self._request,
                gen_ai__request__model=self.question.model,
                gen_ai__response__id=self.question.response_id,
                gen_ai__usage__input_tokens=done.prompt_tokens,
                gen_ai__usage__output_tokens=done.completion_tokens,
                experiment=who.experiment or None,
                arm=who.arm or None,
                digest=who.model,
            )
        except Exception as error:
            problem = problem_of(error)
            end = problem.code if problem else "internal"
            raise
        finally:
            if self.finished is None:
                self._meters.broken(who, end)
            await self._flow.aclose()

    def _measure_piece(self, last: list[float | None], number: int) -> None:
        now, before = time.perf_counter(), last[number]
        if before is not None:
            self._meters.next_piece(self.target.who, now - before)
        elif not any(last):
            self._meters.first_piece(self.target.who, now - self.question.received_at)
        last[number] = now

    async def _within_deadline(self) -> tuple[int, Piece] | None:
        try:
            async with asyncio.timeout(seconds_left(self.question)):
                return await self._flow.next()
        except TimeoutError as error:
            raise DeadlinePassed from error


def seconds_left(question: Question) -> float:
    """Return how long an answer is still waited for."""
    return max(0.0, question.deadline - time.time() + GRACE_SECONDS)


class Answers:
    """Opens answers."""

    def __init__(
        self,
        engine: Engine,
        outcomes: AsyncOutcomes,
        router: Router,
        meters: Meters,
        *,
        why_not_ready: Callable[[], str | None],
    ) -> None:
        self._engine, self._outcomes, self._router, self._meters = engine, outcomes, router, meters
        self._why_not_ready = why_not_ready

    async def open(self, question: Question) -> Running:
        """Return an answer whose first piece may be shown.

        Raises Problem, and what the engine raises; nothing is left running then.
        """
        why = self._why_not_ready()
        if why is not None:
            raise unavailable(why, code="not_ready")
        try:
            async with asyncio.timeout(seconds_left(question)):
                try:
                    return await self._open(question)
                except (UnknownAdapter, Contradiction):
                    # An alias has moved, or the experiment ended, between the look and the question: look again.
                    return await self._open(question)
        except TimeoutError as error:
            raise DeadlinePassed from error

    async def _open(self, question: Question) -> Running:
        target = await self._router.target(question.model, question.unit)
        flow = Flow(together(self._engine, question.asks_of(target.digest)))
        try:
            if target.is_counted:
                exposed = await self._exposed(question, target)
                if exposed.digest != target.digest:
                    await flow.aclose()
                    flow = Flow(together(self._engine, question.asks_of(exposed.digest)))
                target = exposed
            await flow.begun()
        except BaseException:
            await flow.aclose()
            raise
        return Running(question, target, flow, self._meters)

    async def _exposed(self, question: Question, target: Target) -> Target:
        """Note the exposure, and return the target with the arm that the unit has for good."""
        assert target.experiment is not None
        assert target.arm is not None
        assert question.unit is not None
        name = target.experiment.spec.name
        try:
            exposure = await self._outcomes.expose(
                name,
                unit=question.unit,
                arm=target.arm,
                propensity=target.propensity,
                response_id=question.response_id,
            )
        except Contradiction:
            self._router.forget(name)
            raise
        self._router.know(exposure)
        if exposure.arm != target.arm:
            self._meters.reassigned(name)
        return target.as_exposed(exposure)
