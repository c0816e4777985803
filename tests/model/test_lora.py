"""Our LoRA layer computes what PEFT's does, starts as the base, and can be taken off."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OPTConfig

from ftray.errors import InputError
from ftray.model.base import load_model, recompute_activations
from ftray.model.config import MethodConfig
from ftray.model.lora import (
    attach_lora,
    base_only,
    disk_name,
    load_adapter_weights,
    save_adapter_config,
    train_adapter_only,
)
from ftray.model.lora_linear import FoldedLoraLinear

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
INPUTS = {"input_ids": torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])}


@pytest.fixture
def base(families: dict[str, Path]) -> Any:
    """Return a model whose q, k and v layers have a bias and whose others have none."""
    return load_model(str(families["qwen2"]))


def attach(base: nn.Module, **method: Any) -> PeftModel:
    return attach_lora(base, MethodConfig(**method), base_name="some/base", seed=0)


def fill(model: nn.Module) -> None:
    """Give both factors values, so that the update is not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def layers(model: nn.Module, cls: type[nn.Module]) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if type(module) is cls}


def run(layer: nn.Module, x: Tensor, weight: Tensor) -> list[Tensor]:
    """Return the output and every gradient."""
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    output = layer(x)
    (output * weight).sum().backward()
    return [output, x.grad, *(p.grad for _, p in sorted(layer.named_parameters()) if p.requires_grad)]  # type: ignore[list-item]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "method",
    [{"rank": 4, "alpha": 8}, {"rank": 3, "alpha": 5.5, "rslora": True}, {"rank": 2, "alpha": 2, "dropout": 0.4}],
    ids=["plain", "rslora", "dropout"],
)
def test_the_folded_layer_is_pefts_layer(base: Any, method: dict[str, Any], training: bool) -> None:
    from peft.tuners.lora import Linear

    ours = attach(copy.deepcopy(base), **method)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=method["rank"], lora_alpha=method["alpha"], target_modules="all-linear",
        lora_dropout=method.get("dropout", 0.0), use_rslora=method.get("rslora", False),
    )  # fmt: skip
    theirs = get_peft_model(base, config)
    for model in (ours, theirs):
        fill(model)
        model.double().train(training)
    folded, plain = layers(ours, FoldedLoraLinear), layers(theirs, Linear)
    assert folded.keys() == plain.keys()
    assert {layer.base_layer.bias is None for layer in folded.values()} == {True, False}
    generator = torch.Generator().manual_seed(2)
    for name in folded:
        x = torch.randn(2, 3, folded[name].in_features, generator=generator, dtype=torch.float64)
        weight = torch.randn(2, 3, folded[name].out_features, generator=generator, dtype=torch.float64)
        got, expected = run(folded[name], x, weight), run(plain[name], x, weight)
        assert len(got) == len(expected) == 4
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=name)


def test_the_first_layer_needs_no_gradient_of_its_input(base: Any) -> None:
    model = attach(base, rank=4)
    fill(model)
    layer = next(iter(layers(model, FoldedLoraLinear).values()))
    layer(torch.randn(3, layer.in_features)).sum().backward()
    assert all(parameter.grad is not None for name, parameter in layer.named_parameters() if "lora_" in name)
    assert layer.base_layer.weight.grad is None


def test_mixed_precision_is_the_inputs_rounding_away_from_fp32(base: Any) -> None:
    model = attach(base, rank=4)
    fill(model)
    layer = next(iter(layers(model, FoldedLoraLinear).values()))
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(3))
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layer(x)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_fresh_adapter_answers_as_its_base(families: dict[str, Path], family: str) -> None:
    base = load_model(str(families[family])).eval()
    expected = base(**INPUTS).logits
    model = attach(base, rank=4, dropout=0.1).eval()
    assert torch.equal(model(**INPUTS).logits, expected)
    with torch.no_grad():
        assert torch.equal(model(**INPUTS).logits, expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_its_adapter_a_model_is_exactly_its_base(families: dict[str, Path], family: str) -> None:
    base = load_model(str(families[family])).eval()
    expected = base(**INPUTS).logits
    model = attach(base, rank=4).eval()
    fill(model)
    tuned = model(**INPUTS).logits
    with base_only(model):
        assert torch.equal(model(**INPUTS).logits, expected)
    assert not torch.equal(tuned, expected)
    assert torch.equal(model(**INPUTS).logits, tuned)


def test_a_model_without_an_adapter_has_no_base_to_answer_as(base: Any) -> None:
    with pytest.raises(AssertionError, match="adapter"), base_only(base):
        pass


def test_all_linear_layers_but_the_head_are_trained_in_fp32(families: dict[str, Path]) -> None:
    model = attach(load_model(str(families["llama"]), precision="bf16"), rank=4)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * 2  # layers, projections, factors
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}


def test_target_modules_choose_layers(base: Any) -> None:
    model = attach(base, rank=4, target_modules=["q_proj", "mlp.up_proj"])
    assert {name.rsplit(".", 1)[-1] for name in layers(model, FoldedLoraLinear)} == {"q_proj", "up_proj"}


@pytest.mark.parametrize("unknown", ["q_pro", "input_layernorm", "embed_tokens"])
def test_an_unknown_target_is_refused_with_what_there_is(base: Any, unknown: str) -> None:
    with pytest.raises(InputError, match=unknown) as caught:
        attach(base, target_modules=["q_proj", unknown])
    assert (caught.value.kind, caught.value.path) == ("unknown_target", "method.target_modules")
    assert {"all-linear", "q_proj", "down_proj"} <= set(caught.value.allowed)


def test_the_seed_decides_the_adapter_and_nothing_else(base: Any) -> None:
    def first_factors(seed: int) -> dict[str, Tensor]:
        model = attach_lora(copy.deepcopy(base), MethodConfig(rank=4), base_name="b", seed=seed)
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "lora_A" in name}

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = first_factors(0), first_factors(0), first_factors(1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_the_written_configuration_is_what_peft_reads(base: Any, tmp_path: Path) -> None:
    model = attach(base, rank=4, alpha=6.5, rslora=True, target_modules=["q_proj"])
    save_adapter_config(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["inference_mode"] is True
    assert (written["r"], written["lora_alpha"], written["use_rslora"]) == (4, 6.5, True)
    assert (written["base_model_name_or_path"], written["target_modules"]) == ("some/base", ["q_proj"])
    assert model.peft_config["default"].inference_mode is False
    read = LoraConfig.from_pretrained(str(tmp_path))
    assert read.r == 4
    save_adapter_config(attach(load_model(base.name_or_path), alpha=32.0), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 32


def test_weights_are_put_back_by_their_names_on_disk(base: Any) -> None:
    model = attach(base, rank=4, target_modules=["q_proj"])
    fill(model)
    weights = {disk_name(name): p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in weights
    fresh = attach(load_model(base.name_or_path), rank=4, target_modules=["q_proj"])
    load_adapter_weights(fresh, weights)
    assert torch.equal(fresh(**INPUTS).logits, model(**INPUTS).logits)


@pytest.mark.parametrize("change", ["less", "more"])
def test_weights_of_another_adapter_are_refused(base: Any, change: str) -> None:
    model = attach(base, rank=4, target_modules=["q_proj"])
    weights = {disk_name(name): p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if change == "less":
        weights.popitem()
    else:
        weights["x.lora_A.weight"] = torch.zeros(1)
    with pytest.raises(InputError, match="1 names differ") as caught:
        load_adapter_weights(model, weights)
    assert caught.value.kind == "adapter_mismatch"


@pytest.mark.parametrize("recompute", [False, True])
def test_an_adapter_trains_with_its_own_dropout_only(families: dict[str, Path], recompute: bool) -> None:
    base: Any = load_model(str(families["gpt2"]))
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    if recompute:
        recompute_activations(base)
    calls: list[int] = []
    base.transformer.h[0].ln_1.register_forward_hook(lambda *_: calls.append(1))
    losses = {}
    for dropout in (0.0, 0.5):
        model: Any = attach(copy.deepcopy(base), rank=2, alpha=64, dropout=dropout)
        fill(model)
        train_adapter_only(model)
        losses[dropout] = [model(**INPUTS).logits for _ in range(2)]
        losses[dropout][0].sum().backward()
    assert torch.equal(*losses[0.0])
    assert not torch.equal(*losses[0.5])
    assert len(calls) == (6 if recompute else 4)


def test_a_layer_that_drops_by_itself_drops_nothing_when_it_recomputes() -> None:
    config = OPTConfig(
        vocab_size=61, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, dropout=0.5,
        max_position_embeddings=64, word_embed_proj_dim=32, layerdrop=0.5,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(config)
    recompute_activations(base)
    model: Any = attach(base, rank=2, target_modules=["q_proj", "v_proj"])
    fill(model)
    train_adapter_only(model)
    assert model.get_base_model().model.decoder.layers[0].training
    assert torch.equal(model(**INPUTS).logits, model(**INPUTS).logits)
