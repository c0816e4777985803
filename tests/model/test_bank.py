"""The bank computes what separate PEFT models compute, and its slots do not touch each other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_world import EQUAL_FAMILIES, METHODS, RANK, factors_of, method_of, world
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from ftray.errors import InputError
from ftray.evaluate.generate import generate
from ftray.model.bank import Adapter, Bank
from ftray.model.bank_route import make_route
from ftray.model.base import load_model, recompute_activations
from ftray.model.config import MethodConfig
from ftray.model.lora import attach_lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SLOTS = [2, 0, 3, 1, 2]
"""The slot of each row of `ROWS`."""
ROWS = torch.randint(3, 61, (5, 12), generator=torch.Generator().manual_seed(0))


def logits(model: Any, rows: Tensor) -> Tensor:
    result: Tensor = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits
    return result


def loss(values: Tensor, rows: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of each row [R], in the dtype of the logits."""
    shape = rows[:, 1:].shape
    losses = functional.cross_entropy(values[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return losses.view(shape).mean(dim=1)


@pytest.mark.parametrize("family", EQUAL_FAMILIES)
@pytest.mark.parametrize("slots", [SLOTS, [1, 2, 3, 0, 0], [0, 1, 1, 3, 3]], ids=["mixed", "in-order", "gaps"])
def test_every_row_is_answered_by_its_slot(families: dict[str, Path], family: str, slots: list[int]) -> None:
    bank, models, base = world(families[family])
    with torch.no_grad(), bank.asking(slots, [12] * 5):
        answered = logits(bank.model, ROWS)
    for row, slot in enumerate(slots):
        with torch.no_grad():
            expected = logits(models[slot] if slot else base, ROWS[row : row + 1])
        assert torch.allclose(answered[row : row + 1], expected, rtol=0.0, atol=1e-12)


def test_permuted_slots_answer_otherwise(families: dict[str, Path]) -> None:
    bank, models, _ = world(families["llama"])
    with torch.no_grad(), bank.asking([1, 2, 3, 1, 2], [12] * 5):
        answered = logits(bank.model, ROWS)
    with torch.no_grad():
        assert not torch.allclose(answered[:1], logits(models[2], ROWS[:1]), atol=1e-3)


@pytest.mark.parametrize("family", EQUAL_FAMILIES)
def test_gradients_are_pefts(families: dict[str, Path], family: str) -> None:
    bank, models, _ = world(families[family])
    with bank.asking(SLOTS, [12] * 5):
        loss(logits(bank.model, ROWS), ROWS).sum().backward()
    for slot, model in models.items():
        rows = ROWS[[index for index, owner in enumerate(SLOTS) if owner == slot]]
        loss(logits(model, rows), rows).sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if "lora_" in name}
        ours = bank.take(slot, rows=bank.ensure_gradients())
        for layer, pair in ours.items():
            for half, gradient in zip("AB", pair, strict=True):
                expected = gradients[f"base_model.model.{layer}.lora_{half}.default.weight"]
                assert torch.allclose(gradient, expected, rtol=1e-9, atol=1e-11)
    assert all(parameter.grad is None for parameter in bank.model.parameters())


@pytest.mark.parametrize("family", EQUAL_FAMILIES)
def test_generation_is_token_equal(families: dict[str, Path], family: str) -> None:
    bank, models, base = world(families[family], dtype=torch.float32)
    prompts = [row[: 4 + 2 * index].tolist() for index, row in enumerate(ROWS)]
    answers = generate_in(bank, prompts, SLOTS)
    different, near_ties = 0, 0
    for prompt, slot, answer in zip(prompts, SLOTS, answers, strict=True):
        model = models[slot] if slot else base
        expected = generate_in(model, [prompt], None)[0]
        near_tie = answer != expected and _is_near_tie(model, prompt, answer, expected)
        near_ties += near_tie
        different += answer != expected and not near_tie
    assert different == 0
    assert near_ties <= 1
    permuted = generate_in(bank, prompts, [{0: 1, 1: 2, 2: 3, 3: 0}[slot] for slot in SLOTS])
    assert sum(one != other for one, other in zip(permuted, answers, strict=True)) >= 3


def generate_in(model: Any, prompts: Sequence[Sequence[int]], slots: Sequence[int] | None) -> list[list[int]]:
    settings: dict[str, Any] = {"max_new_tokens": 16, "stop_token_ids": (1,), "pad_token_id": 2}
    if slots is None:
        return generate(model, prompts, **settings)
    return generate(
        model.model,
        prompts,
        **settings,
        asking=lambda indices, lengths: model.asking([slots[index] for index in indices], lengths),
    )


def _is_near_tie(model: Any, prompt: list[int], ours: list[int], expected: list[int]) -> bool:
    """Return whether the first differing token was chosen between two logits within 1e-4."""
    first = next((i for i, pair in enumerate(zip(ours, expected, strict=False)) if pair[0] != pair[1]), None)
    if first is None:
        return False
    with torch.no_grad():
        values = logits(model, torch.tensor([prompt + expected[:first]]))[0, -1]
    top = values.topk(2).values
    return bool(top[0] - top[1] < 1e-4)


def test_a_slot_of_nans_leaves_the_others_bit_identical(families: dict[str, Path]) -> None:
    bank, _, _ = world(families["llama"])

    def run() -> tuple[Tensor, Tensor]:
        bank.ensure_gradients().zero_()
        with bank.asking(SLOTS, [12] * 5):
            values = logits(bank.model, ROWS)
            loss(values, ROWS).sum().backward()
        return values.detach(), bank.ensure_gradients().clone()

    before, gradients = run()
    bank.weights[1] = float("nan")
    after, broken = run()
    kept = [row for row, slot in enumerate(SLOTS) if slot != 2]
    assert torch.equal(after[kept], before[kept])
    assert after[[row for row, slot in enumerate(SLOTS) if slot == 2]].isnan().all()
    assert torch.equal(broken[[0, 2]], gradients[[0, 2]])
    assert broken[1].isnan().any()


def test_slots_come_go_and_are_copied(families: dict[str, Path]) -> None:
    bank, _, _ = world(families["llama"])

    def answers(slots: list[int]) -> Tensor:
        with torch.no_grad(), bank.asking(slots, [12] * 5):
            return logits(bank.model, ROWS)

    before = answers(SLOTS)
    bank.leave(2)
    after = answers([0, 0, 3, 1, 0])
    base = answers([0] * 5)
    for row, slot in enumerate(SLOTS):
        assert torch.allclose(after[row], base[row] if slot == 2 else before[row], rtol=0.0, atol=1e-13)
    # An empty slot does not answer as the base: it is an error.
    with pytest.raises(AssertionError, match="slot 2 holds no adapter"):
        answers(SLOTS)
    bank.fork(3, 2)
    assert bank.adapters[2] == bank.adapters[3]
    copied = answers(SLOTS)
    assert torch.allclose(copied[2], before[2], rtol=0.0, atol=1e-13)
    assert torch.allclose(copied[0], answers([3, 0, 3, 1, 2])[0], rtol=0.0, atol=1e-13)
    # A row's neighbours and its place in the batch change nothing.
    alone = ROWS[[3]]
    with torch.no_grad(), bank.asking([1], [12]):
        assert torch.allclose(logits(bank.model, alone)[0], before[3], rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("family", EQUAL_FAMILIES)
def test_a_fresh_slot_is_pefts_fresh_adapter(families: dict[str, Path], family: str) -> None:
    base = load_model(str(families[family]))
    for slot in METHODS:
        method = method_of(base, slot)
        model = attach_lora(
            copy.deepcopy(base), method_of(base, 3) if method.rank == 2 else method, base_name="b", seed=7
        )
        bank = Bank(copy.deepcopy(base), slots=2, rank=RANK)
        bank.join(2, method_of(base, 3) if method.rank == 2 else method, seed=7)
        expected = factors_of(model)
        ours = bank.take(2)
        assert list(ours) == list(expected)
        assert all(torch.equal(ours[layer][half], expected[layer][half]) for layer in ours for half in (0, 1))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_the_slots_own(families: dict[str, Path], checkpointing: bool) -> None:
    base = load_model(str(families["llama"]))
    if checkpointing:
        recompute_activations(base)
        base.train()
    bank = Bank(base, slots=2, rank=4)
    generator = torch.Generator().manual_seed(3)
    for slot in (1, 2):
        bank.join(slot, MethodConfig(rank=4, dropout=0.5), seed=slot)
        bank.weights[slot - 1] = torch.randn(bank.num_parameters, generator=generator) * 0.1

    def run(rows: Tensor, slots: list[int], seeds: dict[int, int]) -> tuple[Tensor, Tensor]:
        bank.ensure_gradients().zero_()
        with bank.asking(slots, [rows.shape[1]] * len(slots), dropout_seeds=seeds):
            values = logits(bank.model, rows)
            loss(values, rows).sum().backward()
        return values.detach(), bank.ensure_gradients().clone()

    both, gradients = run(ROWS[:2], [1, 2], {1: 11, 2: 12})
    alone, own = run(ROWS[:1], [1], {1: 11})
    assert torch.allclose(both[0], alone[0], atol=1e-5)
    assert torch.allclose(gradients[0], own[0], atol=1e-5)
    other, _ = run(ROWS[:1], [1], {1: 13})
    without, _ = run(ROWS[:1], [1], {})
    assert not torch.allclose(other, alone, atol=1e-3)
    assert not torch.allclose(without, alone, atol=1e-3)


def test_dropout_scales_what_it_keeps_and_its_gradients(families: dict[str, Path]) -> None:
    base = load_model(str(families["llama"])).double()
    bank = Bank(base, slots=2, rank=3, target_modules=["gate_proj"])
    for slot in (1, 2):
        bank.join(slot, MethodConfig(rank=3, alpha=6.0, dropout=0.4, target_modules=["gate_proj"]), seed=slot)
    bank.weights.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    layer = bank.layers["model.layers.0.mlp.gate_proj"]
    x = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.randn(2, 5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with bank.asking([1, 2], [5, 5], dropout_seeds={1: 7, 2: 8}):
        (layer(x) * weight).sum().backward()
        assert bank.route is not None
        mask = layer.dropout_mask(x, bank.route)
    assert mask is not None
    values, counts = mask.unique(return_counts=True)
    assert torch.allclose(values, torch.tensor([0.0, 1 / 0.6], dtype=torch.float64))
    assert 0.3 < counts[0] / counts.sum() < 0.5

    again = x.detach().clone().requires_grad_()
    a, b = (part.detach().clone().requires_grad_() for part in (layer.a(bank.weights), layer.b(bank.weights)))
    update = torch.einsum("stc,src,sor->sto", again * mask, a, b) * 2.0
    expected = again @ layer.base.weight.t() + update
    (expected * weight).sum().backward()
    gradients = bank.ensure_gradients()
    pairs = [(x.grad, again.grad), (layer.a(gradients), a.grad), (layer.b(gradients), b.grad)]
    for ours, theirs in pairs:
        assert ours is not None
        assert theirs is not None
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_rounds_once(families: dict[str, Path], autocast: bool) -> None:
    """The scale lies between two bf16 numbers; a rounded one would be 0.3 % wrong everywhere."""
    precision = "fp32" if autocast else "bf16"
    base = load_model(str(families["llama"]), precision=precision)
    bank = Bank(base, slots=1, rank=3, target_modules=["gate_proj"])
    bank.join(1, MethodConfig(rank=3, alpha=8.412, target_modules=["gate_proj"]), seed=0)
    bank.weights.normal_(std=1.0, generator=torch.Generator().manual_seed(0))
    layer = bank.layers["model.layers.0.mlp.gate_proj"]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 64, 32, generator=generator).to(torch.float32 if autocast else torch.bfloat16)
    weight = torch.randn(1, 64, 48, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), bank.asking([1], [64]):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    with bank.asking([1], [64]):
        (output.float() * weight).sum().backward()
    a, b = (part[0].bfloat16().double().requires_grad_() for part in (layer.a(bank.weights), layer.b(bank.weights)))
    inputs = x.bfloat16().double()[0]
    update = (inputs @ a.t()) @ b.t() * (8.412 / 3)
    exact = inputs @ layer.base.weight.bfloat16().double().t() + update
    (exact * weight[0]).sum().backward()
    gradients = bank.ensure_gradients()
    sides = [(output[0], exact), (layer.a(gradients)[0], a.grad), (layer.b(gradients)[0], b.grad)]
    for ours, theirs in sides:
        assert theirs is not None
        # The common factor: a least-squares fit, in which independent roundings average out.
        ours, theirs = ours.detach().double(), theirs.detach()
        assert float((ours * theirs).sum() / theirs.square().sum()) == pytest.approx(1.0, abs=1e-3)
        assert torch.allclose(ours, theirs, rtol=0.05, atol=0.02 * float(theirs.abs().max()))


def test_gradients_of_several_batches_add_up(families: dict[str, Path]) -> None:
    bank, _, _ = world(families["llama"])
    gradients = []
    for parts in ([range(5)], [range(2), range(2, 5)]):
        bank.ensure_gradients().zero_()
        for part in parts:
            slots = [SLOTS[row] for row in part]
            with bank.asking(slots, [12] * len(slots)):
                loss(logits(bank.model, ROWS[list(part)]), ROWS[list(part)]).sum().backward()
        gradients.append(bank.ensure_gradients().clone())
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60)), min_size=1, max_size=8))
def test_a_route_gives_every_slot_its_own_tokens(examples: list[tuple[int, int]]) -> None:
    slots, lengths = zip(*examples, strict=True)
    route = make_route(slots, lengths, device=torch.device("cpu"), dropout={})
    owner = torch.repeat_interleave(torch.tensor(slots), torch.tensor(lengths))
    if route is None:
        assert not owner.any()
        return
    rows = torch.arange(4)[route.rows] if isinstance(route.rows, slice) else route.rows
    assert len(rows) == route.num_runs
    # Every position of a run holds a token of the run's slot, padding too.
    x = torch.stack([owner, torch.arange(len(owner))], dim=1)
    spread = route.spread(x)
    assert torch.equal(spread[..., 0], (rows + 1)[:, None].expand(-1, route.width))
    assert route.num_runs * route.width <= 2 * len(route.tokens)
    # A gradient comes from each token once, and goes back to it.
    ones = torch.ones((len(owner), 1), dtype=torch.float64)
    assert float(route.spread_gradient(ones).sum()) == float((owner != 0).sum())
    back = route.add(torch.zeros_like(ones), route.spread_gradient(ones))
    assert torch.equal(back.squeeze(1), (owner != 0).double())


def test_unequal_slots_are_answered_as_alone(families: dict[str, Path]) -> None:
    """One slot has many times the tokens of the others, as a prompt beside answers under way has."""
    bank, _, _ = world(families["llama"])
    rows = torch.randint(3, 61, (9, 12), generator=torch.Generator().manual_seed(9))
    slots = [1, 2, 2, 2, 2, 2, 2, 2, 3]
    with bank.asking(slots, [12] * 9):
        assert bank.route is not None
        assert bank.route.num_runs > 3
        together = logits(bank.model, rows)
        loss(together, rows).sum().backward()
    gradients = bank.ensure_gradients().clone()
    bank.ensure_gradients().zero_()
    for slot in (1, 2, 3):
        mine = [row for row, owner in enumerate(slots) if owner == slot]
        with bank.asking([slot] * len(mine), [12] * len(mine)):
            alone = logits(bank.model, rows[mine])
            loss(alone, rows[mine]).sum().backward()
        assert torch.allclose(together[mine], alone, rtol=0.0, atol=1e-12)
    assert torch.allclose(bank.ensure_gradients(), gradients, rtol=1e-10, atol=1e-12)


def test_recomputed_activations_change_nothing(families: dict[str, Path]) -> None:
    gradients = []
    for checkpointing in (False, True):
        bank, _, _ = world(families["llama"])
        model: Any = bank.model
        if checkpointing:
            recompute_activations(model)
            model.train()
        with bank.asking(SLOTS, [12] * 5):
            loss(logits(model, ROWS), ROWS).sum().backward()
        gradients.append(bank.ensure_gradients())
    assert torch.allclose(*gradients, rtol=1e-12, atol=1e-14)


def test_a_base_in_bf16_has_slots_in_fp32(families: dict[str, Path]) -> None:
    base = load_model(str(families["llama"]), precision="bf16")
    bank = Bank(base, slots=1, rank=4)
    bank.join(1, MethodConfig(rank=4), seed=0)
    bank.weights.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    with bank.asking([1, 0], [12] * 2):
        values = logits(bank.model, ROWS[:2])
        loss(values.float(), ROWS[:2]).sum().backward()
    assert values.dtype == torch.bfloat16
    assert bank.weights.dtype == bank.ensure_gradients().dtype == torch.float32
    assert bank.ensure_gradients().abs().sum() > 0


def test_detached_the_model_is_its_base_again(families: dict[str, Path]) -> None:
    bank, _, base = world(families["gpt2"])
    bank.detach()
    with torch.no_grad():
        assert torch.equal(logits(bank.model, ROWS), logits(base, ROWS))
    assert [name for name, _ in bank.model.named_parameters()] == [name for name, _ in base.named_parameters()]


def test_what_does_not_fit_is_refused(families: dict[str, Path]) -> None:
    base = load_model(str(families["llama"]))
    with pytest.raises(InputError) as caught:
        Bank(copy.deepcopy(base), slots=1, rank=4, target_modules=["nothing"])
    assert caught.value.kind == "unknown_target"
    bank = Bank(base, slots=1, rank=4, target_modules=["q_proj"])
    with pytest.raises(InputError) as caught:
        bank.join(1, MethodConfig(rank=5, target_modules=["q_proj"]), seed=0)
    assert (caught.value.kind, caught.value.given) == ("rank_too_large", 5)
    with pytest.raises(InputError) as caught:
        bank.join(1, MethodConfig(rank=2, target_modules=["v_proj"]), seed=0)
    assert caught.value.kind == "unknown_target"
    factors = {"model.layers.0.self_attn.q_proj": (torch.zeros(2, 31), torch.zeros(32, 2))}
    with pytest.raises(InputError) as caught:
        bank.put(1, Adapter(rank=2, alpha=2.0, layers=tuple(factors)), factors)
    assert caught.value.kind == "adapter_mismatch"
    assert bank.adapters == {}
    with pytest.raises(AssertionError, match="slot 0"):
        bank.leave(0)


def test_a_quantised_base_is_refused(families: dict[str, Path]) -> None:
    base = load_model(str(families["llama"]))
    quantised = torch.nn.Linear(32, 32, bias=False)
    quantised.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    base.set_submodule("model.layers.1.self_attn.q_proj", quantised)
    with pytest.raises(InputError) as caught:
        Bank(base, slots=1, rank=4)
    assert caught.value.kind == "quantised_base"


def test_a_layer_that_computes_more_than_a_product_is_refused(families: dict[str, Path]) -> None:
    class Rounded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.round())

    base = load_model(str(families["llama"]))
    base.set_submodule("model.layers.1.self_attn.q_proj", Rounded(32, 32, bias=False))
    with pytest.raises(InputError) as caught:
        Bank(base, slots=1, rank=4)
    assert (caught.value.kind, caught.value.given) == ("unsupported_target", "Rounded")


def test_the_output_head_has_no_slots(families: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="only some of a batch's tokens") as caught:
        Bank(load_model(str(families["llama"])), slots=1, rank=4, target_modules=["q_proj", "lm_head"])
    assert caught.value.kind == "unsupported_target"


def test_the_bases_weights_can_be_read_past_the_slots(families: dict[str, Path]) -> None:
    bank, _, base = world(families["qwen2"])
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"):
        layer, own = bank.model.get_submodule(name), base.get_submodule(name)
        assert torch.equal(layer.weight, own.weight)  # type: ignore[arg-type]
        assert (layer.bias is None) == (own.bias is None)


def test_a_model_has_one_bank(families: dict[str, Path]) -> None:
    bank, _, _ = world(families["llama"])
    with pytest.raises(AssertionError, match="a bank already"):
        Bank(bank.model, slots=1, rank=2)


@pytest.mark.parametrize("slot", [-1, 4, 7])
def test_only_slots_that_hold_something_are_asked(families: dict[str, Path], slot: int) -> None:
    bank, _, _ = world(families["llama"])
    with pytest.raises(AssertionError, match="holds no adapter"), bank.asking([1, slot], [12, 12]):
        pass
    with pytest.raises(AssertionError, match="holds no adapter"):
        bank.fork(slot, 1)
    with pytest.raises(AssertionError, match="into another"):
        bank.fork(1, 1)


def test_a_batch_that_is_not_what_the_slots_were_told_is_an_error(families: dict[str, Path]) -> None:
    bank, _, _ = world(families["llama"])
    with pytest.raises(AssertionError, match="tokens"), bank.asking([1], [11]):
        logits(bank.model, ROWS[:1])
