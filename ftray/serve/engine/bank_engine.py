"""The bank engine: base and adapters answer in shared passes, on CPU or GPU.

One thread steps the model (`loop`), asyncio takes what is asked and hands on what has grown, a second thread reads
adapters. An adapter is there when its liveness is proven, and gone when its last answer has ended.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ftray.registry.fingerprint import Proof, prove
from ftray.serve.asking import (
    AdapterSource,
    Ask,
    DeadlinePassed,
    Engine,
    EngineFull,
    EngineLost,
    EngineState,
    Loaded,
    Piece,
    UnknownAdapter,
)
from ftray.serve.engine.loop import Delivery, StepLoop
from ftray.serve.engine.prompts import Format
from ftray.serve.engine.rows import Row, Speech, make_probe
from ftray.serve.engine.sampler import Draw
from ftray.serve.engine.served import Served, load_served, probe_of, put_adapter

Result = TypeVar("Result")
RATE_OVER = 32
"""Answers whose ends tell the present rate."""
LONGEST_RETRY_SECONDS = 60.0


@dataclass(slots=True, kw_only=True, eq=False)
class Resident:
    """The base, an adapter or a model that can be asked."""

    served: Served
    slot: int
    format: Format
    users: int = 0
    """Answers that run or wait."""
    is_leaving: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class _Ticket:
    """An answer under way."""

    row: Row
    resident: Resident
    grown: asyncio.Queue[Piece | Exception]


class BankEngine(Engine):
    """Many adapters on one base."""

    def __init__(
        self,
        model: str,
        *,
        slots: int = 16,
        queue: int = 64,
        prefill_tokens: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        """Make an engine for a base that is not loaded yet.

        `slots`: answers of one step; `queue`: answers that may wait. `prefill_tokens`: tokens of prompts that are read
        in one step; None measures how many take as long as the step itself. `cache_bytes`: of keys and values; None
        takes a share of the memory that is free.
        """
        self._model = model
        self._slots = slots
        self._queue = queue
        self._prefill_tokens = prefill_tokens
        self._cache_bytes = cache_bytes
        self._served: Served | None = None
        self._base: Resident | None = None
        self._residents: dict[str, Resident] = {}
        self._tickets: dict[Row, _Ticket] = {}
        self._ends: deque[float] = deque(maxlen=RATE_OVER)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="ftray-loader")
        self._changing = asyncio.Lock()
        self._freeing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the base; return when it answers."""
        self._asyncio = asyncio.get_running_loop()
        self._loop = StepLoop(self._deliver_soon)
        served = await self._in_loader(lambda: load_served(self._model, **self._limits()))
        self._served = served
        self._base = Resident(served=served, slot=0, format=served.prompts.format)
        self._loop.batchers.append(served.batcher)
        self._loop.start()

    async def stop(self) -> None:
        """End whatever runs: its answers raise EngineLost."""
        if self._base is None:
            return
        self._base = None
        self._residents.clear()
        for ticket in list(self._tickets.values()):
            self._end(ticket, EngineLost("the engine was stopped"))
        await asyncio.to_thread(self._loop.stop)
        await asyncio.to_thread(self._loader.shutdown)

    def positions(self) -> int | None:
        """Return the longest prompt and answer together, in tokens: what the model has, and the cache holds."""
        return self._started().positions

    def state(self) -> EngineState:
        """Return the counts of all batchers."""
        batchers = self._loop.batchers if self._base is not None else []
        return EngineState(
            digests=tuple(self._residents),
            running=sum(len(batcher.rows) for batcher in batchers),
            waiting=max(0, len(self._tickets) - sum(len(batcher.rows) for batcher in batchers)),
            slots=sum(batcher.slots for batcher in batchers),
            steps=sum(batcher.passes.passes for batcher in batchers),
            prompt_tokens=sum(batcher.prompt_tokens for batcher in batchers),
            completion_tokens=sum(batcher.completion_tokens for batcher in batchers),
        )

    def is_alive(self) -> bool:
        """Return whether the thread that steps is there, once it has been started."""
        return self._base is None or self._loop.is_alive

    # Answers

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Yield an answer as it grows; see `Engine`."""
        ticket = self._accept(ask)
        try:
            while True:
                grown = await ticket.grown.get()
                if isinstance(grown, Exception):
                    raise grown
                yield grown
                if grown.finish_reason is not None:
                    return
        finally:
            if ticket.row in self._tickets:
                self._withdraw(ticket)

    def _accept(self, ask: Ask) -> _Ticket:
        """Let an answer wait for its turn."""
        resident = self._base if ask.digest is None else self._residents.get(ask.digest)
        if self._base is None:
            raise EngineLost("the engine is not running")
        if resident is None:
            raise UnknownAdapter(ask.digest)
        reading = resident.served.prompts.read(ask, resident.format)
        if ask.deadline is not None and ask.deadline <= time.time():
            raise DeadlinePassed
        self._require_room(is_shadow=ask.is_shadow)
        sampling = ask.sampling
        row = Row(
            prompt=reading.tokens,
            limit=reading.limit,
            stops=resident.format.stops,
            draw=Draw(sampling, seed=secrets.randbits(63) if sampling.seed is None else sampling.seed, index=ask.index),
            speech=Speech(resident.served.vocabulary, sampling.stop),
            slot=resident.slot,
            is_streamed=ask.is_streamed,
            is_shadow=ask.is_shadow,
            deadline=ask.deadline,
        )
        ticket = _Ticket(row=row, resident=resident, grown=asyncio.Queue())
        self._tickets[row] = ticket
        resident.users += 1
        self._loop.post(lambda: resident.served.batcher.submit(row))
        return ticket

    def _require_room(self, *, is_shadow: bool) -> None:
        """Raise EngineFull when the queue is; a shadow makes room for one that somebody waits for."""
        if len(self._tickets) < self._slots + self._queue:
            return
        shadow = next((ticket for ticket in reversed(self._tickets.values()) if ticket.row.is_shadow), None)
        if is_shadow or shadow is None:
            raise EngineFull(self._retry_after())
        shadow.grown.put_nowait(EngineFull(self._retry_after()))
        self._withdraw(shadow)

    def _retry_after(self) -> float:
        """Return when, at the present rate, the next answer ends."""
        if len(self._ends) < 2:
            return 1.0
        return min(LONGEST_RETRY_SECONDS, (time.monotonic() - self._ends[0]) / len(self._ends))

    def _withdraw(self, ticket: _Ticket) -> None:
        """Forget an answer that nobody waits for any more."""
        batcher, row = ticket.resident.served.batcher, ticket.row
        self._loop.post(lambda: batcher.cancel(row))
        self._forget(ticket)

    def _deliver_soon(self, deliveries: Sequence[Delivery]) -> None:
        self._asyncio.call_soon_threadsafe(self._deliver, deliveries)

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        for row, grown in deliveries:
            ticket = self._tickets.get(row)
            if ticket is None:
                continue
            if isinstance(grown, Exception) or grown.finish_reason is not None:
                self._end(ticket, grown)
            else:
                ticket.grown.put_nowait(grown)

    def _end(self, ticket: _Ticket, last: Piece | Exception) -> None:
        ticket.grown.put_nowait(last)
        self._ends.append(time.monotonic())
        self._forget(ticket)

    def _forget(self, ticket: _Ticket) -> None:
        del self._tickets[ticket.row]
        resident = ticket.resident
        resident.users -= 1
        if resident.is_leaving and not resident.users:
            self._free_soon(resident)

    # Adapters

    async def load(self, source: AdapterSource) -> Loaded:
        """Load an adapter or a model beside the running answers, and prove that it is live; see `Engine`."""
        started = time.perf_counter()
        async with self._changing:
            resident = self._residents.get(source.digest)
            if resident is None:
                resident = await self._bring(source)
            try:
                proof = await self._in_loader(lambda: self._prove(resident, source))
            except BaseException:
                # Whatever went wrong: what is not proven is not there, and its slot is free again.
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

    async def _bring(self, source: AdapterSource) -> Resident:
        """Load what is not there; nobody can ask it yet."""
        base = self._started()
        if source.kind == "model":
            limits, folder = self._limits(), str(source.folder)
            served = await self._in_loader(lambda: load_served(folder, takes_adapters=False, **limits))
            resident = Resident(served=served, slot=0, format=served.prompts.format_of(source.record))
            self._loop.post(lambda: self._loop.batchers.append(served.batcher))
            return resident
        slot = await self._in_loader(lambda: put_adapter(base, source.folder, self._loop))
        return Resident(served=base, slot=slot, format=base.prompts.format_of(source.record))

    def _prove(self, resident: Resident, source: AdapterSource) -> Proof:
        """Ask base and adapter the fingerprint's probe as any prompt; raise InputError `not_live`."""
        base, tuned = self._started(), resident.served
        tokens = probe_of(source.record, base)
        asked = [(base, make_probe(tokens, base.vocabulary))]
        asked.append((tuned, make_probe(tokens, tuned.vocabulary, slot=resident.slot)))
        for served, row in asked:
            self._loop.post(partial(served.batcher.submit, row))
        base_logits, logits = (row.probe.result() for _, row in asked if row.probe is not None)
        return prove(source.record["fingerprint"], logits, base_logits, dtype=tuned.dtype)

    def _let_go(self, resident: Resident) -> None:
        resident.is_leaving = True
        if not resident.users:
            self._free_soon(resident)

    def _free_soon(self, resident: Resident) -> None:
        task = asyncio.create_task(self._free(resident))
        self._freeing.add(task)
        task.add_done_callback(self._freeing.discard)

    async def _free(self, resident: Resident) -> None:
        """Empty an adapter's slot, or forget a model."""
        # Not while a larger bank is being filled with what the slots hold.
        async with self._changing:
            if self._base is None:
                return
            served, slot = resident.served, resident.slot

            def leave() -> None:
                if served.bank is None:
                    self._loop.batchers.remove(served.batcher)
                else:
                    served.bank.leave(slot)
                    served.passes.forget_routes()

            await asyncio.wrap_future(self._loop.call(leave))

    async def _in_loader(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._loader, work)

    def _limits(self) -> dict[str, Any]:
        return {"slots": self._slots, "prefill_tokens": self._prefill_tokens, "cache_bytes": self._cache_bytes}

    def _started(self) -> Served:
        if self._served is None:
            raise EngineLost("the engine is not running")
        return self._served
