"""The liveness proof against what it is there for: the right adapter passes, everything that looks like it does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from registry_world import write_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from ftray.errors import InputError
from ftray.model.bank import Bank
from ftray.model.bank_peft import load_slot
from ftray.model.base import load_model
from ftray.registry.fingerprint import choose_probe, fingerprint, prove, prove_logprobs
from ftray.registry.probing import fingerprint_of_folder

PROBES = [[3, 4, 5], [7, 9, 11, 13, 20, 2], [40, 41]]
WEIGHTS = "adapter_model.safetensors"


def ask(folder: Path, base: Path, probe: list[int], precision: str) -> tuple[Tensor, Tensor]:
    """Answer as an engine does: a bank over a base of its precision, plain attention, several slots."""
    model: Any = load_model(str(base), precision=precision).eval()
    bank = Bank(model, slots=2, rank=8)
    load_slot(bank, 2, folder)
    with torch.no_grad(), bank.asking([2, 0], [len(probe)] * 2):
        tuned, untuned = model(input_ids=torch.tensor([probe, probe])).logits[:, -1]
    return tuned, untuned


def refusal(record: dict[str, Any], folder: Path, base: Path, precision: str = "fp32") -> str:
    with pytest.raises(InputError) as refused:
        prove(record, *ask(folder, base, record["probe_tokens"], precision))
    assert refused.value.kind == "not_live"
    return refused.value.message


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2"])
def base(request: pytest.FixtureRequest, families: dict[str, Path]) -> Path:
    return families[request.param]


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return write_adapter(base, folder / "one", seed=1), write_adapter(base, folder / "other", seed=2)


@pytest.fixture(scope="module")
def record(base: Path, adapters: tuple[Path, Path]) -> dict[str, Any]:
    return fingerprint_of_folder(adapters[0], str(base), kind="adapter", probes=PROBES)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_right_adapter_is_live(
    precision: str, record: dict[str, Any], adapters: tuple[Path, Path], base: Path
) -> None:
    proof = prove(record, *ask(adapters[0], base, record["probe_tokens"], precision))
    assert proof.distance <= proof.limit < proof.change / 2
    assert proof.max_abs_difference_from_base > 0
    if precision == "fp32":
        assert proof.max_abs_difference_from_fingerprint < 1e-3
        assert proof.max_abs_difference_from_base == pytest.approx(record["max_abs_difference_from_base"], rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_fingerprint_of_half_precision_serves_either(precision: str, adapters: tuple[Path, Path], base: Path) -> None:
    record = fingerprint_of_folder(adapters[0], str(base), kind="adapter", probes=PROBES, precision="bf16")
    assert record["dtype"] == "bfloat16"
    prove(record, *ask(adapters[0], base, record["probe_tokens"], precision))
    assert "another adapter" in refusal(record, adapters[1], base, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zeroed_factors_are_refused_whatever_their_digest(
    precision: str, record: dict[str, Any], adapters: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    zeroed = Path(shutil.copytree(adapters[0], tmp_path / "zeroed"))
    tensors = load_file(zeroed / WEIGHTS)
    save_file({name: one * (".lora_A." in name) for name, one in tensors.items()}, zeroed / WEIGHTS)
    assert "answers as its base" in refusal(record, zeroed, base, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_swapped_files_of_the_same_shapes_are_refused(
    precision: str, record: dict[str, Any], adapters: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    swapped = Path(shutil.copytree(adapters[0], tmp_path / "swapped"))
    shutil.copyfile(adapters[1] / WEIGHTS, swapped / WEIGHTS)
    assert "another adapter" in refusal(record, swapped, base, precision)


@pytest.mark.parametrize("share", [0.7, 0.9, 1.1])
def test_an_adapter_at_another_strength_is_another_adapter(
    share: float, record: dict[str, Any], adapters: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    scaled = Path(shutil.copytree(adapters[0], tmp_path / "scaled"))
    tensors = load_file(scaled / WEIGHTS)
    save_file({name: one * (share if ".lora_B." in name else 1) for name, one in tensors.items()}, scaled / WEIGHTS)
    assert "another adapter" in refusal(record, scaled, base)


def test_another_base_is_refused(
    record: dict[str, Any], adapters: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    model: Any = load_model(str(base))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    model.save_pretrained(str(tmp_path / "moved"))
    assert "base is another one" in refusal(record, adapters[0], tmp_path / "moved")


def test_an_adapter_too_weak_for_half_precision_is_refused_there_only(base: Path, tmp_path: Path) -> None:
    weak = write_adapter(base, tmp_path / "weak", seed=3, scale=0.01)
    record = fingerprint_of_folder(weak, str(base), kind="adapter", probes=PROBES)
    prove(record, *ask(weak, base, record["probe_tokens"], "fp32"))
    assert "rounding of bfloat16" in refusal(record, weak, base, "bf16")


def test_what_is_not_finite_is_refused(record: dict[str, Any]) -> None:
    logits = torch.zeros(61)
    with pytest.raises(InputError, match="not finite"):
        prove(record, logits * float("nan"), logits)


def test_another_vocabulary_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="another vocabulary"):
        prove(record, torch.ones(5), torch.zeros(5))


@pytest.mark.parametrize("likeliest", [61, 20])
def test_log_probabilities_prove_the_same(
    likeliest: int, record: dict[str, Any], adapters: tuple[Path, Path], base: Path
) -> None:
    def told(logits: Tensor, tokens: list[int]) -> dict[int, float]:
        logprobs = logits.log_softmax(0)
        return {token: float(logprobs[token]) for token in tokens}

    tuned, untuned = ask(adapters[0], base, record["probe_tokens"], "fp32")
    tokens = tuned.topk(likeliest).indices.tolist()
    proof = prove_logprobs(record, told(tuned, tokens), told(untuned, tokens), dtype="float32")
    assert proof.distance <= proof.limit
    with pytest.raises(InputError, match="answers as its base"):
        prove_logprobs(record, told(untuned, tokens), told(untuned, tokens), dtype="float32")
    other, _ = ask(adapters[1], base, record["probe_tokens"], "fp32")
    with pytest.raises(InputError, match="another adapter"):
        prove_logprobs(record, told(other, tokens), told(untuned, tokens), dtype="float32")
    with pytest.raises(InputError, match="too few"):
        prove_logprobs(record, told(tuned, tokens[:3]), told(untuned, tokens[:3]), dtype="float32")


def test_the_probe_is_where_the_models_differ_most_and_short() -> None:
    base = torch.zeros(3, 5)
    tuned = torch.tensor([[0.1] * 5, [0.2] * 5, [9.0] * 5])
    assert choose_probe(tuned, base, [[1], [2], [3]]) == 2
    assert choose_probe(tuned, base, [[1], [2], [3] * 1000]) == 1
    assert choose_probe(tuned, base, [[1] * 999, [2] * 999, [3] * 1000]) == 2


def test_a_fingerprint_keeps_the_likeliest_tokens_and_those_that_changed_most() -> None:
    base = torch.arange(200, dtype=torch.float32)
    tuned = base.clone()
    tuned[:20] += 30
    record = fingerprint(tuned, base, [1, 2], dtype="float32")
    kept = {token for token, _ in record["logits_top"]}
    assert len(kept) == 64
    assert kept >= set(range(20)) | set(range(168, 200))
    assert record["max_abs_difference_from_base"] == 30.0
    assert record["logits_top"] == sorted(record["logits_top"], key=lambda pair: -pair[1])
    assert dict(record["logits_base"])[199] == 199.0
