"""The endpoint's parts as their neighbours reach them: through handles of Ray Serve, which cross processes.

A replica that dies in the middle of an answer is replaced by another one that is asked the same again: an answer
depends on its prompt, adapter, sampling and seed only, so that it goes on where it was broken off.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from ftray.serve.asking import AdapterSource, Ask, Engine, EngineFull, EngineLost, EngineState, Loaded, Piece
from ftray.serve.experiment.spec import Outcomes
from ftray.serve.outcomes.async_outcomes import StoreLost

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

ATTEMPTS = 4
"""How many replicas are asked for one answer."""
RETRY_SECONDS = 0.5
"""Before another replica is asked: Serve needs a moment to see that one is gone."""
RATE_OVER = 32
"""Answers whose ends say how fast they come."""
STORE_SECONDS = 10.0
"""How long a call waits for a store that is being started again."""
STORE_METHODS = frozenset(name for name in vars(Outcomes) if not name.startswith("_"))
FRESH_SECONDS = 15.0
"""How old the engines' counts may be while they are taken to be there."""
LOAD_SECONDS = 300.0
"""Longest time in which every replica must have loaded an adapter."""


def unwrapped(error: Exception) -> Exception:
    """Return what a replica has raised, or EngineLost where there is none that could."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        return error.cause
    return EngineLost(f"no replica answers: {type(error).__name__}")


class Progress:
    """What of an answer has been passed on, so that another replica's answer goes on after it."""

    def __init__(self) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self._again_text = ""
        self._again_tokens: list[int] = []
        self.diverged = False

    def start_again(self) -> None:
        """Begin the same answer anew."""
        self._again_text, self._again_tokens = "", []

    def rest(self, piece: Piece) -> Piece | None:
        """Return what is new of a piece; None where nothing is."""
        text = self._again_text + piece.text
        tokens = [*self._again_tokens, *piece.token_ids]
        known_text, known_tokens = min(len(text), len(self.text)), min(len(tokens), len(self.token_ids))
        self.diverged = (
            self.diverged
            or text[:known_text] != self.text[:known_text]
            or tokens[:known_tokens] != self.token_ids[:known_tokens]
        )
        new_text = text[max(len(self.text), len(self._again_text)) :]
        skipped = max(0, len(self.token_ids) - len(self._again_tokens))
        new_tokens = piece.token_ids[skipped:]
        self._again_text, self._again_tokens = text, tokens
        self.text += new_text
        self.token_ids += new_tokens
        if not new_text and not new_tokens and piece.finish_reason is None:
            return None
        return Piece(
            text=new_text,
            token_ids=tuple(new_tokens),
            logprobs=piece.logprobs[skipped:] if piece.logprobs else (),
            finish_reason=piece.finish_reason,
            prompt_tokens=piece.prompt_tokens,
            completion_tokens=piece.completion_tokens,
        )


class HandleEngine(Engine):
    """All replicas of an engine as one."""

    def __init__(self, handle: DeploymentHandle[Any], *, positions: int | None, most: int) -> None:
        """`most`: answers that all replicas together can run and let wait; more are refused here, at once."""
        self._handle = handle
        self._positions = positions
        self._most = most
        self._under_way = 0
        self._ends: deque[float] = deque(maxlen=RATE_OVER)
        self._refreshed = -math.inf
        self._state = EngineState(
            digests=(), running=0, waiting=0, slots=0, steps=0, prompt_tokens=0, completion_tokens=0
        )

    async def start(self) -> None:
        """Ask the replicas how they are: they answer when they are up."""
        await self.refresh()

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Yield an answer; another replica goes on where one dies.

        Raises EngineLost when several have, EngineFull where there are too many: a busy engine is not even asked.
        """
        # Shadows are shed first: they leave room for those whom somebody waits for.
        if self._under_way >= (self._most // 2 if ask.is_shadow else self._most):
            raise EngineFull(self._retry_after_seconds())
        self._under_way += 1
        try:
            async for piece in self._generate(ask):
                yield piece
        finally:
            self._under_way -= 1
            self._ends.append(time.monotonic())

    def _retry_after_seconds(self) -> float:
        """Guess from the newest answers when one of those that are under way will have ended."""
        if len(self._ends) < 2:
            return 1.0
        return max(0.1, (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1))

    async def _generate(self, ask: Ask) -> AsyncIterator[Piece]:
        progress = Progress()
        if ask.sampling.seed is None:
            # Drawn here, so that whoever takes over draws the same answer.
            ask = replace(ask, sampling=replace(ask.sampling, seed=secrets.randbits(63)))
        for attempt in range(ATTEMPTS):
            # Typed as either of two: with stream=True it is the generator.
            stream: Any = self._handle.options(method_name="generate", stream=True).remote(ask)
            ended = False
            try:
                async for piece in stream:
                    new = progress.rest(piece)
                    if progress.diverged:
                        raise EngineLost("a replica died, and the one that took over answers otherwise")
                    if new is not None:
                        yield new
                ended = True
                return
            except RayActorError as error:
                ended = True
                if attempt + 1 == ATTEMPTS:
                    raise EngineLost(f"{ATTEMPTS} replicas died while they answered") from error
                progress.start_again()
                await asyncio.sleep(RETRY_SECONDS)
            except (RayError, RayServeException) as error:
                ended = True
                raise unwrapped(error) from None
            finally:
                if not ended:
                    stream.cancel()

    async def load(self, source: AdapterSource) -> Loaded:
        """Let every replica load an adapter; return the slowest one's proof. Raises what one of them raises."""
        proofs: list[Loaded] = await self._all("load", source)
        return max(proofs, key=lambda proof: proof.seconds)

    async def unload(self, digest: str) -> None:
        """Let every replica forget an adapter."""
        await self._all("unload", digest)

    async def refresh(self) -> EngineState:
        """Ask all replicas for their counts, and keep the sum for `state`."""
        states: list[EngineState] = await self._all("state")
        self._state = total_state(states)
        self._refreshed = time.monotonic() if states else -math.inf
        return self._state

    def why_not_ready(self) -> str | None:
        """Return why no question would be answered now; None where the engines have said lately how they are."""
        if time.monotonic() - self._refreshed > FRESH_SECONDS:
            return "The engines do not answer."
        return None

    def is_alive(self) -> bool:
        """Return whether the engines have said lately how they are."""
        return self.why_not_ready() is None

    def state(self) -> EngineState:
        """Return the sum of the replicas' counts as they last were."""
        return self._state

    def positions(self) -> int | None:
        """Return the longest prompt and answer together, in tokens."""
        return self._positions

    async def stop(self) -> None:
        """Do nothing: Serve stops its replicas."""

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        response = self._handle.broadcast(method, *arguments)
        try:
            answers: Sequence[Any] = await response.results_async(timeout_s=LOAD_SECONDS)
        except (RayError, RayServeException, TimeoutError) as error:
            raise unwrapped(error) from None
        return list(answers)


def total_state(states: Sequence[EngineState]) -> EngineState:
    """Return the sum of several engines; its digests are those that all of them have."""
    everywhere = set.intersection(*(set(state.digests) for state in states)) if states else set()
    counts = ("running", "waiting", "slots", "steps", "prompt_tokens", "completion_tokens")
    return EngineState(
        digests=tuple(sorted(everywhere)),
        **{name: sum(getattr(state, name) for state in states) for name in counts},
    )


class HandleOutcomes:
    """The one writer of outcomes. Every call may be sent again: the store knows what it has by its keys."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    def __getattr__(self, method: str) -> Any:
        """Return a method of `Outcomes`, to be awaited."""
        if method not in STORE_METHODS:
            raise AttributeError(method)

        async def call(*arguments: Any, **named: Any) -> Any:
            try:
                async with asyncio.timeout(STORE_SECONDS):
                    while True:
                        try:
                            return await self._handle.options(method_name="call").remote(method, arguments, named)
                        except RayActorError:
                            await asyncio.sleep(RETRY_SECONDS)
            except TimeoutError as error:
                raise StoreLost("the store of outcomes does not come back") from error
            except RayTaskError as error:
                raise unwrapped(error) from None
            except (RayError, RayServeException) as error:
                raise StoreLost(f"the store of outcomes does not answer: {type(error).__name__}") from error

        return call
