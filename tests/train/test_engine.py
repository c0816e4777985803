"""The reference engine: how a step is shared out changes nothing; clipping, decay and precision do what they say."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch

from ftray.data.collate import collate
from ftray.model.forward import label_losses
from ftray.train.batches import count_labels
from ftray.train.engine import LossScaler, autocast, make_optimizer, parameter_groups, trainable

STEPS = 8


@pytest.fixture(scope="module")
def reference(tiny: ModuleType) -> Any:
    """Return the losses of one forward pass of 8 rows per step."""
    return tiny.run(tiny.engine(), tiny.plan(micro_batch_size=8), STEPS)


def test_the_reference_learns(reference: Any) -> None:
    assert reference.losses[0] == pytest.approx(math.log(96), rel=0.1)
    assert reference.losses[-1] < reference.losses[0]
    assert all(0.01 < norm < 100 for norm in reference.norms)


@pytest.mark.parametrize(
    "how",
    [
        {"micro_batch_size": 4}, {"micro_batch_size": 2}, {"micro_batch_size": 1},
        {"sequence_packing": True}, {"sequence_packing": True, "micro_batch_size": 1},
    ],
    ids=str,
)  # fmt: skip
def test_how_a_step_is_cut_into_forward_passes_does_not_change_it(
    tiny: ModuleType, reference: Any, how: dict[str, Any]
) -> None:
    got = tiny.run(tiny.engine(), tiny.plan(**how), STEPS)
    assert got.losses == pytest.approx(reference.losses, rel=1e-6)
    assert got.norms == pytest.approx(reference.norms, rel=1e-4)


def test_padded_rows_have_the_losses_of_flat_ones(tiny: ModuleType, reference: Any) -> None:
    got = tiny.run(tiny.engine(), tiny.plan(micro_batch_size=8), STEPS, layout="padded")
    assert got.losses == pytest.approx(reference.losses, rel=1e-6)


def test_full_fine_tuning_does_not_depend_on_micro_batches(tiny: ModuleType) -> None:
    whole = tiny.run(tiny.engine("full"), tiny.plan("full", micro_batch_size=8), 5)
    cut = tiny.run(tiny.engine("full"), tiny.plan("full", micro_batch_size=3), 5)
    assert cut.losses == pytest.approx(whole.losses, rel=1e-6)


def test_the_loss_is_averaged_over_the_labels_of_the_whole_step(tiny: ModuleType) -> None:
    engine = tiny.engine()
    rows = [tiny.example([3, 4, 5], row=0), tiny.example(range(3, 33), row=1)]
    batches = [collate([row], "flat") for row in rows]
    labels = count_labels(rows)
    losses = engine.accumulate(batches, normaliser=labels)
    accumulated = {name: p.grad.clone() for name, p in trainable(engine.model).items()}
    engine.model.zero_grad()
    mean = label_losses(engine.model, collate(rows, "flat")).mean()
    mean.backward()
    assert float(sum(loss.sum() for loss in losses)) / labels == pytest.approx(float(mean.detach()), rel=1e-6)
    for name, parameter in trainable(engine.model).items():
        torch.testing.assert_close(parameter.grad, accumulated[name], rtol=1e-4, atol=1e-7)


def test_a_batch_without_labels_adds_nothing(tiny: ModuleType) -> None:
    engine = tiny.engine()
    silent = tiny.example(range(3, 9), [False] * 6)
    (loss,) = engine.accumulate([collate([silent], "flat")], normaliser=5)
    assert loss.shape == (0,)
    assert all(not p.grad.any() for p in trainable(engine.model).values())


# Optimizer


def test_only_matrices_decay(tiny: ModuleType) -> None:
    decaying, still = parameter_groups(tiny.model("full"), 0.1)
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.1, 0.0)
    assert {parameter.dim() for parameter in decaying["params"]} == {2}  # type: ignore[attr-defined]
    assert {parameter.dim() for parameter in still["params"]} == {1}  # type: ignore[attr-defined]
    assert len(parameter_groups(tiny.model("lora"), 0.1)) == 1


def test_decay_moves_matrices_and_leaves_vectors(tiny: ModuleType) -> None:
    states = []
    for decay in (0.0, 0.5):
        changes = {"weight_decay": decay, "learning_rate": 0.1, "warmup": 0}
        engine = tiny.engine("full", **changes)
        tiny.run(engine, tiny.plan("full", **changes), 1)
        states.append({name: p.detach() for name, p in trainable(engine.model).items()})
    still, decayed = states
    for name, weight in still.items():
        if weight.dim() == 1:
            assert torch.equal(decayed[name], weight), name
        else:
            before = dict(tiny.model("full").named_parameters())[name]
            torch.testing.assert_close(decayed[name], weight - 0.1 * 0.5 * before.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("limit", [1e-3, 0.0])
def test_gradients_are_clipped_to_the_norm_that_is_reported_before(tiny: ModuleType, limit: float) -> None:
    engine = tiny.engine(max_grad_norm=limit)
    (norm,) = tiny.run(engine, tiny.plan(max_grad_norm=limit), 1).norms
    assert norm > 1e-2
    # Adam's first moment after one step is (1 - beta1) times the gradient it saw.
    seen = math.sqrt(sum(float((state.moments[0] / 0.1).pow(2).sum()) for state in engine.states()))
    assert seen == pytest.approx(limit or norm, rel=1e-3)


def test_label_smoothing_changes_the_training_loss_only(tiny: ModuleType) -> None:
    batch = collate(tiny.examples()[:4], "flat")
    plain, smooth = tiny.engine(), tiny.engine(label_smoothing=0.3)
    (hard,), (soft,) = (engine.accumulate([batch], normaliser=1) for engine in (plain, smooth))
    assert not torch.allclose(hard, soft)
    with torch.no_grad():
        assert torch.equal(label_losses(smooth.model, batch), hard)
        assert torch.equal(label_losses(smooth.model, batch, label_smoothing=0.3), soft)


def test_the_learning_rate_is_set_at_every_step(tiny: ModuleType) -> None:
    engine = tiny.engine()
    before = tiny.state(engine)
    engine.accumulate([collate(tiny.examples()[:2], "flat")], normaliser=20)
    engine.step(0.0)
    assert all(torch.equal(weight, tiny.state(engine)[name]) for name, weight in before.items())


def test_optimizer_bytes_are_two_moments_and_a_step_count(tiny: ModuleType) -> None:
    engine = tiny.engine()
    assert engine.optimizer_bytes() == 0
    tiny.run(engine, tiny.plan(), 1)
    parameters = trainable(engine.model).values()
    assert engine.optimizer_bytes() == sum(8 * p.numel() + 4 for p in parameters)


# State


@pytest.mark.parametrize("method", ["lora", "full"])
def test_states_put_into_a_fresh_engine_go_on_bit_for_bit(tiny: ModuleType, method: str) -> None:
    engine, plan = tiny.engine(method), tiny.plan(method)
    first = tiny.run(engine, plan, 3)
    fresh = tiny.engine(method)
    fresh.load_states(list(engine.states()), optimizer_step=first.training.progress.optimizer_steps)
    assert tiny.is_equal(tiny.state(fresh), tiny.state(engine))
    start = first.training.progress
    copied = type(start).from_record(start.to_record())
    rest = tiny.run(engine, plan, 3, start=start)
    again = tiny.run(fresh, plan, 3, start=copied)
    assert again.losses == rest.losses
    assert tiny.is_equal(tiny.state(fresh), tiny.state(engine))


def test_weights_alone_leave_the_moments(tiny: ModuleType) -> None:
    engine = tiny.engine()
    tiny.run(engine, tiny.plan(), 2)
    moments = {name: tensor for name, tensor in tiny.state(engine).items() if "|" in name}
    engine.load_weights({name: torch.zeros_like(p) for name, p in engine.parameters.items()})
    after = tiny.state(engine)
    assert all(torch.equal(after[name], moment) for name, moment in moments.items())
    assert not any(tensor.any() for name, tensor in after.items() if "|" not in name)


def test_a_fresh_engine_has_no_moments(tiny: ModuleType) -> None:
    assert all(state.moments is None for state in tiny.engine().states())


# Precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_fp32(tiny: ModuleType, reference: Any, precision: str) -> None:
    engine = tiny.engine(precision=precision)
    got = tiny.run(engine, tiny.plan(precision=precision), STEPS)
    assert got.losses == pytest.approx(reference.losses, rel=0.02)
    assert got.losses != reference.losses
    assert {p.dtype for p in trainable(engine.model).values()} == {torch.float32}


def test_fp16_skips_an_overflow_and_lowers_its_scale(tiny: ModuleType) -> None:
    engine, plan = tiny.engine(precision="fp16"), tiny.plan(precision="fp16")
    engine.scaler.scale = 2.0**40
    before = tiny.state(engine)
    first = tiny.run(engine, plan, 1)
    assert not math.isfinite(first.norms[0])
    assert tiny.is_equal(tiny.state(engine), before)
    assert engine.scaler.scale == 2.0**39
    progress = first.training.progress
    assert (progress.step, progress.optimizer_steps) == (1, 0)
    engine.scaler.scale = 2.0**10
    second = tiny.run(engine, plan, 1, start=progress)
    assert math.isfinite(second.norms[0])
    assert not tiny.is_equal(tiny.state(engine), before)
    assert second.training.progress.optimizer_steps == 1


def test_the_loss_scale_halves_and_doubles() -> None:
    scaler = LossScaler("fp16")
    assert scaler.scale == 2.0**16
    scaler.update(overflowed=True)
    assert scaler.scale == 2.0**15
    for _ in range(scaler.GROWTH_INTERVAL):
        scaler.update(overflowed=False)
    assert scaler.scale == 2.0**16
    scaler.scale = 1.0
    scaler.update(overflowed=True)
    assert scaler.scale == 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_have_no_loss_scale(precision: str) -> None:
    scaler = LossScaler(precision)
    scaler.update(overflowed=True)
    assert (scaler.scale, scaler.good_steps) == (1.0, 0)


def test_fp32_is_plain_arithmetic() -> None:
    with autocast("fp32", torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("bf16", torch.device("cpu")):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_the_optimizer_starts_without_a_learning_rate(tiny: ModuleType) -> None:
    (group,) = make_optimizer(tiny.model(), 0.0).param_groups
    assert group["lr"] == 0.0
