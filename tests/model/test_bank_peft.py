"""Slots from and to PEFT folders, and a PEFT model's adapter in a bank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_world import EQUAL_FAMILIES, METHODS, RANK, factors_of, peft_model, world
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from ftray.errors import InputError
from ftray.model.bank import Bank
from ftray.model.bank_peft import adapter_in_bank, bank_of, load_slot, read_adapter, save_slot
from ftray.model.base import load_model
from ftray.model.config import MethodConfig
from ftray.model.lora import attach_lora, base_only

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ROWS = torch.randint(3, 61, (2, 10), generator=torch.Generator().manual_seed(4))


def logits(model: Any, rows: Tensor = ROWS) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits
    return result


def refused(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_adapter(folder)
    return caught.value


@pytest.fixture
def adapter(families: dict[str, Path], tmp_path: Path) -> Path:
    """Return the folder of an adapter that PEFT has written."""
    peft_model(load_model(str(families["llama"])), 1).save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


@pytest.mark.parametrize("family", EQUAL_FAMILIES)
@pytest.mark.parametrize("slot", list(METHODS))
def test_a_written_slot_opens_in_peft(families: dict[str, Path], family: str, slot: int, tmp_path: Path) -> None:
    bank, models, _ = world(families[family], dtype=torch.float32)
    save_slot(bank, slot, tmp_path / "adapter", base_name="some/base")
    opened = PeftModel.from_pretrained(load_model(str(families[family])), str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(opened), logits(models[slot]))
    assert opened.peft_config["default"].base_model_name_or_path == "some/base"


@pytest.mark.parametrize("family", EQUAL_FAMILIES)
def test_a_slot_reads_what_peft_has_written(families: dict[str, Path], family: str, tmp_path: Path) -> None:
    bank, models, _ = world(families[family], dtype=torch.float32)
    for slot, model in models.items():
        model.save_pretrained(str(tmp_path / str(slot)))
        bank.leave(slot)
        load_slot(bank, slot, tmp_path / str(slot))
        with bank.asking([slot, slot], [10, 10]):
            assert torch.allclose(logits(bank.model), logits(model), atol=1e-5)


def test_what_is_written_is_what_is_read(families: dict[str, Path], tmp_path: Path) -> None:
    bank, _, _ = world(families["llama"], dtype=torch.float32)
    for slot in METHODS:
        save_slot(bank, slot, tmp_path / str(slot), base_name="b")
        adapter, factors = read_adapter(tmp_path / str(slot))
        before, kept = bank.take(slot), bank.adapters[slot]
        bank.put(slot, adapter, factors)
        assert bank.adapters[slot] == kept
        assert all(torch.equal(factors[layer][half], before[layer][half]) for layer in before for half in (0, 1))


def test_ranks_and_alphas_by_layer(families: dict[str, Path], tmp_path: Path) -> None:
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True,
        rank_pattern={"layers.0.self_attn.q_proj": 2, "v_proj": 3}, alpha_pattern={"layers.1.self_attn.q_proj": 20},
    )  # fmt: skip
    model: Any = get_peft_model(load_model(str(families["llama"])), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.eval().save_pretrained(str(tmp_path / "patterns"))
    bank = Bank(load_model(str(families["llama"])), slots=2, rank=4)
    load_slot(bank, 2, tmp_path / "patterns")
    with bank.asking([2, 2], [10, 10]):
        answered = logits(bank.model)
    assert torch.allclose(answered, logits(model), atol=1e-5)
    save_slot(bank, 2, tmp_path / "again", base_name="b")
    again = PeftModel.from_pretrained(load_model(str(families["llama"])), str(tmp_path / "again")).eval()
    assert torch.equal(logits(again), logits(model))


def test_some_layers_only(families: dict[str, Path], tmp_path: Path) -> None:
    method = MethodConfig(rank=2, target_modules=["layers.1.self_attn.q_proj"])
    bank = Bank(load_model(str(families["llama"])), slots=1, rank=2)
    bank.join(1, method, seed=0)
    bank.weights.normal_(std=0.3)
    bank.leave(1)
    bank.join(1, method, seed=0)
    layer = "model.layers.1.self_attn.q_proj"
    assert bank.adapters[1].layers == (layer,)
    save_slot(bank, 1, tmp_path / "one", base_name="b")
    opened = PeftModel.from_pretrained(load_model(str(families["llama"])), str(tmp_path / "one"))
    assert list(factors_of(opened)) == [layer]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"bias": "lora_only"}, "biases"),
        ({"trainable_token_indices": [1, 2]}, "embeddings"),
        ({"init_lora_weights": "pissa"}, "changed weights"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "replicated"),
        ({"peft_type": "IA3"}, "no LoRA"),
    ],
)
def test_what_the_bank_cannot_compute_is_refused(adapter: Path, settings: dict[str, Any], word: str) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    error = refused(adapter)
    assert error.kind == "unsupported_adapter"
    assert word in error.message
    assert "merge_and_unload" in error.hint


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_trained_embeddings_are_refused(families: dict[str, Path], tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "embed_tokens"])
    get_peft_model(load_model(str(families["llama"])), config).save_pretrained(str(tmp_path / "embeddings"))
    error = refused(tmp_path / "embeddings")
    assert (error.kind, "embed" in str(error.given)) == ("unsupported_adapter", True)


def test_what_peft_writes_for_dora_is_refused(families: dict[str, Path], tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], use_dora=True)
    get_peft_model(load_model(str(families["llama"])), config).save_pretrained(str(tmp_path / "dora"))
    assert refused(tmp_path / "dora").kind == "unsupported_adapter"


def test_ranks_beyond_the_banks_are_refused(families: dict[str, Path], adapter: Path) -> None:
    bank = Bank(load_model(str(families["llama"])), slots=1, rank=2)
    with pytest.raises(InputError) as caught:
        load_slot(bank, 1, adapter)
    assert (caught.value.kind, caught.value.given, caught.value.allowed) == ("rank_too_large", 3, "1 to 2")
    assert bank.adapters == {}


def test_another_bases_adapter_is_refused(families: dict[str, Path], adapter: Path) -> None:
    bank = Bank(load_model(str(families["gpt2"])), slots=1, rank=RANK)
    with pytest.raises(InputError) as caught:
        load_slot(bank, 1, adapter)
    assert caught.value.kind == "unknown_target"


@pytest.mark.parametrize(
    "damage",
    ["no config", "no json", "a list", "no rank", "no weights", "torn weights", "one factor", "empty"],
)
def test_damaged_folders_are_named(adapter: Path, damage: str) -> None:
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    match damage:
        case "no config":
            config.unlink()
        case "no json":
            config.write_text("{")
        case "a list":
            config.write_text("[]")
        case "no rank":
            config.write_text(
                json.dumps({key: value for key, value in json.loads(config.read_text()).items() if key != "r"})
            )
        case "no weights":
            weights.unlink()
        case "torn weights":
            weights.write_bytes(weights.read_bytes()[:100])
        case "one factor":
            tensors = load_file(weights)
            save_file({name: tensor for name, tensor in tensors.items() if "lora_A" in name}, weights)
        case "empty":
            save_file({}, weights)
    error = refused(adapter)
    assert error.kind == "bad_adapter"
    assert str(adapter) in error.message


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_models_own_adapter_and_its_base_answer_in_one_batch(families: dict[str, Path], family: str) -> None:
    model: Any = attach_lora(load_model(str(families[family])), MethodConfig(rank=4), base_name="b", seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.eval()
    tuned = logits(model)
    with base_only(model):
        base = logits(model)
    with adapter_in_bank(model) as bank:
        assert bank is not None
        with bank.asking([0, 1], [10, 10]):
            both = logits(model)
    assert torch.allclose(both[0], base[0], atol=1e-5)
    assert torch.allclose(both[1], tuned[1], atol=1e-5)
    assert torch.equal(logits(model), tuned)
    assert sum(parameter.requires_grad for parameter in model.parameters()) > 0


def test_a_bank_of_some_layers_writes_which_they_are(families: dict[str, Path], tmp_path: Path) -> None:
    layer = "model.layers.1.self_attn.q_proj"
    bank = Bank(load_model(str(families["llama"])), slots=1, rank=2, target_modules=[layer])
    bank.join(1, MethodConfig(rank=2, target_modules=[layer]), seed=0)
    save_slot(bank, 1, tmp_path / "one", base_name="b")
    opened = PeftModel.from_pretrained(load_model(str(families["llama"])), str(tmp_path / "one"))
    assert list(factors_of(opened)) == [layer]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_an_adapted_head_does_not_fit_a_bank(families: dict[str, Path]) -> None:
    method = MethodConfig(rank=2, target_modules=["q_proj", "lm_head"])
    model: Any = attach_lora(load_model(str(families["llama"])), method, base_name="b", seed=0).eval()
    before = logits(model)
    with adapter_in_bank(model) as bank:
        assert bank is None
        assert torch.equal(logits(model), before)


def test_a_model_that_is_not_plain_lora_is_refused_and_left_alone(families: dict[str, Path]) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], use_dora=True)
    model: Any = get_peft_model(load_model(str(families["llama"])), config).eval()
    before = logits(model)
    with pytest.raises(InputError) as caught:
        bank_of(model)
    assert caught.value.kind == "unsupported_adapter"
    assert torch.equal(logits(model), before)


def test_a_base_in_bf16_answers_as_in_peft(families: dict[str, Path]) -> None:
    """The update is computed in fp32 and rounded once, as who loads the adapter with PEFT will have it."""
    model: Any = attach_lora(
        load_model(str(families["llama"]), precision="bf16"), MethodConfig(rank=4), base_name="b", seed=0
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    model.eval()
    tuned = logits(model)
    with adapter_in_bank(model) as bank:
        assert bank is not None
        with bank.asking([1, 1], [10, 10]):
            assert torch.equal(logits(model), tuned)
