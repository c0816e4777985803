"""A base is what its folder says it is: nothing missing, nothing pickled, no code of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedTokenizerFast, T5Config

from ftray.errors import InputError
from ftray.model.base import identify, load_config, load_model, load_tokenizer, needs_own_attention


@pytest.fixture
def llama(families: dict[str, Path], tmp_path: Path) -> Path:
    """Return a copy of a model folder that a test may damage."""
    identify.cache_clear()
    return Path(shutil.copytree(families["llama"], tmp_path / "llama"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Identity


def test_a_folder_is_identified_by_its_content(llama: Path, tmp_path: Path) -> None:
    identity = identify(str(llama))
    assert (identity.name, identity.local, len(identity.digest)) == ("llama", True, 64)
    copy = shutil.copytree(llama, tmp_path / "copy")
    (copy / "notes.md").write_text("not a part of the model")
    assert identify(str(copy)).digest == identity.digest


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_digest_changes_with_every_file_of_the_model(llama: Path, name: str) -> None:
    before = identify(str(llama)).digest
    identify.cache_clear()
    content = bytearray((llama / name).read_bytes())
    content[-3] ^= 1
    (llama / name).write_bytes(content)
    assert identify(str(llama)).digest != before


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "../nothing", "a/b/c"])
def test_a_folder_that_is_not_there_is_missing_without_asking_the_hub(name: str) -> None:
    with pytest.raises(InputError, match="no such folder") as caught:
        identify(name)
    assert (caught.value.kind, caught.value.path, caught.value.given) == ("missing_model", "model", name)


def test_a_hub_model_that_cannot_be_had_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be found") as caught:
        identify("nobody/never-published")
    assert caught.value.kind == "missing_model"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_its_files_is_missing(llama: Path, name: str) -> None:
    (llama / name).unlink()
    with pytest.raises(InputError) as caught:
        identify(str(llama))
    assert caught.value.kind == "missing_model"
    assert name.removeprefix("model") in caught.value.message


# What is refused


def test_pickled_weights_are_refused(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    torch.save({}, llama / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled") as caught:
        identify(str(llama))
    assert caught.value.kind == "unsafe_model"


def test_a_model_with_code_of_its_own_is_refused(llama: Path) -> None:
    change_config(llama, auto_map={"AutoModelForCausalLM": "evil.Model"})
    for load in (load_config, load_model):
        with pytest.raises(InputError, match="auto_map") as caught:
            load(str(llama))
        assert caught.value.kind == "remote_code"


def test_missing_weights_are_refused(llama: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    dropped = next(name for name in weights if "q_proj" in name)
    save_file({name: tensor for name, tensor in weights.items() if name != dropped}, llama / "model.safetensors")
    with pytest.raises(InputError, match="would be random") as caught:
        load_model(str(llama))
    assert caught.value.kind == "incomplete_model"
    assert dropped in caught.value.message


def test_a_damaged_weight_file_is_refused(llama: Path) -> None:
    content = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError) as caught:
        load_model(str(llama))
    assert caught.value.kind == "incomplete_model"


def test_weights_of_another_shape_are_refused(llama: Path) -> None:
    change_config(llama, intermediate_size=40)
    with pytest.raises(InputError) as caught:
        load_model(str(llama))
    assert caught.value.kind == "incomplete_model"


def test_a_config_that_is_no_json_is_refused(llama: Path) -> None:
    (llama / "config.json").write_text("{")
    with pytest.raises(InputError) as caught:
        load_config(str(llama))
    assert caught.value.kind == "missing_model"


def test_a_model_that_is_no_causal_language_model_is_refused(llama: Path) -> None:
    T5Config(vocab_size=61, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8).save_pretrained(llama)
    with pytest.raises(InputError) as caught:
        load_model(str(llama))
    assert caught.value.kind == "unsupported_model"


def test_a_folder_without_a_tokenizer_is_refused(llama: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_tokenizer(str(llama))
    assert caught.value.kind == "missing_tokenizer"


# What is loaded


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_have_the_dtype_that_is_asked_for(llama: Path, precision: str, expected: torch.dtype) -> None:
    model = load_model(str(llama), precision=precision)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.config.use_cache is False


def test_a_tokenizer_without_padding_pads_with_its_end(llama: Path) -> None:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(llama)
    assert load_tokenizer(str(llama)).pad_token_id == 0


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma", "gpt2", "gemma2"])
def test_only_soft_capped_attention_stays_as_it_is(families: dict[str, Path], family: str) -> None:
    assert needs_own_attention(AutoConfig.from_pretrained(families[family])) == (family == "gemma2")
