"""The API over real parts: a registry in a folder, a store in a file, and an engine of words instead of a model."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from registry_world import record_of, write_files

from ftray.errors import InputError
from ftray.registry.registry import Registry, open_registry
from ftray.serve.api.application import make_api
from ftray.serve.api.catalogue import fingerprint
from ftray.serve.api.keys import Keyring
from ftray.serve.api.local_catalogue import LocalCatalogue
from ftray.serve.asking import (
    AdapterSource,
    Ask,
    DeadlinePassed,
    Engine,
    EngineFull,
    EngineState,
    Loaded,
    Piece,
    TokenLogprob,
    UnknownAdapter,
)
from ftray.serve.outcomes.async_outcomes import AsyncOutcomes, ThreadedOutcomes
from ftray.serve.outcomes.store import Store, open_outcomes
from ftray.serve.plan import source_of

BASE = "tiny"
BASE_DIGEST = "0" * 64
WORDS = 6
"""Tokens of an answer that nothing limits."""


class WordEngine(Engine):
    """Answers with the name of who answers and words that are a function of the ask: a real engine without a model."""

    def __init__(self, *, slots: int = 64, queue: int = 64, step_seconds: float = 0.0) -> None:
        self.slots, self.queue, self.step_seconds = slots, queue, step_seconds
        self.loaded: dict[str, AdapterSource] = {}
        self.refused: set[str] = set()
        self.asks: list[Ask] = []
        self.running = 0
        self.waiting = 0
        self.cancelled = 0
        self._free = asyncio.Semaphore(slots)

    async def start(self) -> None:
        return

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        if ask.digest is not None and ask.digest not in self.loaded:
            raise UnknownAdapter(ask.digest)
        if ask.prompt == "":
            raise InputError("the prompt is empty", kind="bad_value", path="prompt")
        if self.running + self.waiting >= self.slots + self.queue:
            raise EngineFull(2.5)
        self.asks.append(ask)
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        is_whole = False
        try:
            async for piece in self._pieces(ask):
                is_whole = piece.finish_reason is not None
                yield piece
        finally:
            self.running -= 1
            self.cancelled += not is_whole
            self._free.release()

    async def _pieces(self, ask: Ask) -> AsyncIterator[Piece]:
        words = words_of(ask)
        for number, word in enumerate(words):
            if self.step_seconds:
                await asyncio.sleep(self.step_seconds)
            else:
                await asyncio.sleep(0)
            if ask.deadline is not None and time.time() > ask.deadline:
                raise DeadlinePassed
            is_last = number == len(words) - 1
            wanted = ask.sampling.logprobs
            token = TokenLogprob(
                token_id=number, text=word, logprob=-0.5, top=tuple((i, f"t{i}", -1.0 - i) for i in range(wanted or 0))
            )
            yield Piece(
                text=word,
                token_ids=(number,),
                logprobs=() if wanted is None else (token,),
                finish_reason=None if not is_last else "length" if ask.sampling.max_tokens == len(words) else "stop",
                prompt_tokens=3 if is_last else None,
                completion_tokens=len(words) if is_last else None,
            )

    async def load(self, source: AdapterSource) -> Loaded:
        if source.digest in self.refused:
            raise InputError("it answers as the base", kind="not_live", given=source.name)
        self.loaded[source.digest] = source
        return Loaded(
            digest=source.digest, seconds=0.0, max_abs_difference_from_base=1.0, max_abs_difference_from_fingerprint=0.0
        )

    async def unload(self, digest: str) -> None:
        self.loaded.pop(digest, None)

    def state(self) -> EngineState:
        return EngineState(
            digests=tuple(self.loaded), running=self.running, waiting=self.waiting, slots=self.slots, steps=7,
            prompt_tokens=0, completion_tokens=0,
        )  # fmt: skip

    def positions(self) -> int | None:
        return None

    async def stop(self) -> None:
        return


def words_of(ask: Ask) -> list[str]:
    """Return an answer's tokens: who answers, then words that depend on prompt, seed and index."""
    seed = ask.sampling.seed if ask.sampling.temperature else 0
    spelled = repr((ask.prompt, ask.messages, ask.tools, seed, ask.index)).encode()
    marks = hashlib.sha256(spelled).hexdigest()
    count = ask.sampling.max_tokens if ask.sampling.max_tokens is not None and ask.sampling.max_tokens < 1000 else WORDS
    return [fingerprint(ask.digest), *(f" {marks[number % 60 : number % 60 + 3]}" for number in range(count - 1))]


@dataclass(kw_only=True)
class World:
    """One endpoint's parts; several applications may share them."""

    folder: Path
    registry: Registry
    store: Store
    engine: WordEngine
    outcomes: AsyncOutcomes
    catalogue: LocalCatalogue
    digests: dict[str, str] = field(default_factory=dict)
    """Of registered adapters, by name."""

    def put(self, name: str, text: str | None = None, **record: Any) -> str:
        """Register an adapter; return its digest."""
        folder = write_files(self.folder / f"made-{len(list(self.folder.iterdir()))}", text or name)
        record = {"base": {"name": BASE, "digest": BASE_DIGEST}, **record}
        digest = self.registry.put(folder, record_of(name, **record)).digest
        self.digests[name] = digest
        return digest

    def fresh_catalogue(self) -> LocalCatalogue:
        """Return a catalogue that knows of nothing loaded, as after a start."""
        return LocalCatalogue(self.registry, self.engine, base=BASE, base_digest=BASE_DIGEST, source_of=source_of)

    async def serve(self, *names: str) -> None:
        """Register adapters where they are not, and load them."""
        for name in names:
            if name not in self.digests:
                self.put(name)
            await self.catalogue.admit(f"{BASE}:{name}")

    def app(self, **parts: Any) -> FastAPI:
        """Return an application over these parts, or over those that are given instead."""
        own = {
            "engine": self.engine, "outcomes": self.outcomes, "catalogue": self.catalogue, "keys": Keyring(None),
        }  # fmt: skip
        return make_api(**{**own, **parts})

    @asynccontextmanager
    async def client(self, app: FastAPI | None = None, **parts: Any) -> AsyncIterator[httpx.AsyncClient]:
        """Yield a client of a started application."""
        async with client_of(app or self.app(**parts)) as client:
            yield client


@asynccontextmanager
async def client_of(app: FastAPI, key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Start an application; yield a client of it."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers) as client,
    ):
        yield client


@asynccontextmanager
async def world(folder: Path, **engine: Any) -> AsyncIterator[World]:
    """Yield an endpoint's parts; the store is closed at the end."""
    registry = open_registry(folder)
    store = open_outcomes("sqlite", folder)
    words = WordEngine(**engine)
    catalogue = LocalCatalogue(registry, words, base=BASE, base_digest=BASE_DIGEST, source_of=source_of)
    outcomes = ThreadedOutcomes(store)
    try:
        yield World(folder=folder, registry=registry, store=store, engine=words, outcomes=outcomes, catalogue=catalogue)
    finally:
        await outcomes.close()


def tell(folder: Path, story: Callable[[World], Awaitable[None]], **engine: Any) -> None:
    """Run a story in a world of its own."""

    async def run() -> None:
        async with world(folder, **engine) as here:
            await story(here)

    asyncio.run(run())


def chat(model: str = BASE, text: str = "Which way?", **more: Any) -> dict[str, Any]:
    """Return a request for a chat."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def experiment(name: str = "greeting", *, arms: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """Return a request for an experiment of two arms."""
    arms = arms or {"base": BASE, "tuned": f"{BASE}:tuned"}
    return {
        "name": name, "arms": [{"name": arm, "model": model} for arm, model in arms.items()], "control": "base", **more,
    }  # fmt: skip


def events(text: str) -> list[str]:
    """Return the data of server-sent events."""
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


async def until(true: Callable[[], bool], *, seconds: float = 5.0) -> float:
    """Wait for something; return how long it took."""
    started = time.perf_counter()
    while not true():
        assert time.perf_counter() - started < seconds, "it never came true"
        await asyncio.sleep(0.005)
    return time.perf_counter() - started
