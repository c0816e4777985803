"""Keys and values of the rows that an engine runs: each row has a place of its own, where its tokens begin at column 0.

So rows of any length join and leave without a copy of the others; moving a row copies that row alone. One column more
than there is room for takes what padding writes, and nobody reads it.
Shapes: P places, H heads, C columns (tokens), D head size, R rows of a pass, q new tokens of each, W columns it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What one layer keeps of a token."""

    heads: int
    key_size: int
    value_size: int


class RowCache:
    """The buffers of all layers, and where the present pass writes and reads."""

    def __init__(self, shapes: Sequence[LayerShape | None], *, device: torch.device, dtype: torch.dtype) -> None:
        """Make an empty cache. A layer without a shape keeps nothing."""
        self.device = device
        self.dtype = dtype
        self.places = 0
        self.columns = 0
        self.layers = [None if shape is None else RowLayer(self, shape) for shape in shapes]
        # transformers asks a layer that keeps nothing for nothing, but counts it.
        self.cache = Cache(layers=[layer or DynamicLayer() for layer in self.layers])
        sizes: dict[tuple[int, int], int] = {}
        for layer in self.layers:
            for key in layer.sizes if layer else ():
                sizes[key] = sizes.get(key, 0) + 1
        self._sizes = sizes
        self._buffers: dict[tuple[int, int], Tensor] = {}  # (H, D) -> [layers, P, H, C + 1, D]
        self._starts: dict[int, Tensor] = {}  # H -> [P, H], where a place's head begins in [P * H * (C + 1)]
        self.rows: int | Tensor = 0
        self.width = 0
        self.targets: dict[int, Tensor] = {}

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one row."""
        return sum(heads * size * count for (heads, size), count in self._sizes.items()) * self.dtype.itemsize

    def reserve(self, places: int, columns: int, *, used_columns: int) -> None:
        """Make room for so many rows and tokens; what the first `used_columns` columns hold stays."""
        old, old_places = self._buffers, min(self.places, places)
        self.places, self.columns = places, columns
        self._buffers = {}
        for (heads, size), count in self._sizes.items():
            # Zeros: what is masked is multiplied by 0, and 0 times a NaN of uninitialised memory is NaN.
            shape = (count, places, heads, columns + 1, size)
            buffer = torch.zeros(shape, dtype=self.dtype, device=self.device)
            if old and used_columns:
                kept = old[heads, size][:, :old_places, :, :used_columns]
                buffer[:, :old_places, :, :used_columns] = kept
            self._buffers[heads, size] = buffer
        nexts = dict.fromkeys(self._sizes, 0)
        for layer in self.layers:
            if layer is None:
                continue
            parts = []
            for key in layer.sizes:
                parts.append(self._buffers[key][nexts[key]])
                nexts[key] += 1
            layer.bind(*parts)
        self._starts = {
            heads: (torch.arange(places * heads, device=self.device) * (columns + 1)).view(places, heads)
            for heads, _ in self._sizes
        }

    def aim_at_next(self, positions: Tensor, *, width: int) -> None:
        """Let the next pass append one token to each of the first R places, at `positions` [R]; it reads `width`."""
        self.rows, self.width = len(positions), width
        self.targets = {
            heads: (starts[: len(positions)] + positions[:, None]).view(-1) for heads, starts in self._starts.items()
        }

    def aim_at(self, places: Tensor, positions: Tensor, *, width: int) -> None:
        """Let the next pass write q tokens to each of R places [R], at `positions` [R, q]; `columns` is nowhere."""
        self.rows, self.width = places, width
        self.targets = {
            heads: (starts.index_select(0, places)[:, :, None] + positions[:, None, :]).view(-1)
            for heads, starts in self._starts.items()
        }

    def move(self, sources: Sequence[int], targets: Sequence[int], *, width: int) -> None:
        """Copy the first `width` columns of some places to others, all at once: they may change places."""
        source, target = (torch.tensor(places, device=self.device) for places in (sources, targets))
        for buffer in self._buffers.values():
            part = buffer[:, :, :, :width]
            part.index_copy_(1, target, part.index_select(1, source))

    def clear(self, place: int) -> None:
        """Zero a place: what is not finite would reach its next row through the mask."""
        for buffer in self._buffers.values():
            buffer[:, place].zero_()


class RowLayer(DynamicLayer):
    """One layer's keys and values."""

    def __init__(self, cache: RowCache, shape: LayerShape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = cache
        self.heads = shape.heads
        self.sizes = ((shape.heads, shape.key_size), (shape.heads, shape.value_size))
        self.is_initialized = True

    def bind(self, keys: Tensor, values: Tensor) -> None:
        """Take one's part of the buffers, [P, H, C + 1, D] each."""
        self.key_places, self.value_places = keys, values
        self.key_tokens, self.value_tokens = (part.view(-1, part.shape[-1]) for part in (keys, values))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new states [R, H, q, D] where the pass aims; return [R, H, W, D] of its rows."""
        owner = self.owner
        target = owner.targets[self.heads]
        self.key_tokens.index_copy_(0, target, key_states.reshape(-1, key_states.shape[-1]))
        self.value_tokens.index_copy_(0, target, value_states.reshape(-1, value_states.shape[-1]))
        keys, values = self.key_places[:, :, : owner.width], self.value_places[:, :, : owner.width]
        if isinstance(owner.rows, int):
            return keys[: owner.rows], values[: owner.rows]
        return keys.index_select(0, owner.rows), values.index_select(0, owner.rows)

    def get_seq_length(self) -> int:
        """Return 0: positions and masks are given, and nothing may be derived from a length that rows do not share."""
        return 0
