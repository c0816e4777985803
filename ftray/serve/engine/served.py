"""A model as an engine serves it: its passes, its batcher, its words; and how adapters come to it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ftray.doctor import free_memory
from ftray.errors import InputError
from ftray.model.bank import Bank
from ftray.model.bank_peft import read_adapter
from ftray.model.bank_route import BASE
from ftray.model.base import load_model, load_tokenizer, own_device, own_precision
from ftray.serve.engine.batcher import PREFILL_TOKENS, SMALLEST_BUCKET, Batcher
from ftray.serve.engine.detokenise import Vocabulary
from ftray.serve.engine.passes import Chunk, Passes
from ftray.serve.engine.prompts import Prompts, vocabulary_of
from ftray.serve.engine.slots import free_slot, grown, room_for
from ftray.train.memory import keep_freed_memory

if TYPE_CHECKING:
    from ftray.serve.engine.loop import StepLoop

FIRST_SLOTS, FIRST_RANK = 4, 16
"""Of a new bank; they double."""
CACHE_SHARE = {"cpu": 0.25, "cuda": 0.4}
"""Of the free memory, for keys and values; while they grow there are two copies of them."""
MEASURED = 3
UNKNOWN_MEMORY = 2**32
"""Bytes that are taken to be free where the system does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A base with its bank, or a model of its own."""

    passes: Passes
    bank: Bank | None
    """None: it answers as itself only."""
    batcher: Batcher
    vocabulary: Vocabulary
    prompts: Prompts
    positions: int | None

    @property
    def dtype(self) -> str:
        """What it computes in."""
        return str(self.passes.model.dtype).removeprefix("torch.")


def load_served(
    model: str, *, slots: int, prefill_tokens: int | None, cache_bytes: int | None, takes_adapters: bool = True
) -> Served:
    """Load a model and show that it computes in shared passes what it computes alone.

    Raises InputError for one that cannot be loaded, or cannot share passes.
    """
    device = own_device()
    if device.type == "cpu":
        keep_freed_memory()
    loaded = load_model(model, precision=own_precision()).to(device)  # type: ignore[arg-type]
    bank = Bank(loaded, slots=FIRST_SLOTS, rank=FIRST_RANK) if takes_adapters else None
    passes = Passes(loaded, bank=bank)
    passes.verify()
    limit = cache_bytes or int(_free_bytes(device) * CACHE_SHARE.get(device.type, 0.25))
    tokens = max(1, limit // passes.cache.token_bytes)
    has: int | None = getattr(loaded.config.get_text_config(), "max_position_embeddings", None)
    positions = tokens if has is None else min(has, tokens)
    prefill = measured_prefill(passes, rows=slots, positions=positions) if prefill_tokens is None else prefill_tokens
    return Served(
        passes=passes,
        bank=bank,
        batcher=Batcher(passes, slots=slots, prefill_tokens=prefill, cache_tokens=tokens),
        # Two tokenizers: one thread reads prompts while another writes answers.
        vocabulary=Vocabulary(load_tokenizer(model)),
        prompts=Prompts(
            load_tokenizer(model),
            vocabulary=vocabulary_of(loaded),
            ends=loaded.generation_config,
            positions=positions,
        ),
        positions=positions,
    )


def put_adapter(served: Served, folder: Path, loop: StepLoop) -> int:
    """Read an adapter into a free slot of the bank, which grows for it; return the slot. Not in the loop's thread.

    Nobody is asked in that slot yet, so that writing to it disturbs no pass. Raises InputError for an adapter that the
    bank cannot hold.
    """
    adapter, factors = read_adapter(folder)
    bank = served.bank
    assert bank is not None
    slots, rank = room_for(bank, adapter)
    if (slots, rank) != (bank.slots, bank.rank):
        take_up = grown(bank, slots=slots, rank=rank)

        def grow() -> None:
            take_up()
            served.passes.forget_routes()

        loop.call(grow).result()
    slot = free_slot(bank)
    assert slot is not None, "the bank has grown"
    bank.put(slot, adapter, factors)
    loop.post(served.passes.forget_routes)
    return slot


def probe_of(record: Mapping[str, Any], base: Served) -> Sequence[int]:
    """Return the probe of a record's fingerprint. Raises InputError `not_live` for one that the base cannot read."""
    fingerprint = record.get("fingerprint")
    vocabulary = vocabulary_of(base.passes.model)
    probe = [] if fingerprint is None else fingerprint["probe_tokens"]
    if probe and all(0 <= token < vocabulary for token in probe):
        return list(probe)
    why = "its base has another vocabulary" if probe else "its record has no fingerprint"
    raise InputError(
        f"the adapter cannot be shown to be live: {why}",
        kind="not_live",
        given=probe,
        allowed=f"a probe of tokens from 0 to {vocabulary - 1}",
        hint="Register it again from its run, or import it, on this base.",
    )


def measured_prefill(passes: Passes, *, rows: int, positions: int | None) -> int:
    """Return how many tokens of a prompt are read in the time of one step of `rows` rows, by trying."""
    size = min(PREFILL_TOKENS, positions or PREFILL_TOKENS)
    passes.cache.reserve(rows, size, used_columns=0)
    prompt = [Chunk(place=0, start=0, tokens=[0] * size)]
    step, fill = (
        min(_seconds(work) for _ in range(MEASURED))
        for work in (
            lambda: passes.decode([0] * rows, [size - 1] * rows, [BASE] * rows),
            lambda: passes.fill(prompt),
        )
    )
    passes.cache.reserve(1, 1, used_columns=0)
    return max(SMALLEST_BUCKET, min(16 * PREFILL_TOKENS, int(size * step / fill)))


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    float(work()[0, 0])  # waits for a GPU
    return time.perf_counter() - started


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = free_memory()
    return UNKNOWN_MEMORY if free is None else free
