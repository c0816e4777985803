"""The vllm engine: base and adapters answered by vLLM's OpenAI server, over HTTP.

Prompts are rendered and tokenized here, with the adapter's own template, and asked as tokens of /v1/completions. Every
digest is a LoRA of its own name there, loaded and unloaded while the server runs. The liveness proof compares changes
of log-probabilities at the fingerprint's tokens, as far as the server tells them, with the tolerance of its precision
(`registry.fingerprint.ROUNDING`): a server that answers as the base is found out, as is another adapter's file.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ftray.errors import InputError
from ftray.model.base import load_config, load_tokenizer
from ftray.registry.fingerprint import Proof, prove_logprobs
from ftray.serve.asking import (
    AdapterSource,
    Ask,
    DeadlinePassed,
    Engine,
    EngineFull,
    EngineLost,
    EngineState,
    FinishReason,
    Loaded,
    Piece,
    TokenLogprob,
    UnknownAdapter,
)
from ftray.serve.engine.detokenise import Vocabulary
from ftray.serve.engine.prompts import Format, Prompts, Reading
from ftray.serve.engine.vllm_client import VllmClient, token_of
from ftray.serve.engine.vllm_server import DTYPE, Server, end_server, find_server, wait_until_up

LORA_PREFIX = "ftray-"


@dataclass(slots=True, kw_only=True, eq=False)
class _Resident:
    """The base or an adapter."""

    model: str
    format: Format
    users: int = 0
    is_leaving: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class _Running:
    """An answer under way."""

    is_shadow: bool
    shed: asyncio.Event
    prompt_tokens: int = 0


class VllmEngine(Engine):
    """A server of vLLM's, as an engine."""

    def __init__(
        self, model: str, *, slots: int = 16, queue: int = 64, url: str | None = None, dtype: str = DTYPE
    ) -> None:
        """Make an engine for a base. `url`: a server that runs; `dtype`: what it computes in."""
        self._model = model
        self._slots = slots
        self._queue = queue
        self._url = url
        self._dtype = dtype
        self._server: Server | None = None
        self._residents: dict[str, _Resident] = {}
        self._running: dict[_Running, None] = {}
        self._changing = asyncio.Lock()
        self._freeing: set[asyncio.Task[None]] = set()
        self._positions: int | None = None
        self._counts = {"steps": 0, "prompt_tokens": 0, "completion_tokens": 0}

    async def start(self) -> None:
        """Find or start the server; return when it answers. Raises InputError `missing_extra`, or EngineLost."""
        config = await asyncio.to_thread(load_config, self._model)
        self._server = await asyncio.to_thread(partial(find_server, self._model, slots=self._slots, url=self._url))
        self._http = self._server.client()
        self._client = VllmClient(self._http)
        await wait_until_up(self._server, self._http)
        served = await self._client.base_card()
        has = getattr(config.get_text_config(), "max_position_embeddings", None)
        self._positions = served.get("max_model_len") or has
        self._vocabulary = Vocabulary(await asyncio.to_thread(load_tokenizer, self._model))
        self._size = int(config.get_text_config().vocab_size)
        self._prompts = Prompts(
            await asyncio.to_thread(load_tokenizer, self._model),
            vocabulary=self._size,
            ends=await asyncio.to_thread(_generation_config, self._model),
            positions=self._positions,
        )
        self._base = _Resident(model=served["id"], format=self._prompts.format)

    async def stop(self) -> None:
        """End whatever runs, and the server where it is this engine's child."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self._residents.clear()
        for running in list(self._running):
            running.shed.set()
        await self._http.aclose()
        await asyncio.to_thread(end_server, server)

    def positions(self) -> int | None:
        """Return the longest prompt and answer together, in tokens."""
        return self._positions

    def state(self) -> EngineState:
        """Return what this engine has asked for; `steps` are chunks of answers."""
        live = len(self._running)
        return EngineState(
            digests=tuple(self._residents),
            running=min(live, self._slots),
            waiting=max(0, live - self._slots),
            slots=self._slots,
            **self._counts,
        )

    def is_alive(self) -> bool:
        """Return whether the server that this engine has started still runs; another one's is not its own."""
        server = self._server
        return server is None or server.process is None or server.process.poll() is None

    # Answers

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Yield an answer as it grows; see `Engine`. The server hears of it when nobody waits any more."""
        if self._server is None:
            raise EngineLost("the engine is not running")
        resident = self._base if ask.digest is None else self._residents.get(ask.digest)
        if resident is None:
            raise UnknownAdapter(ask.digest)
        reading = self._prompts.read(ask, resident.format)
        if ask.deadline is not None and ask.deadline <= time.time():
            raise DeadlinePassed
        self._require_room(is_shadow=ask.is_shadow)
        running = _Running(is_shadow=ask.is_shadow, shed=asyncio.Event(), prompt_tokens=len(reading.tokens))
        self._running[running] = None
        resident.users += 1
        try:
            chunks = self._client.chunks(self._body(ask, resident, reading))
            async for piece in self._timed(self._pieces(chunks, ask, resident, running), ask.deadline, running):
                yield piece
        finally:
            del self._running[running]
            resident.users -= 1
            if resident.is_leaving and not resident.users:
                self._free_soon(resident)

    def _require_room(self, *, is_shadow: bool) -> None:
        if len(self._running) < self._slots + self._queue:
            return
        shadow = next((one for one in reversed(self._running) if one.is_shadow and not one.shed.is_set()), None)
        if is_shadow or shadow is None:
            raise EngineFull(1.0)
        shadow.shed.set()

    def _body(self, ask: Ask, resident: _Resident, reading: Reading) -> dict[str, Any]:
        sampling = ask.sampling
        body: dict[str, Any] = {
            "model": resident.model,
            "prompt": list(reading.tokens),
            "max_tokens": reading.limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop": list(sampling.stop),
            "stop_token_ids": sorted(resident.format.stops),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        if sampling.seed is not None:
            body["seed"] = _seed(sampling.seed, ask.index)
        if sampling.logprobs is not None:
            body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
        return body

    async def _timed(
        self, pieces: AsyncIterator[Piece], deadline: float | None, running: _Running
    ) -> AsyncIterator[Piece]:
        """Yield pieces until the deadline, or until the answer is shed."""
        shed = asyncio.create_task(running.shed.wait())
        following: asyncio.Task[Piece] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(pieces))
                rest = None if deadline is None else max(0.0, deadline - time.time())
                await asyncio.wait({following, shed}, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    try:
                        piece = following.result()
                    except StopAsyncIteration:
                        return
                    yield piece
                elif shed.done():
                    raise EngineFull(1.0) if self._server is not None else EngineLost("the engine was stopped")
                else:
                    raise DeadlinePassed
        finally:
            shed.cancel()
            if following is not None and not following.done():
                following.cancel()
                await asyncio.wait({following})
            await pieces.aclose()  # type: ignore[attr-defined]

    async def _pieces(
        self, chunks: AsyncIterator[dict[str, Any]], ask: Ask, resident: _Resident, running: _Running
    ) -> AsyncIterator[Piece]:
        """Turn the server's chunks into pieces; the last one waits for the counts."""
        reason: FinishReason | None = None
        last, completion = Piece(), 0
        kept: list[Piece] = []
        async for chunk in chunks:
            self._counts["steps"] += 1
            for choice in chunk.get("choices", []):
                piece = self._piece(choice, resident.format.stops)
                completion += len(piece.token_ids)
                reason = _reason(choice.get("finish_reason")) or reason
                if reason is None and ask.is_streamed:
                    if piece.text or piece.token_ids:
                        yield piece
                else:
                    kept.append(piece)
        if reason is None:
            raise EngineLost("vLLM's server broke the answer off")
        self._counts["prompt_tokens"] += running.prompt_tokens
        self._counts["completion_tokens"] += completion
        last = Piece(
            text="".join(piece.text for piece in kept),
            token_ids=tuple(token for piece in kept for token in piece.token_ids),
            logprobs=tuple(one for piece in kept for one in piece.logprobs),
            finish_reason=reason,
            prompt_tokens=running.prompt_tokens,
            completion_tokens=completion,
        )
        yield last

    def _piece(self, choice: Mapping[str, Any], stops: frozenset[int]) -> Piece:
        tokens = list(choice.get("token_ids") or [])
        number = len(tokens)
        # The token that ended the answer is no part of it.
        if choice.get("finish_reason") == "stop" and tokens and tokens[-1] in stops:
            number -= 1
        return Piece(
            text=choice.get("text") or "",
            token_ids=tuple(tokens[:number]),
            logprobs=self._logprobs(choice.get("logprobs"))[:number],
        )

    def _logprobs(self, told: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
        if told is None:
            return ()
        say = self._vocabulary.text_of
        ones = []
        tops = told.get("top_logprobs") or [None] * len(told["tokens"])
        for name, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True):
            token = token_of(name)
            others = [(token_of(other), value) for other, value in (top or {}).items()]
            ordered = sorted(others, key=lambda pair: -pair[1])
            shown = tuple((other, say(other), value) for other, value in ordered)
            ones.append(TokenLogprob(token_id=token, text=say(token), logprob=logprob, top=shown))
        return tuple(ones)

    # Adapters

    async def load(self, source: AdapterSource) -> Loaded:
        """Load an adapter, and prove that the server answers with it; see `Engine`."""
        if source.kind == "model":
            raise InputError(
                f"{source.name} is a model of its own, and vLLM's server has one base",
                kind="unsupported_adapter",
                given=source.kind,
                allowed="adapters of the base",
                hint="Serve it by itself: ftray serve --model FOLDER with engine vllm; or with `engine: bank`.",
            )
        started = time.perf_counter()
        async with self._changing:
            resident = self._residents.get(source.digest)
            if resident is None:
                name = f"{LORA_PREFIX}{source.digest}"
                await self._client.load_lora(name, source)
                resident = _Resident(model=name, format=self._prompts.format_of(source.record))
            try:
                proof = await self._prove(resident, source.record)
            except InputError:
                self._residents.pop(source.digest, None)
                self._let_go(resident)
                raise
            self._residents[source.digest] = resident
        return Loaded(
            digest=source.digest,
            seconds=time.perf_counter() - started,
            max_abs_difference_from_base=proof.max_abs_difference_from_base,
            max_abs_difference_from_fingerprint=proof.max_abs_difference_from_fingerprint,
        )

    async def unload(self, digest: str) -> None:
        """Forget an adapter; its running answers end first. Nobody waits for them."""
        resident = self._residents.pop(digest, None)
        if resident is not None:
            self._let_go(resident)

    async def _prove(self, resident: _Resident, record: Mapping[str, Any]) -> Proof:
        fingerprint: Mapping[str, Any] = record.get("fingerprint") or {"probe_tokens": []}
        probe = list(fingerprint["probe_tokens"])
        if not probe or not all(0 <= token < self._size for token in probe):
            raise InputError(
                "the adapter cannot be shown to be live: its record has no probe that this base can read",
                kind="not_live",
                given=probe,
                allowed=f"a probe of tokens from 0 to {self._size - 1}",
                hint="Register it again from its run, or import it, on this base.",
            )
        wanted = [int(token) for token, _ in fingerprint["logits_top"]]
        base, tuned = [
            await self._client.next_logprobs(model, probe, wanted) for model in (self._base.model, resident.model)
        ]
        return prove_logprobs(fingerprint, tuned, base, dtype=self._dtype)

    def _let_go(self, resident: _Resident) -> None:
        resident.is_leaving = True
        if not resident.users:
            self._free_soon(resident)

    def _free_soon(self, resident: _Resident) -> None:
        task = asyncio.create_task(self._free(resident))
        self._freeing.add(task)
        task.add_done_callback(self._freeing.discard)

    async def _free(self, resident: _Resident) -> None:
        async with self._changing:
            is_back = any(other.model == resident.model for other in self._residents.values())
            if self._server is not None and not is_back:
                await self._client.unload_lora(resident.model)


def _generation_config(model: str) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:
        # A model without the file.
        return None


def _seed(seed: int, index: int) -> int:
    """Return the seed of one of a request's answers; vLLM's have 64 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:7], "big")


def _reason(told: str | None) -> FinishReason | None:
    if told is None:
        return None
    if told in ("stop", "length"):
        return "stop" if told == "stop" else "length"
    raise EngineLost(f"vLLM's server ended the answer: {told}")
