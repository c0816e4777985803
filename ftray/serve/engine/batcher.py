"""Answers that grow together: in every step each running row gets its next token, whatever its adapter.

Rows join and leave between steps. A joining row's prompt goes into the cache in chunks of at most `prefill_tokens`
tokens a step, so that the running rows never wait for a long prompt. Nothing here knows of time, threads or requests:
the same rows in the same order give the same answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftray.serve.asking import Piece
from ftray.serve.engine.passes import Chunk, Passes
from ftray.serve.engine.rows import Row
from ftray.serve.engine.sampler import choose

if TYPE_CHECKING:
    from torch import Tensor

PREFILL_TOKENS = 128
AT_START = 8
"""Times `prefill_tokens` are read in one step while no row is running."""
SMALLEST_BUCKET = 16
SMALLEST_COLUMNS = 256
"""The cache begins with room for so many tokens a row, and doubles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What a step did to one row."""

    row: Row
    piece: Piece | None
    """None: its logits are not numbers, and it has ended."""


class Batcher:
    """Rows that run, rows whose prompts are being read, and rows that wait."""

    def __init__(
        self, passes: Passes, *, slots: int, prefill_tokens: int = PREFILL_TOKENS, cache_tokens: int | None = None
    ) -> None:
        """Make a batcher of up to `slots` rows at a time. `cache_tokens`: rows times columns of the largest cache."""
        self.passes = passes
        self.slots = slots
        self.prefill_tokens = prefill_tokens
        self.cache_tokens = cache_tokens
        # Places of the cache in order: running rows by slot, then rows whose prompts are being read.
        self.rows: list[Row] = []
        self.running = 0
        self.waiting: deque[Row] = deque()
        self.shadows: deque[Row] = deque()
        self.probes: deque[Row] = deque()
        self.steps = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self.rows or self.waiting or self.shadows or self.probes)

    def submit(self, row: Row) -> None:
        """Let a row wait for its turn."""
        assert row.most_columns <= (self.cache_tokens or row.most_columns), "a row fits the cache by itself"
        (self.probes if row.probe else self.shadows if row.is_shadow else self.waiting).append(row)

    def cancel(self, row: Row) -> None:
        """Forget a row, wherever it is. Its place is free at once."""
        row.ended = True
        for queue in (self.waiting, self.shadows):
            if row in queue:
                queue.remove(row)
        if row in self.rows:
            self._arrange([other for other in self.rows if other is not row], self.rows[: self.running])

    def give_up(self) -> list[Row]:
        """Forget all rows, and return them."""
        queues = (self.waiting, self.shadows, self.probes)
        rows = [*self.rows, *(row for queue in queues for row in queue)]
        for row in rows:
            row.ended = True
        self.rows, self.running = [], 0
        for queue in queues:
            queue.clear()
        self.passes.cache.reserve(1, SMALLEST_COLUMNS, used_columns=0)
        return rows

    def expired(self, now: float) -> list[Row]:
        """Cancel the rows whose deadline is over, and return them."""
        late = [
            row
            for row in (*self.rows, *self.waiting, *self.shadows)
            if row.deadline is not None and row.deadline <= now
        ]
        for row in late:
            self.cancel(row)
        return late

    def step(self) -> list[Growth]:
        """Read some tokens of joining prompts, and give every running row its next token."""
        self._admit()
        if not self.rows:
            return []
        self.steps += 1
        grown: list[Growth] = []
        # While no row is running, nobody has to wait for a longer read.
        budget = self.prefill_tokens * (1 if self.running else AT_START)
        while self.running < len(self.rows):
            budget -= self._fill(budget, grown)
            if budget < SMALLEST_BUCKET:
                break
        if self.running:
            grown += self._decode()
        if not self.rows and self.passes.cache.columns > SMALLEST_COLUMNS:
            self.passes.cache.reserve(1, SMALLEST_COLUMNS, used_columns=0)
        return grown

    # Who joins

    def _admit(self) -> None:
        """Give free places to those that wait, shadows last; who waits takes the place of a shadow."""
        # Probes have no token to give and go at once: they may exceed the slots for some steps.
        joining = list(self.probes)
        self.probes.clear()
        while self.waiting:
            row = self.waiting[0]
            if not self._has_room([*self.rows, *joining], row):
                shadow = next((other for other in reversed(self.rows) if other.is_shadow), None)
                if shadow is None:
                    break
                self._set_back(shadow)
                continue
            joining.append(self.waiting.popleft())
        while self.shadows and not self.waiting and self._has_room([*self.rows, *joining], self.shadows[0]):
            joining.append(self.shadows.popleft())
        if joining:
            self._make_room([*self.rows, *joining])
            self.rows += joining

    def _has_room(self, rows: Sequence[Row], row: Row) -> bool:
        if len(rows) >= self.slots:
            return False
        if self.cache_tokens is None or not rows:
            return True
        columns = max(other.most_columns for other in (*rows, row))
        return (len(rows) + 1) * columns <= self.cache_tokens

    def _set_back(self, row: Row) -> None:
        """Let a running row wait again; it will go on where it is."""
        self._arrange([other for other in self.rows if other is not row], self.rows[: self.running])
        row.cached = 0
        self.shadows.appendleft(row)

    def _make_room(self, rows: Sequence[Row], *, columns: int = 0) -> None:
        """Let the cache grow to what these rows need now, ahead of need where it may."""
        cache = self.passes.cache
        needed = max(columns, *(row.length for row in rows))
        most = max(row.most_columns for row in rows)
        if len(rows) <= cache.places and needed <= cache.columns:
            return
        places = max(cache.places, len(rows), min(self.slots, _doubled(len(rows), 1)))
        wider = max(cache.columns, min(most, _doubled(needed, SMALLEST_COLUMNS)))
        if self.cache_tokens is not None and places * wider > self.cache_tokens:
            # A probe may exceed the bound for some steps; whoever is here has room in any case.
            places, wider = len(rows), max(needed, min(most, self.cache_tokens // len(rows)))
        cache.reserve(places, wider, used_columns=min(cache.columns, max(row.cached for row in rows)))

    # What a step does

    def _fill(self, budget: int, grown: list[Growth]) -> int:
        """Read a chunk of some prompts of about the same length; those that are read wholly run from now on.

        Adds what they have grown by to `grown`; returns the tokens that were read, padding included.
        """
        joining = list(enumerate(self.rows))[self.running :]
        bucket = _bucket(min(budget, joining[0][1].length - joining[0][1].cached))
        chosen: list[tuple[int, Row]] = []
        for place, row in joining:
            size = min(budget, row.length - row.cached)
            if _bucket(size) == bucket and (not chosen or (len(chosen) + 1) * bucket <= budget):
                chosen.append((place, row))
        # In the order of their slots, as the bank likes its tokens best.
        chosen.sort(key=lambda pair: pair[1].slot)
        number = min(budget, bucket)
        chunks = [
            Chunk(place=place, start=row.cached, tokens=row.uncached(number), slot=row.slot) for place, row in chosen
        ]
        logits = self.passes.fill(chunks)
        ready = []
        for index, ((_, row), chunk) in enumerate(zip(chosen, chunks, strict=True)):
            row.cached += len(chunk.tokens)
            self.prompt_tokens += len(chunk.tokens)
            if row.cached == row.length:
                ready.append((index, row))
        for index, row in ready:
            if row.probe is not None:
                row.ended = True
                told = logits[index].float().cpu()
                if not told.isfinite().all():
                    self.passes.cache.clear(self.rows.index(row))
                row.probe.set_result(told)
        answering = [(index, row) for index, row in ready if row.probe is None]
        rows = [row for _, row in answering]
        if rows:
            grown += self._take(rows, logits[[index for index, _ in answering]])
        if ready:
            self._arrange(self.rows, [*self.rows[: self.running], *rows])
        return len(chunks) * max(len(chunk.tokens) for chunk in chunks)

    def _decode(self) -> list[Growth]:
        rows = self.rows[: self.running]
        self._make_room(self.rows, columns=max(row.length for row in rows))
        logits = self.passes.decode(
            [row.answer[-1] for row in rows], [row.cached for row in rows], [row.slot for row in rows]
        )
        for row in rows:
            row.cached += 1
        grown = self._take(rows, logits)
        if any(row.ended for row in rows):
            self._arrange(self.rows, rows)
        return grown

    def _take(self, rows: Sequence[Row], logits: Tensor) -> list[Growth]:
        """Give rows their next tokens by logits [R, V]."""
        grown = []
        for row, chosen in zip(rows, choose(logits, [row.draw for row in rows]), strict=True):
            if chosen.token is None:
                row.ended = True
                self.passes.cache.clear(self.rows.index(row))
                grown.append(Growth(row=row, piece=None))
                continue
            piece = row.take(chosen)
            self.completion_tokens += 1
            if piece is not None:
                grown.append(Growth(row=row, piece=piece))
        return grown

    def _arrange(self, rows: Sequence[Row], running: Sequence[Row]) -> None:
        """Keep these rows that have not ended: the running ones first, by slot. As few as possible move."""
        is_running = set(map(id, running))
        old = {id(row): place for place, row in enumerate(self.rows)}
        kept = [row for row in rows if not row.ended]
        ranges: dict[int, list[Row]] = {}
        for row in kept:
            ranges.setdefault(row.slot if id(row) in is_running else -1, []).append(row)
        order: list[Row | None] = [None] * len(kept)
        sources, targets, begin = [], [], 0
        for key in sorted(ranges, key=lambda key: (key < 0, key)):
            members = ranges[key]
            end = begin + len(members)
            strangers = []
            for row in members:
                if begin <= old[id(row)] < end:
                    order[old[id(row)]] = row
                else:
                    strangers.append(row)
            free = (place for place in range(begin, end) if order[place] is None)
            for row, place in zip(strangers, free, strict=True):
                order[place] = row
                if row.cached:
                    sources.append(old[id(row)])
                    targets.append(place)
            begin = end
        if sources:
            width = max(row.cached for row in kept)
            self.passes.cache.move(sources, targets, width=width)
        self.rows = [row for row in order if row is not None]
        self.running = sum(id(row) in is_running for row in self.rows)


def _doubled(number: int, start: int) -> int:
    """Return `start` doubled until it is at least `number`."""
    while start < number:
        start *= 2
    return start


def _bucket(length: int) -> int:
    """Return the length that prompts of about this length are padded to at most."""
    return _doubled(length, SMALLEST_BUCKET)
