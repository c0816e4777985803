"""POST /v1/chat/completions and /v1/completions: from a request to asks, and from pieces to OpenAI's answers."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ftray.serve.api.access import caller_of
from ftray.serve.api.answers import Answers, Question, Running
from ftray.serve.api.catalogue import experiment_name
from ftray.serve.api.limits import Limits, require_within
from ftray.serve.api.messages import plain_text, template_messages, template_tools
from ftray.serve.api.openai_answers import ChatShape, Choice, Shape, TextShape, usage
from ftray.serve.api.openai_schema import ChatRequest, CompletionRequest
from ftray.serve.api.problems import Problem, problem_of, refused, spelled
from ftray.serve.api.tracker import Tracker
from ftray.serve.asking import Ask, Sampling

log = logging.getLogger(__name__)

UNIT_HEADER = "x-ftray-unit"
LONGEST_UNIT = 256
CLIENT_GONE = 499
Result = TypeVar("Result")


class Completions:
    """The two routes that answer."""

    def __init__(self, answers: Answers, tracker: Tracker, limits: Limits, *, positions: int | None) -> None:
        self._answers, self._tracker, self._limits = answers, tracker, limits
        self._longest = None if positions is not None and positions <= limits.max_tokens else limits.max_tokens

    async def chat(self, request: Request, wanted: ChatRequest) -> Response:
        """Answer a chat."""
        require_within(self._limits, wanted)
        messages = template_messages(wanted.messages)
        tools = template_tools(wanted)
        shape = ChatShape(has_logprobs=bool(wanted.logprobs))
        sampling = self._sampling(wanted, wanted.max_completion_tokens or wanted.max_tokens or self._longest)
        ask = Ask(request_id=_new_id(shape), messages=messages, tools=tools, sampling=sampling)
        return await self._answer(request, wanted, shape, [ask], text=plain_text(wanted.messages))

    async def complete(self, request: Request, wanted: CompletionRequest) -> Response:
        """Go on with one or several texts."""
        require_within(self._limits, wanted)
        shape = TextShape(has_logprobs=wanted.logprobs is not None)
        name = _new_id(shape)
        sampling = self._sampling(wanted, wanted.max_tokens or self._longest)
        prompts = wanted.prompts
        if len(prompts) > 1 and experiment_name(wanted.model):
            raise refused("An experiment takes one prompt at a time.", param="prompt")
        asks = [
            Ask(request_id=f"{name}-{number}" if number else name, prompt=prompt, sampling=sampling)
            for number, prompt in enumerate(prompts)
        ]
        return await self._answer(request, wanted, shape, asks, text=str(wanted.prompt))

    def _sampling(self, wanted: ChatRequest | CompletionRequest, max_tokens: int | None) -> Sampling:
        if isinstance(wanted, ChatRequest):
            logprobs = (wanted.top_logprobs or 0) if wanted.logprobs else None
        else:
            logprobs = wanted.logprobs
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if wanted.temperature is None else wanted.temperature,
            top_p=1.0 if wanted.top_p is None else wanted.top_p,
            top_k=wanted.top_k or 0,
            seed=wanted.seed,
            stop=wanted.stops,
            logprobs=logprobs,
        )

    async def _answer(
        self,
        request: Request,
        wanted: ChatRequest | CompletionRequest,
        shape: Shape,
        prompts: list[Ask],
        *,
        text: str,
    ) -> Response:
        deadline = time.time() + self._limits.deadline_seconds
        question = Question(
            response_id=prompts[0].request_id,
            model=wanted.model,
            unit=_unit(request, wanted) if experiment_name(wanted.model) else None,
            asks=tuple(
                replace(ask, index=index, deadline=deadline, is_streamed=bool(wanted.stream))
                for ask in prompts
                for index in range(wanted.n or 1)
            ),
            text=text,
            deadline=deadline,
        )
        running = await unless_gone(request, self._answers.open(question))
        headers = {"x-request-id": question.response_id}
        if running.target.experiment is not None:
            headers["x-ftray-experiment"] = running.target.experiment.spec.name
            if caller_of(request).is_admin and running.target.arm is not None:
                headers["x-ftray-arm"] = running.target.arm
        self._tracker.begin(running)
        spoken = _Spoken(running, shape, wanted)
        if wanted.stream:
            return EventStream(running, self._events(running, spoken), headers=headers)
        try:
            body = await unless_gone(request, spoken.whole())
        finally:
            await running.aclose()
        self._tracker.end(running)
        return Response(spelled(body), headers=headers, media_type="application/json")

    async def _events(self, running: Running, spoken: _Spoken) -> AsyncGenerator[bytes]:
        try:
            async with aclosing(spoken.chunks()) as chunks:
                async for chunk in chunks:
                    yield _event(chunk)
        except Exception as error:
            # The status has been sent: what is wrong can only be said in the stream.
            problem = problem_of(error)
            if problem is None:
                log.exception("a bug while an answer was streamed")
                problem = Problem(500, "The server has a bug here.", code="internal", kind="server_error")
            yield _event(problem.body())
            return
        self._tracker.end(running)
        yield b"data: [DONE]\n\n"


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + spelled(document) + b"\n\n"


def _new_id(shape: Shape) -> str:
    return shape.prefix + secrets.token_hex(16)


def _unit(request: Request, wanted: ChatRequest | CompletionRequest) -> str | None:
    """Return whose request it is: the header, else `user`, else `safety_identifier`, else the key."""
    header = _utf8(request.headers.get(UNIT_HEADER))
    if header is not None:
        if not 0 < len(header) <= LONGEST_UNIT or not header.isprintable():
            raise refused(f"X-Ftray-Unit is 1 to {LONGEST_UNIT} printable characters.", param="X-Ftray-Unit")
        return header
    if wanted.user or wanted.safety_identifier:
        return wanted.user or wanted.safety_identifier
    caller = caller_of(request)
    if caller.name is not None:
        return f"key:{caller.name}"
    # Without a keys file, whatever key a client sends still tells it from others.
    token = request.headers.get("authorization", "").partition(" ")[2].strip()
    return f"key:{hashlib.sha256(token.encode('utf-8', 'replace')).hexdigest()[:16]}" if token else None


def _utf8(header: str | None) -> str | None:
    """Return a header as its sender meant it: HTTP's Latin-1, unless its bytes are UTF-8."""
    try:
        return header and header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return header


class _Spoken:
    """One answer in OpenAI's words."""

    def __init__(self, running: Running, shape: Shape, wanted: ChatRequest | CompletionRequest) -> None:
        self._running, self._shape, self._wanted = running, shape, wanted
        self._choices = [Choice() for _ in running.question.asks]
        self._frame: dict[str, Any] = {
            "id": running.question.response_id,
            "created": int(time.time()),
            "model": wanted.model,
            "system_fingerprint": running.target.fingerprint,
        }
        if wanted.metadata is not None:
            self._frame["metadata"] = wanted.metadata

    async def whole(self) -> dict[str, Any]:
        """Return the answer when all of it is there."""
        async with aclosing(self._running.pieces()) as pieces:
            async for number, piece in pieces:
                self._choices[number].take(piece)
        choices = [self._shape.choice(number, choice) for number, choice in enumerate(self._choices)]
        return {**self._frame, "object": self._shape.whole, "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncGenerator[dict[str, Any]]:
        """Yield the answer as it grows."""
        options = self._wanted.stream_options
        shows_usage = options is not None and options.include_usage
        frame = {**self._frame, "object": self._shape.chunk}
        if shows_usage:
            frame["usage"] = None
        async with aclosing(self._running.pieces()) as pieces:
            async for number, piece in pieces:
                choice = self._choices[number]
                if choice.is_begun and not piece.text and not piece.logprobs and piece.finish_reason is None:
                    # Text that is held back: it may still become a stop text, or is half a character.
                    continue
                yield {**frame, "choices": [self._shape.piece(number, choice, piece)]}
        if shows_usage:
            yield {**frame, "choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        done = self._running.finished
        assert done is not None, "all pieces have been taken"
        return usage(done.prompt_tokens, done.completion_tokens)


class EventStream(StreamingResponse):
    """Server-sent events that end when the client goes, also between two of them."""

    media_type = "text/event-stream"

    def __init__(self, running: Running, events: AsyncGenerator[bytes], *, headers: dict[str, str]) -> None:
        super().__init__(events, headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        self._running, self._events = running, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        sending = asyncio.create_task(self.stream_response(send))
        leaving = asyncio.create_task(self.listen_for_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except OSError:
            # The connection broke while an event was sent.
            pass
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._events.aclose()
            await self._running.aclose()


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` comes to; cancel it when the client goes. Raises Problem, which nobody reads then."""
    job = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({job, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
        raise Problem(CLIENT_GONE, "The client has gone.", code="client_gone")
    finally:
        job.cancel()
        leaving.cancel()
        await asyncio.gather(job, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
