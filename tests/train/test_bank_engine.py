"""Trainings that share a base give what separate PEFT trainings give, and do not feel each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_world import EQUAL_FAMILIES, METHODS, RANK, compute_norms_in_own_dtype, factors_of, world
from torch import Tensor
from torch.nn import functional

from ftray.data.collate import Batch, Layout, collate
from ftray.data.tokenization import TokenizedExample
from ftray.errors import InputError
from ftray.model.bank import Bank, Factors
from ftray.model.base import load_model, recompute_activations
from ftray.model.config import MethodConfig
from ftray.model.forward import layout_for
from ftray.train.bank_engine import BankEngine

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
STEPS = 20
RATES = {1: 1e-3, 2: 2e-3, 3: 5e-4}
DECAY = {1: 0.0, 2: 0.1, 3: 0.0}
LIMITS = {1: 1.0, 2: 0.5, 3: 0.0}


def example(slot: int, step: int, row: int) -> TokenizedExample:
    generator = np.random.default_rng([slot, step, row])
    length = int(generator.integers(5, 14))
    return TokenizedExample(
        tokens=generator.integers(3, 61, size=length).astype(np.int32),
        is_label=np.arange(length) >= 2,
        prompt_length=2,
        dataset="train",
        row=row,
        digest=f"{slot}-{step}-{row}",
    )


def examples(slot: int, step: int) -> list[TokenizedExample]:
    """Return a step's rows of one training: each training has its own, and its own number of them."""
    return [example(slot, step, row) for row in range(1 + (slot + step) % 3)]


def num_labels(rows: list[TokenizedExample]) -> int:
    return sum(int(row.is_label[1:].sum()) for row in rows)


def together(order: list[int], step: int, layout: Layout) -> tuple[Batch, list[int]]:
    """Return one batch of the step's rows of several trainings, interleaved, and each row's slot."""
    rows = [(row, slot) for slot in order for row in examples(slot, step)]
    rows = rows[::2] + rows[1::2]
    return collate([row for row, _ in rows], layout), [slot for _, slot in rows]


def train_in_bank(engine: BankEngine, order: list[int], first: int = 0, last: int = STEPS) -> list[dict[int, float]]:
    """Train these slots for the steps; return the mean loss of each slot at each step."""
    layout = layout_for(engine.bank.model)
    history = []
    for step in range(first, last):
        batch, slots = together(order, step, layout)
        normalisers = {slot: float(num_labels(examples(slot, step))) for slot in order}
        sums = engine.accumulate(batch, slots, normalisers=normalisers)
        engine.step({slot: RATES[slot] for slot in order}, max_grad_norm={slot: LIMITS[slot] for slot in order})
        history.append({slot: sums[slot] / normalisers[slot] for slot in order})
    return history


def train_alone(model: Any, slot: int) -> list[float]:
    """Train a PEFT model by itself, one padded row at a time, with torch's own optimizer."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATES[slot], betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY[slot])
    history = []
    for step in range(STEPS):
        rows = examples(slot, step)
        total = torch.zeros((), dtype=next(model.parameters()).dtype)
        for row in rows:
            tokens = torch.from_numpy(row.tokens.astype(np.int64))[None]
            logits: Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
            labels = tokens[0, 1:].masked_fill(~torch.from_numpy(row.is_label[1:]), -100)
            total = total + functional.cross_entropy(logits[0, :-1], labels, reduction="sum", ignore_index=-100)
        loss = total / num_labels(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, LIMITS[slot] or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
    return history


def engine_of(bank: Bank) -> BankEngine:
    engine = BankEngine(bank)
    for slot in METHODS:
        engine.start(slot, weight_decay=DECAY[slot])
    return engine


def largest_difference(ours: Factors, theirs: Factors) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[layer][half] - theirs[layer][half]).abs().max()) for layer in ours for half in (0, 1))


@pytest.mark.parametrize("family", EQUAL_FAMILIES)
def test_twenty_steps_are_those_of_separate_trainings(families: dict[str, Path], family: str) -> None:
    bank, models, _ = world(families[family])
    before = {slot: bank.take(slot) for slot in METHODS}
    history = train_in_bank(engine_of(bank), [1, 2, 3])
    for slot, model in models.items():
        losses = train_alone(model, slot)
        assert largest_difference(bank.take(slot), factors_of(model)) < 1e-8
        assert largest_difference(bank.take(slot), before[slot]) > 1e-3
        assert np.allclose([step[slot] for step in history], losses, rtol=1e-9)
    # What is beyond an adapter's rank, or no target of it, stayed exactly 0.
    for slot in METHODS:
        row = bank.weights[slot - 1].clone()
        rest = {name: (torch.zeros_like(a), torch.zeros_like(b)) for name, (a, b) in bank.take(slot).items()}
        bank.write(slot, rest, rows=bank.weights)
        assert not bank.weights[slot - 1].any()
        bank.weights[slot - 1] = row


@pytest.mark.parametrize("family", EQUAL_FAMILIES)
def test_losses_in_fp32_are_those_of_separate_trainings(families: dict[str, Path], family: str) -> None:
    bank, models, _ = world(families[family], dtype=torch.float32)
    history = train_in_bank(engine_of(bank), [1, 2, 3])
    for slot, model in models.items():
        # Adam amplifies rounding where a gradient is about 0, and processors round differently: 1.05e-5 was seen.
        assert np.allclose([step[slot] for step in history], train_alone(model, slot), rtol=0.0, atol=3e-5)


def test_permuted_slots_train_otherwise(families: dict[str, Path]) -> None:
    bank, _, _ = world(families["llama"])
    engine = engine_of(bank)
    batch, slots = together([1, 2, 3], 0, layout_for(bank.model))
    wrong = [{1: 2, 2: 3, 3: 1}[slot] for slot in slots]
    sums = engine.accumulate(batch, wrong, normalisers=dict.fromkeys(METHODS, 1.0))
    expected = engine.accumulate(batch, slots, normalisers=dict.fromkeys(METHODS, 1.0))
    assert all(abs(sums[{1: 2, 2: 3, 3: 1}[slot]] - expected[slot]) > 1e-3 for slot in METHODS)


def test_the_order_of_the_slots_changes_nothing(families: dict[str, Path]) -> None:
    results = []
    for order in ([1, 2, 3], [3, 1, 2]):
        bank, _, _ = world(families["llama"])
        train_in_bank(engine_of(bank), order)
        results.append({slot: bank.take(slot) for slot in METHODS})
    assert all(largest_difference(results[0][slot], results[1][slot]) < 1e-10 for slot in METHODS)


def test_joining_and_leaving_leave_the_others_as_they_were(families: dict[str, Path]) -> None:
    alone, _, _ = world(families["llama"])
    train_in_bank(engine_of(alone), [2])
    bank, _, _ = world(families["llama"])
    engine = engine_of(bank)
    train_in_bank(engine, [1, 2], 0, 7)
    engine.leave(1)
    train_in_bank(engine, [2], 7, 12)
    engine.join(1, MethodConfig(rank=RANK), seed=5, weight_decay=0.0)
    train_in_bank(engine, [3, 2, 1], 12, STEPS)
    assert largest_difference(bank.take(2), alone.take(2)) < 1e-10


def test_a_slot_of_nans_keeps_its_weights_and_disturbs_nobody(families: dict[str, Path]) -> None:
    results = []
    for broken in (False, True):
        bank, _, _ = world(families["llama"])
        engine = engine_of(bank)
        if broken:
            bank.weights[0] = float("nan")
        batch, slots = together([1, 2, 3], 0, layout_for(bank.model))
        engine.accumulate(batch, slots, normalisers=dict.fromkeys(METHODS, 10.0))
        norms = engine.step(RATES)
        results.append((norms, bank.weights.clone(), engine.exp_avg.clone(), engine.steps.clone()))
    (norms, weights, moments, steps), (broken_norms, *others) = results
    assert np.isnan(broken_norms[1])
    assert [broken_norms[slot] for slot in (2, 3)] == [norms[slot] for slot in (2, 3)]
    assert torch.equal(others[0][1:], weights[1:])
    assert torch.equal(others[1][1:], moments[1:])
    assert others[2].tolist() == [0.0, 1.0, 1.0]
    assert steps.tolist() == [1.0, 1.0, 1.0]
    assert not others[1][0].any()


def test_a_non_finite_gradient_skips_one_slots_step(families: dict[str, Path]) -> None:
    bank, _, _ = world(families["llama"])
    engine = engine_of(bank)
    train_in_bank(engine, [1, 2, 3], 0, 2)
    before = bank.weights.clone()
    batch, slots = together([1, 2, 3], 2, layout_for(bank.model))
    engine.accumulate(batch, slots, normalisers=dict.fromkeys(METHODS, 10.0))
    bank.ensure_gradients()[1, 0] = float("inf")
    norms = engine.step(RATES, max_grad_norm=1.0)
    assert norms[2] == float("inf")
    assert torch.equal(bank.weights[1], before[1])
    assert not torch.equal(bank.weights[0], before[0])
    assert engine.steps.tolist() == [3.0, 2.0, 3.0]
    assert not bank.ensure_gradients().any()


def test_a_saved_training_goes_on_in_another_slot_of_another_bank(families: dict[str, Path]) -> None:
    whole, _, _ = world(families["llama"])
    train_in_bank(engine_of(whole), [1, 2, 3])
    bank, _, _ = world(families["llama"])
    engine = engine_of(bank)
    train_in_bank(engine, [1, 2, 3], 0, 9)
    saved = engine.state(2)
    assert saved.steps == 9

    base: Any = load_model(str(families["llama"])).double()
    compute_norms_in_own_dtype(base)
    other = Bank(base, slots=2, rank=5)
    moved = BankEngine(other)
    moved.restore(1, saved)
    moved.fork(1, 2)
    layout = layout_for(other.model)
    for step in range(9, STEPS):
        rows = examples(2, step)
        batch = collate(rows * 2, layout)
        normaliser = float(num_labels(rows))
        moved.accumulate(batch, [1] * len(rows) + [2] * len(rows), normalisers={1: normaliser, 2: normaliser})
        moved.step({1: RATES[2], 2: RATES[2]}, max_grad_norm=LIMITS[2])
    assert largest_difference(other.take(1), whole.take(2)) < 1e-10
    assert largest_difference(other.take(2), whole.take(2)) < 1e-10


def test_recomputed_activations_give_the_same_steps(families: dict[str, Path]) -> None:
    kept, _, _ = world(families["llama"])
    train_in_bank(engine_of(kept), [1, 2, 3], 0, 3)
    bank, _, _ = world(families["llama"])
    model: Any = bank.model
    recompute_activations(model)
    calls: list[int] = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    train_in_bank(engine_of(bank), [1, 2, 3], 0, 3)
    assert len(calls) == 2 * 3
    assert torch.allclose(bank.weights, kept.weights, rtol=0.0, atol=1e-12)


def test_the_base_drops_nothing_while_slots_train(families: dict[str, Path]) -> None:
    base: Any = load_model(str(families["gpt2"]))
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    bank = Bank(base, slots=1, rank=2)
    engine = BankEngine(bank)
    engine.join(1, MethodConfig(rank=2), seed=0, weight_decay=0.0)
    rows = examples(1, 0)
    batch = collate(rows, layout_for(base))
    losses = [engine.accumulate(batch, [1] * len(rows), normalisers={1: 1.0}) for _ in range(2)]
    assert losses[0] == losses[1]


def test_micro_batches_add_up(families: dict[str, Path]) -> None:
    results = []
    for split in (False, True):
        bank, _, _ = world(families["llama"])
        engine = engine_of(bank)
        rows = [(row, slot) for slot in METHODS for row in examples(slot, 1)]
        normalisers = {slot: float(num_labels(examples(slot, 1))) for slot in METHODS}
        for part in (rows[::2], rows[1::2]) if split else (rows,):
            batch = collate([row for row, _ in part], layout_for(bank.model))
            slots = [slot for _, slot in part]
            engine.accumulate(batch, slots, normalisers=normalisers)
        results.append(engine.step(RATES))
    assert results[0] == pytest.approx(results[1], rel=1e-10)


def test_norms_are_pefts(families: dict[str, Path]) -> None:
    bank, models, _ = world(families["llama"])
    engine = engine_of(bank)
    batch, slots = together([1, 2, 3], 0, layout_for(bank.model))
    normalisers = {slot: float(num_labels(examples(slot, 0))) for slot in METHODS}
    engine.accumulate(batch, slots, normalisers=normalisers)
    norms = engine.step(RATES)
    for slot, model in models.items():
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for row in examples(slot, 0):
            tokens = torch.from_numpy(row.tokens.astype(np.int64))[None]
            labels = tokens[0, 1:].masked_fill(~torch.from_numpy(row.is_label[1:]), -100)
            values: Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, :-1]
            (functional.cross_entropy(values, labels, reduction="sum") / normalisers[slot]).backward()
        assert norms[slot] == pytest.approx(
            float(torch.nn.utils.get_total_norm([p.grad for p in parameters])), rel=1e-9
        )


def test_who_does_not_step_keeps_its_gradients(families: dict[str, Path]) -> None:
    bank, _, _ = world(families["llama"])
    engine = engine_of(bank)
    batch, slots = together([1, 2, 3], 0, layout_for(bank.model))
    engine.accumulate(batch, slots, normalisers=dict.fromkeys(METHODS, 1.0))
    before, weights = bank.ensure_gradients().clone(), bank.weights.clone()
    engine.step({2: 1e-3})
    assert torch.equal(bank.ensure_gradients()[[0, 2]], before[[0, 2]])
    assert not bank.ensure_gradients()[1].any()
    assert torch.equal(bank.weights[[0, 2]], weights[[0, 2]])
    assert engine.steps.tolist() == [0.0, 1.0, 0.0]


def test_a_slot_filled_behind_the_engines_back_is_an_error(families: dict[str, Path]) -> None:
    bank, _, _ = world(families["llama"])
    engine = engine_of(bank)
    bank.join(1, MethodConfig(rank=2), seed=0)
    batch, slots = together([1, 2], 0, layout_for(bank.model))
    with pytest.raises(AssertionError, match="behind the engine"):
        engine.accumulate(batch, slots, normalisers=dict.fromkeys(METHODS, 1.0))
    with pytest.raises(AssertionError, match="not in training"):
        engine.step({0: 1e-3})
    engine.leave(1)
    with pytest.raises(AssertionError, match="not in training"):
        engine.step({1: 1e-3})
    # A smaller adapter after a larger one: nothing of the old one's moments reaches the padding.
    engine.join(1, MethodConfig(rank=2), seed=0, weight_decay=0.0)
    train_in_bank(engine, [1], 0, 2)
    row = bank.weights[0].clone()
    rest = {name: (torch.zeros_like(a), torch.zeros_like(b)) for name, (a, b) in bank.take(1).items()}
    bank.write(1, rest, rows=bank.weights)
    assert row.any()
    assert not bank.weights[0].any()


def test_fp16_is_refused(families: dict[str, Path]) -> None:
    bank, _, _ = world(families["llama"])
    with pytest.raises(InputError) as caught:
        BankEngine(bank, precision="fp16")
    assert caught.value.path == "train.precision"


def test_dropout_without_a_seed_is_an_error(families: dict[str, Path]) -> None:
    bank = Bank(load_model(str(families["llama"])), slots=1, rank=2)
    engine = BankEngine(bank)
    engine.join(1, MethodConfig(rank=2, dropout=0.1), seed=0, weight_decay=0.0)
    rows = examples(1, 0)
    batch = collate(rows, layout_for(bank.model))
    with pytest.raises(AssertionError, match="no seed"):
        engine.accumulate(batch, [1] * len(rows), normalisers={1: 1.0})
    engine.accumulate(batch, [1] * len(rows), normalisers={1: 1.0}, dropout_seeds={1: 3})
    assert engine.step({1: 1e-3})[1] > 0
