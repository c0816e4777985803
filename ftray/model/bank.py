"""Many LoRA adapters over one frozen base: the adapter bank.

Every adapted linear layer holds stacked slots, A [S, r, in] and B [S, out, r], ranks padded with zeros; each example of
a batch names its slot, and slot 0 is the base itself. Padding stays zero by itself: where A is 0 the gradient of B is,
and the other way round. The slots of all layers are views into flat rows, one a slot, for weights and for gradients, so
that clipping is a row norm, an optimizer step a few tensor operations, and joining, leaving or copying one row.
A slot's arithmetic never touches another's: what is NaN in one stays there.

The base gets no gradients. Gradients of the slots are added to `Bank.gradients` by the backward pass itself.
The model must stay on its device, and one thread at a time asks.
Shapes: S slots without the base, P numbers of a slot, K runs of t tokens (see `bank_route`), T tokens, r the bank's
largest rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ftray.errors import InputError
from ftray.model.bank_route import BASE, Route, make_route
from ftray.model.config import MethodConfig
from ftray.model.dropout import dropout_mask
from ftray.model.lora import computes_plainly, is_linear, is_target, is_transposed, require_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Factors = dict[str, tuple[Tensor, Tensor]]
"""A [rank, in] and B [out, rank] of each adapted layer, by the layer's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What one slot holds, beside its numbers."""

    rank: int
    alpha: float
    rslora: bool = False
    dropout: float = 0.0
    layers: tuple[str, ...]
    """Names of the layers it adapts, in the model's order."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Layers whose alpha is not `alpha`."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Layers whose rank is not `rank`."""

    def rank_of(self, layer: str) -> int:
        return self.ranks.get(layer, self.rank)

    @property
    def largest_rank(self) -> int:
        """The largest rank of any layer."""
        return max(self.rank, *self.ranks.values()) if self.ranks else self.rank

    def scale_of(self, layer: str) -> float:
        """Return alpha/r, or alpha/sqrt(r) with rsLoRA; 0 for a layer it does not adapt."""
        if layer not in self.layers:
            return 0.0
        rank = self.rank_of(layer)
        return self.alphas.get(layer, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


class Bank:
    """Slots for LoRA adapters over the linear layers of a frozen model."""

    def __init__(
        self,
        model: nn.Module,
        *,
        slots: int,
        rank: int,
        target_modules: str | list[str] = "all-linear",
        freeze: bool = True,
    ) -> None:
        """Give the model's target layers `slots` slots of up to `rank` each; `detach` takes them away again.

        `freeze`: the whole base, for training; without it only who asks is served. Raises InputError for a quantised
        base and for targets that are no linear layer.
        """
        self.model = model
        self.linears = _linear_layers(model)
        self._head = _output_head(model)
        wanted = self.targets(target_modules)
        self.slots = slots
        self.rank = rank
        bases = {name: self.linears[name] for name in wanted}
        self._require_shareable(bases)
        if freeze:
            model.requires_grad_(False)
        first = next(iter(bases.values()))
        self.device = first.weight.device
        # Trained weights are fp32 over a base of half precision, as PEFT's are.
        self.dtype = first.weight.dtype if first.weight.dtype in (torch.float32, torch.float64) else torch.float32
        self.layers: dict[str, BankLinear] = {}
        offset = 0
        for name, base in bases.items():
            self.layers[name] = BankLinear(self, name, base, offset=offset, index=len(self.layers))
            offset += self.layers[name].num_parameters
        self.num_parameters = offset
        self.weights = torch.zeros((slots, offset), dtype=self.dtype, device=self.device)  # [S, P]
        self.scales = torch.zeros((len(self.layers), slots), dtype=self.dtype, device=self.device)
        self.gradients: Tensor | None = None  # [S, P], from the first backward pass on
        self.adapters: dict[int, Adapter] = {}
        self.anchor = torch.zeros((), device=self.device, requires_grad=True)
        self.route: Route | None = None
        self._replaced = {name: model.get_submodule(name) for name in self.layers}
        for name, layer in self.layers.items():
            model.set_submodule(name, layer)

    def detach(self) -> None:
        """Give the model its own layers back."""
        for name, module in self._replaced.items():
            self.model.set_submodule(name, module)

    # What is in the slots

    def join(self, slot: int, method: MethodConfig, *, seed: int) -> None:
        """Put a fresh adapter into a free slot: the numbers that `attach_lora` draws from the same seed."""
        wanted = self.targets(method.target_modules)
        self._require_layers(wanted)
        adapter = Adapter(
            rank=method.rank,
            alpha=method.alpha,
            rslora=method.rslora,
            dropout=method.dropout,
            layers=tuple(wanted),
        )
        factors: Factors = {}
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            for name in wanted:
                layer = self.layers[name]
                # As PEFT makes them, in its order, so that both draw the same numbers.
                a = nn.Linear(layer.in_features, method.rank, bias=False)
                b = nn.Linear(method.rank, layer.out_features, bias=False)
                nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
                factors[name] = (a.weight.detach(), torch.zeros_like(b.weight))
        self.put(slot, adapter, factors)

    def targets(self, target_modules: str | list[str]) -> list[str]:
        """Return the names of the base's linear layers that a job's `target_modules` means, in the model's order."""
        require_targets(list(self.linears), target_modules)
        found = [name for name in self.linears if is_target(name, target_modules)]
        if isinstance(target_modules, list):
            return found
        return [name for name in found if self.linears[name] is not self._head]

    def put(self, slot: int, adapter: Adapter, factors: Factors) -> None:
        """Put an adapter's numbers into a slot, whatever was in it. Raises InputError when it does not fit."""
        self._require_slot(slot)
        largest = max((adapter.rank_of(name) for name in adapter.layers), default=0)
        if largest > self.rank:
            raise InputError(
                f"an adapter of rank {largest} does not fit a bank of rank {self.rank}",
                kind="rank_too_large",
                given=largest,
                allowed=f"1 to {self.rank}",
                hint="Make the bank with a larger rank; smaller adapters in it stay as they are.",
            )
        self._require_layers(adapter.layers)
        assert factors.keys() == set(adapter.layers), "every layer of the adapter has its two factors"
        for name, (a, b) in factors.items():
            layer, rank = self.layers[name], adapter.rank_of(name)
            expected = ((rank, layer.in_features), (layer.out_features, rank))
            if (tuple(a.shape), tuple(b.shape)) != expected:
                raise InputError(
                    f"the adapter's factors for {name!r} do not fit the base's layer",
                    kind="adapter_mismatch",
                    given=[list(a.shape), list(b.shape)],
                    allowed=[list(shape) for shape in expected],
                    hint="The adapter was made for another base.",
                )
        self.leave(slot)
        self.write(slot, factors, rows=self.weights)
        scales = [adapter.scale_of(name) for name in self.layers]
        self.scales[:, slot - 1] = torch.tensor(scales, dtype=self.dtype)
        # In the model's order, however a file lists them.
        self.adapters[slot] = replace(adapter, layers=tuple(name for name in self.layers if name in factors))

    def take(self, slot: int, *, rows: Tensor | None = None) -> Factors:
        """Return copies of a slot's factors, without the padding; of other flat rows [S, P] with `rows`."""
        adapter, rows = self.adapters[slot], self.weights if rows is None else rows
        factors = {}
        for name in adapter.layers:
            layer, rank = self.layers[name], adapter.rank_of(name)
            a, b = layer.a(rows)[slot - 1, :rank], layer.b(rows)[slot - 1, :, :rank]
            factors[name] = (a.clone(), b.clone(memory_format=torch.contiguous_format))
        return factors

    def write(self, slot: int, factors: Factors, *, rows: Tensor) -> None:
        """Write factors into a slot's flat row of `rows` [S, P]; the rest of it stays."""
        for name, (a, b) in factors.items():
            layer, rank = self.layers[name], a.shape[0]
            layer.a(rows)[slot - 1, :rank] = a.to(rows)
            layer.b(rows)[slot - 1, :, :rank] = b.to(rows)

    def leave(self, slot: int) -> None:
        """Empty a slot; an empty slot answers as the base."""
        self._require_slot(slot)
        self.adapters.pop(slot, None)
        self.weights[slot - 1].zero_()
        self.scales[:, slot - 1] = 0.0
        if self.gradients is not None:
            self.gradients[slot - 1].zero_()

    def fork(self, source: int, target: int) -> None:
        """Copy one slot's adapter into another slot."""
        assert source in self.adapters, f"slot {source} holds no adapter to copy"
        assert source != target, "a slot is copied into another one"
        self.leave(target)
        self.weights[target - 1] = self.weights[source - 1]
        self.scales[:, target - 1] = self.scales[:, source - 1]
        self.adapters[target] = self.adapters[source]

    def _require_layers(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.layers]
        if unknown:
            raise InputError(
                f"the adapter changes {unknown[0]!r}, which this bank does not adapt",
                kind="unknown_target",
                given=unknown[:3],
                allowed=sorted({name.rsplit(".", 1)[-1] for name in self.layers}),
                hint="Make the bank with these target modules too.",
            )

    def _require_slot(self, slot: int) -> None:
        assert 1 <= slot <= self.slots, f"slot {slot} is none of 1 to {self.slots}; 0 is the base and holds nothing"

    def _require_shareable(self, bases: Mapping[str, Any]) -> None:
        """Raise InputError for layers that cannot have slots."""
        if not bases:
            raise InputError(
                "the base has no linear layer that a slot could adapt",
                kind="unknown_target",
                given=sorted(self.linears)[:3],
                allowed="a model with ordinary linear layers",
                hint="Quantised layers of other kinds cannot be shared; load the base in bf16.",
            )
        for name, base in bases.items():
            if base is self._head:
                raise InputError(
                    f"the output head {name!r} cannot have slots: it sees only some of a batch's tokens",
                    kind="unsupported_target",
                    given=name,
                    allowed="the linear layers below the head",
                    hint="Leave it out of target_modules; all-linear does.",
                )
            dtype = str(base.weight.dtype).removeprefix("torch.")
            if not base.weight.is_floating_point() or base.weight.element_size() < 2:
                raise InputError(
                    f"the base's layer {name!r} is quantised ({dtype})",
                    kind="quantised_base",
                    given=dtype,
                    allowed="fp32, bf16 or fp16 weights",
                    hint="Load the base in bf16: the bank holds it once for all adapters.",
                )
            if not computes_plainly(base):
                raise InputError(
                    f"the base's layer {name!r} ({type(base).__name__}) computes more than a matrix product",
                    kind="unsupported_target",
                    given=type(base).__name__,
                    allowed="nn.Linear and Conv1D",
                    hint="Leave it out of target_modules; where it is a quantised layer, load the base in bf16.",
                )

    # Who is asked

    @contextmanager
    def asking(
        self, slots: Sequence[int], lengths: Sequence[int], *, dropout_seeds: Mapping[int, int] | None = None
    ) -> Iterator[None]:
        """Give the tokens of a batch to their slots inside this block, which also covers the backward pass.

        `slots`: the slot of each example, in the batch's order; `lengths`: its tokens, padding included.
        `dropout_seeds`: a seed for each training slot; without one a slot's dropout is off. A mask depends on this
        seed, the layer and the slot's own tokens, not on the neighbours.
        """
        absent = sorted({slot for slot in slots if slot != BASE and slot not in self.adapters})
        # An empty slot would answer as the base, and nobody would notice.
        assert not absent, (
            f"slot {absent[0]} holds no adapter; slots {sorted(self.adapters)} do, and {BASE} is the base"
        )
        before, self.route = self.route, make_route(slots, lengths, device=self.device, dropout=dropout_seeds or {})
        try:
            yield
        finally:
            self.route = before

    def rank_in(self, route: Route) -> int:
        """Return the largest rank of a batch's slots: beyond it their factors are padding, which nobody multiplies."""
        return max(self.adapters[slot].largest_rank for slot in route.counts)

    def ensure_gradients(self) -> Tensor:
        """Return the gradients [S, P], zero where nothing has been added yet."""
        if self.gradients is None:
            self.gradients = torch.zeros_like(self.weights)
        return self.gradients


class BankLinear(nn.Module):
    """A frozen linear layer, and every slot's update of it."""

    bank: Bank

    def __init__(self, bank: Bank, name: str, base: Any, *, offset: int, index: int) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.index = index
        self.transposed = is_transposed(base)
        shape = tuple(base.weight.shape)
        self.in_features, self.out_features = shape if self.transposed else shape[::-1]
        self.offset = offset
        self.num_parameters = bank.rank * (self.in_features + self.out_features)
        # Not a submodule: the bank is no part of the model.
        object.__setattr__(self, "bank", bank)

    @property
    def weight(self) -> Tensor:
        """The base's weight: some models read it without calling the layer, and get no update then, as with PEFT."""
        weight: Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        bias: Tensor | None = self.base.bias
        return bias

    def a(self, rows: Tensor, *, rank: int | None = None) -> Tensor:
        """Return the part [S, r, in] of flat rows [S, P] that is this layer's A, of its first `rank` ranks: a view."""
        size = self.bank.rank * self.in_features
        part = rows[:, self.offset : self.offset + size].view(len(rows), self.bank.rank, self.in_features)
        return part[:, :rank]

    def b(self, rows: Tensor, *, rank: int | None = None) -> Tensor:
        """Return the part [S, out, r] of flat rows [S, P] that is this layer's B, of its first `rank` ranks: a view."""
        start = self.offset + self.bank.rank * self.in_features
        part = rows[:, start : self.offset + self.num_parameters]
        # Stored rank by rank, so that the first ranks of it are in one piece.
        return part.view(len(rows), self.bank.rank, self.out_features)[:, :rank].transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's product, plus each token's slot's update."""
        bank = self.bank
        route = bank.route
        if route is None:
            output: Tensor = self.base(x)
            return output
        rows = x.reshape(-1, x.shape[-1])
        assert len(rows) == route.num_tokens, "the batch has other tokens than the slots were told"
        dtype = torch.promote_types(rows.dtype, bank.dtype)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            rows = rows.to(dtype)
        if not torch.is_grad_enabled() and not route.dropout:
            return self.answer(rows, route, dtype).view(*x.shape[:-1], -1)
        y: Tensor = _BankProduct.apply(rows, bank.anchor, self, route, dtype)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)

    def answer(self, x: Tensor, route: Route, dtype: torch.dtype) -> Tensor:
        """Return what `_BankProduct` does, [T, out], for who only reads: a route that is used again has its factors."""
        picked = route.picked.get(self.index)
        if picked is None:
            a, b, scale = self.factors(route, dtype)
            picked = route.picked[self.index] = (a.transpose(1, 2), b.transpose(1, 2), scale)
        a, b, scale = picked
        y = self.base_product(x)
        if y.dtype == x.dtype == dtype:
            return route.add_product(y, torch.bmm(route.spread(x), a).mul_(scale), b)
        z = torch.bmm(route.spread(x).to(dtype), a).mul_(scale)
        return route.add_product(y.to(dtype), z, b).to(x.dtype)

    def factors(self, route: Route, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return A [K, r, in] and B [K, out, r] of each run in `dtype`, and its scale [K, 1, 1], unrounded.

        r is the largest rank in this batch.
        """
        weights, rank = self.bank.weights, self.bank.rank_in(route)
        parts = (self.a(weights, rank=rank), self.b(weights, rank=rank))
        a, b = (_pick(part, route.rows).to(dtype) for part in parts)
        return a, b, _pick(self.bank.scales[self.index], route.rows)[:, None, None]

    def base_product(self, x: Tensor) -> Tensor:
        """Return x W' + b, [T, out], in x's dtype."""
        weight: Tensor = self.base.weight
        bias: Tensor | None = self.base.bias
        if weight.dtype != x.dtype:
            weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        return torch.nn.functional.linear(x, weight.t() if self.transposed else weight, bias)

    def base_gradient(self, gradient: Tensor) -> Tensor:
        """Return what flows back through the base, [T, in]."""
        weight: Tensor = self.base.weight.to(gradient.dtype)
        return gradient @ (weight.t() if self.transposed else weight)

    def dropout_mask(self, x: Tensor, route: Route) -> Tensor | None:
        """Return what the slots' inputs [K, t, in] are multiplied with, or None for nothing.

        Drawn anew from (the slot's seed, this layer): a recomputed forward pass draws the same.
        """
        rates = {slot: self.bank.adapters[slot].dropout for slot in route.counts if slot in route.dropout}
        if not any(rates.values()):
            return None
        parts = []
        for slot, count in route.counts.items():
            part, rate = x.new_ones((count, self.in_features)), rates.get(slot, 0.0)
            if rate > 0.0:
                part = dropout_mask(part, rate, seed=route.dropout[slot], layer=self.index)
            parts.append(part)
        mask = x.new_ones((route.num_runs * route.width, self.in_features))
        mask.index_copy_(0, route.places, torch.cat(parts))
        return mask.view(route.num_runs, route.width, -1)


class _BankProduct(torch.autograd.Function):
    """y = x W' + b, and for the tokens of each slot + s (x A') B'.

    `anchor` requires a gradient where the first layer's input does not; its own gradient is nothing. Updates are
    computed in `dtype`: without autocast the slots' own, as PEFT does, whatever the base is in.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: BankLinear, route: Route, dtype: torch.dtype) -> Tensor:
        y = layer.base_product(x).to(dtype)
        mask = layer.dropout_mask(x, route)
        inputs = route.spread(x).to(dtype) if mask is None else (route.spread(x) * mask).to(dtype)
        a, b, scale = layer.factors(route, dtype)
        z = torch.bmm(inputs, a.transpose(1, 2)).mul_(scale)  # [K, t, r]
        route.add_product(y, z, b.transpose(1, 2))
        ctx.layer, ctx.route, ctx.dtype = layer, route, dtype
        # The factors are picked again: they are the weights themselves, or copies not worth keeping.
        ctx.save_for_backward(x, z, *([] if mask is None else [mask]))
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, z, *masks = ctx.saved_tensors
        layer, route, dtype = ctx.layer, ctx.route, ctx.dtype
        rows = layer.bank.ensure_gradients()
        a, b, scale = layer.factors(route, dtype)
        inputs = (route.spread(x) * masks[0] if masks else route.spread(x)).to(dtype)
        slot_gradient = route.spread_gradient(gradient).to(dtype)  # [K, t, out]
        update = torch.bmm(slot_gradient, b).mul_(scale)  # [K, t, r]
        _add_product(layer.b(rows, rank=z.shape[2]), route.rows, slot_gradient.transpose(1, 2), z)
        _add_product(layer.a(rows, rank=z.shape[2]), route.rows, update.transpose(1, 2), inputs)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        grad_x = layer.base_gradient(gradient).to(dtype)
        if masks:
            route.add(grad_x, torch.bmm(update, a) * masks[0])
        else:
            route.add_product(grad_x, update, a)
        return grad_x.to(x.dtype), None, None, None, None


def _pick(stacked: Tensor, rows: slice | Tensor) -> Tensor:
    return stacked[rows] if isinstance(rows, slice) else stacked.index_select(0, rows)


def _add_product(stacked: Tensor, rows: slice | Tensor, left: Tensor, right: Tensor) -> None:
    """Add left · right to these slots of a stack, in place."""
    if isinstance(rows, slice) and stacked.dtype == left.dtype:
        stacked[rows].baddbmm_(left, right)
    elif isinstance(rows, slice):
        stacked[rows] += torch.bmm(left, right)
    else:
        stacked.index_add_(0, rows, torch.bmm(left, right).to(stacked.dtype))


def _linear_layers(model: nn.Module) -> dict[str, Any]:
    """Return every linear layer by name, in the model's order; of one with an adapter of PEFT's, the one beneath."""
    layers: dict[str, Any] = {}
    outer = None
    for name, module in model.named_modules():
        assert not isinstance(module, BankLinear), "the model has a bank already; a model has one at a time"
        if outer is not None and name.startswith(f"{outer}."):
            continue
        base = getattr(module, "base_layer", module)
        if is_linear(base):
            outer = name
            layers[name] = base
    return layers


def _output_head(model: nn.Module) -> nn.Module | None:
    if not hasattr(model, "get_output_embeddings"):
        return None
    head: nn.Module | None = cast("PreTrainedModel", model).get_output_embeddings()
    beneath: nn.Module | None = getattr(head, "base_layer", head)
    return beneath
