"""A key-value cache with its room reserved from the start.

transformers' DynamicCache copies all keys and values to append one token, which for a small model on a CPU is half of
the time of a step. Layers with a sliding window (or without keys) keep transformers' own.
Shapes: R rows, H heads, L tokens so far, D head size.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


def reserved_cache(config: PretrainedConfig, capacity: int) -> DynamicCache:
    """Return an empty cache for `capacity` tokens a row."""
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def cache_argument(model: nn.Module) -> str:
    """Return how the model's forward calls its cache: newer versions of transformers renamed it, and warn."""
    from peft import PeftModel

    asked = model.get_base_model() if isinstance(model, PeftModel) else model
    return "cache" if "cache" in inspect.signature(asked.forward).parameters else "past_key_values"


class ReservedLayer(DynamicLayer):
    """One layer's keys and values [R, H, L, D]: views into buffers of `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Reserve the buffers."""
        super().lazy_initialization(key_states, value_states)
        self.key_buffer, self.value_buffer = (
            states.new_empty((*states.shape[:2], self.capacity, states.shape[3]))
            for states in (key_states, value_states)
        )

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new states and return all."""
        start = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = start + key_states.shape[2]
        self.key_buffer[:, :, start:end] = key_states
        self.value_buffer[:, :, start:end] = value_states
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows."""
        length = self.get_seq_length()
        self.key_buffer, self.value_buffer = (
            buffer.index_select(0, indices) for buffer in (self.key_buffer, self.value_buffer)
        )
        self.keys, self.values = self.key_buffer[:, :, :length], self.value_buffer[:, :, :length]
