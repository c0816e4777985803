"""Forward passes of an engine: a prompt's tokens into the cache, and one new token for every running row.

Whatever the rows' adapters are, a pass is one forward of the base. Masks and positions are given to the model, so that
layers with a sliding window look back as far as they should; `verify` shows that a model computes what it computes
without any of this, and refuses it otherwise.
Shapes: R rows, q new tokens of each, W cached tokens that a pass reads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ftray.errors import InputError
from ftray.evaluate.cache import cache_argument
from ftray.model import attention
from ftray.model.bank_route import BASE, Route, make_route
from ftray.serve.engine import row_attention
from ftray.serve.engine.row_cache import LayerShape, RowCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftray.model.bank import Bank

FULL, SLIDING = "full_attention", "sliding_attention"
KEPT_ROUTES = 2
"""The running rows' and a prompt's. They may hold copies of what is in the slots."""
VERIFIED_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens of one row that go into the cache."""

    place: int
    start: int
    """Tokens of the row that are there already."""
    tokens: Sequence[int]
    slot: int = BASE


class Passes:
    """A model, its bank and its cache."""

    def __init__(self, model: PreTrainedModel, *, bank: Bank | None = None) -> None:
        """Prepare a model, which is this object's from then on. Raises InputError for one that cannot share passes."""
        self.model = model.eval()
        self.bank = bank
        self.device = model.device
        if getattr(model.config, "_attn_implementation", None) == attention.NAME:
            row_attention.register()
            model.set_attn_implementation(row_attention.NAME)
        self._argument = cache_argument(model)
        self.windows = _windows(model)
        self.uses_mapping = len(self.windows) > 1 or (
            SLIDING in self.windows and getattr(model.config.get_text_config(), "layer_types", None) is not None
        )
        self.cache = RowCache(self._shapes(), device=model.device, dtype=model.dtype)
        self.passes = 0
        self._routes: dict[tuple[tuple[int, ...], int], Route | None] = {}

    def forget_routes(self) -> None:
        """Do this after what is in the bank's slots has changed: routes remember where the numbers are."""
        self._routes.clear()

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int], lengths: Sequence[int], slots: Sequence[int]) -> Tensor:
        """Give each of the first R places its newest token; return the logits [R, V] of the next.

        `lengths`: the tokens a place held before.
        """
        width = max(lengths) + 1
        state = torch.tensor([tokens, lengths], device=self.device)
        positions = state[1]
        self.cache.aim_at_next(positions, width=width)
        logits = self._forward(state[0][:, None], positions[:, None], width, slots)
        return logits

    @torch.inference_mode()
    def fill(self, chunks: Sequence[Chunk]) -> Tensor:
        """Put tokens of some rows into the cache; return the logits [R, V] after each chunk's last.

        Shorter chunks are padded on the left, where the padding writes to nowhere.
        """
        size = max(len(chunk.tokens) for chunk in chunks)
        width = max(chunk.start + len(chunk.tokens) for chunk in chunks)
        tokens, positions, targets = [], [], []
        for chunk in chunks:
            padding = size - len(chunk.tokens)
            places = list(range(chunk.start, chunk.start + len(chunk.tokens)))
            tokens.append([chunk.tokens[0]] * padding + list(chunk.tokens))
            # Padding looks at the row's first token, which is there.
            positions.append([0] * padding + places)
            targets.append([self.cache.columns] * padding + places)
        state = torch.tensor([tokens, positions, targets], device=self.device)
        places_of = torch.tensor([chunk.place for chunk in chunks], device=self.device)
        self.cache.aim_at(places_of, state[2], width=width)
        return self._forward(state[0], state[1], width, [chunk.slot for chunk in chunks])

    def _forward(self, ids: Tensor, positions: Tensor, width: int, slots: Sequence[int]) -> Tensor:
        self._route(slots, ids.shape[1])
        try:
            logits: Tensor = self.model(
                input_ids=ids,
                attention_mask=self._masks(positions, width),
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{self._argument: self.cache.cache},
            ).logits
        finally:
            self._unroute()
        self.passes += 1
        return logits[:, -1]

    def _masks(self, positions: Tensor, width: int) -> Any:
        """Return what is added to the scores [R, 1, q, W]: 0 where a token may look, -inf elsewhere; by layer type."""
        columns = torch.arange(width, device=self.device)
        ahead = columns > positions[:, None, :, None]
        masks = {}
        for kind, window in self.windows.items():
            hidden = ahead if window is None else ahead | (columns <= positions[:, None, :, None] - window)
            zeros = torch.zeros(hidden.shape, dtype=self.model.dtype, device=self.device)
            masks[kind] = zeros.masked_fill_(hidden, float("-inf"))
        return masks if self.uses_mapping else next(iter(masks.values()))

    def _route(self, slots: Sequence[int], size: int) -> None:
        if self.bank is None:
            assert not any(slots), "a model without a bank answers as itself"
            return
        key = (tuple(slots), size)
        if key not in self._routes:
            # An empty slot would answer as the base, and nobody would notice.
            absent = [slot for slot in slots if slot != BASE and slot not in self.bank.adapters]
            assert not absent, f"slots {absent} hold no adapter"
            if len(self._routes) >= KEPT_ROUTES:
                del self._routes[next(iter(self._routes))]
            self._routes[key] = make_route(slots, [size] * len(slots), device=self.device, dropout={})
        self.bank.route = self._routes[key]

    def _unroute(self) -> None:
        if self.bank is not None:
            self.bank.route = None

    @torch.inference_mode()
    def _shapes(self) -> list[LayerShape | None]:
        """Return what each layer keeps of a token, by asking for one."""
        cache = DynamicCache(config=self.model.config)
        ids = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        self.model(input_ids=ids, use_cache=True, **{self._argument: cache})
        shapes: list[LayerShape | None] = []
        for layer in cache.layers:
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            if keys is None or values is None:
                shapes.append(None)
            else:
                shapes.append(LayerShape(heads=keys.shape[1], key_size=keys.shape[3], value_size=values.shape[3]))
        return shapes

    @torch.inference_mode()
    def verify(self) -> None:
        """Raise InputError where the model answers otherwise in shared passes than alone."""
        text = self.model.config.get_text_config()
        limit = getattr(text, "max_position_embeddings", None) or VERIFIED_TOKENS
        count = min(VERIFIED_TOKENS, limit)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(text.vocab_size, (2, count), generator=generator).tolist()
        self.cache.reserve(2, count, used_columns=0)
        first, second = rows
        cut = max(1, count // 3)
        # In chunks of different lengths, then token by token.
        self.fill([Chunk(place=0, start=0, tokens=first[:cut])])
        found = [
            self.fill([Chunk(place=1, start=0, tokens=second[:-2]), Chunk(place=0, start=cut, tokens=first[cut:-2])])
        ]
        for past in (2, 1):
            if count > past:
                found.append(self.decode([first[-past], second[-past]], [count - past] * 2, [BASE, BASE]))
        ids = torch.tensor(rows, device=self.device)
        expected = self.model(input_ids=ids, use_cache=False).logits[:, -3:].float()
        shared = torch.stack([found[0].flip(0), *found[1:]], dim=1).float()
        tolerance = 1e-3 if self.model.dtype in (torch.float32, torch.float64) else 0.05
        worst = (shared - expected).abs().max() / expected.abs().max()
        self.cache.reserve(1, 1, used_columns=0)
        if not worst <= tolerance:
            raise _unsupported(self.model, f"its logits in shared passes are off by {float(worst):.1%}")


def _windows(model: PreTrainedModel) -> dict[str, int | None]:
    """Return the types of attention layers, and how far each looks back: None is all the way."""
    windows: dict[str, int | None] = {}
    text = model.config.get_text_config()
    if getattr(text, "attention_chunk_size", None) is not None:
        raise _unsupported(model, "it attends in chunks")
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) is DynamicLayer:
            windows[FULL] = None
        elif type(layer) is DynamicSlidingWindowLayer:
            if windows.setdefault(SLIDING, layer.sliding_window) != layer.sliding_window:
                raise _unsupported(model, "its layers have windows of several sizes")
        else:
            raise _unsupported(model, f"a layer keeps a {type(layer).__name__}")
    return windows or {FULL: None}


def _unsupported(model: PreTrainedModel, why: str) -> InputError:
    kind = model.config.model_type
    return InputError(
        f"the bank engine cannot serve a {kind} model: {why}",
        kind="unsupported_model",
        given=kind,
        allowed="models whose layers all attend, to everything before or through one sliding window",
        hint="Serve it with `engine: vllm`.",
        path="model",
    )
