"""Adapters of strangers: what is taken in, and everything that is not."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from registry_world import write_adapter
from safetensors.torch import load_file, save_file

from ftray.artifacts import digest_file
from ftray.errors import InputError
from ftray.model.bank import Bank
from ftray.model.bank_peft import load_slot
from ftray.model.base import load_model
from ftray.quickstart.pretrain import tiny_base
from ftray.registry.fingerprint import prove
from ftray.registry.importing import Limits, import_adapter
from ftray.registry.registry import Registry, open_registry

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_base(folder)
    return folder


@pytest.fixture(scope="module")
def original(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("shared") / "lora", seed=1)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "lora"))


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.delenv("FTRAY_REGISTRY", raising=False)
    return open_registry(tmp_path / "runs")


def refused(registry: Registry, folder: Path, **options: Any) -> InputError:
    with pytest.raises(InputError) as error:
        import_adapter(registry, folder, name="found", **options)
    assert registry.list() == []
    assert list(Path(registry.place).glob(".staged-*")) == []
    assert ".staged-" not in error.value.message
    return error.value


def change(folder: Path, alter: Callable[[Tensors], Tensors]) -> None:
    save_file(alter(read(folder)), folder / WEIGHTS)


def read(folder: Path) -> Tensors:
    """Return copies: what is read is mapped, and the file is about to be written over."""
    return {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}


def configure(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**config, **settings}), encoding="utf-8")


def test_an_ordinary_folder_is_registered_as_it_is(registry: Registry, folder: Path, base: Path) -> None:
    (folder / "README.md").write_text("# A card\n", encoding="utf-8")
    (folder / "notes.txt").write_text("not kept", encoding="utf-8")
    digest = digest_file(folder / WEIGHTS)
    one = import_adapter(registry, folder, name="found", sha256=digest.upper())
    kept = registry.files("found", one.digest)
    assert {path.name for path in kept.iterdir()} == {CONFIG, WEIGHTS, "record.json"}
    assert digest_file(kept / WEIGHTS) == digest
    record = registry.get("found", one.digest)
    assert (record["verdict"], record["rank"], record["card"]) == ("none", 4, "# A card\n")
    assert record["base"]["name"] == base.name
    assert record["imported"]["weights_sha256"] == digest
    with pytest.raises(InputError) as unjudged:
        registry.promote("champion", "found", one.digest)
    assert unjudged.value.kind == "not_shippable"

    model: Any = load_model(str(base)).eval()
    bank = Bank(model, slots=1, rank=4)
    load_slot(bank, 1, kept)
    probe = record["fingerprint"]["probe_tokens"]
    with torch.no_grad(), bank.asking([1, 0], [len(probe)] * 2):
        prove(record["fingerprint"], *model(input_ids=torch.tensor([probe, probe])).logits[:, -1])


def test_an_export_comes_in_again_under_the_same_digest(
    registry: Registry, folder: Path, base: Path, tmp_path: Path
) -> None:
    one = import_adapter(registry, folder, name="found")
    out = registry.export("found", one.digest, tmp_path / "out")
    again = import_adapter(registry, out, name="other", model=str(base))
    assert again.digest == one.digest
    assert [record["name"] for record in registry.list()] == ["other", "found"]


def test_a_snapshot_of_the_hubs_cache_is_ordinary(registry: Registry, original: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(original / name, blobs / name.upper())
        (snapshot / name).symlink_to(f"../../blobs/{name.upper()}")
    import_adapter(registry, snapshot, name="found")
    (snapshot / "secret").symlink_to("/etc/passwd")
    registry.delete("found", registry.resolve("found").digest)
    assert refused(registry, snapshot).kind == "unsafe_adapter"


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "checkpoint/rng.PTH", "x.pkl"])
def test_pickles_are_refused_unread(registry: Registry, folder: Path, tmp_path: Path, name: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "boom"),)

    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    error = refused(registry, folder)
    assert (error.kind, error.given) == ("unsafe_adapter", name)
    assert not (tmp_path / "boom").exists()


def test_pickled_weights_alone_are_refused(registry: Registry, folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    assert refused(registry, folder).kind == "unsafe_adapter"


def test_a_pickle_by_the_name_of_safetensors_is_refused(registry: Registry, folder: Path) -> None:
    torch.save(read(folder), folder / WEIGHTS)
    assert refused(registry, folder).kind == "bad_adapter"


@pytest.mark.parametrize("where", [CONFIG, "config.json", "deep/er/tokenizer_config.json"])
def test_code_of_its_own_is_refused_wherever_it_is_named(registry: Registry, folder: Path, where: str) -> None:
    path = folder / where
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    text = json.dumps({**content, "nested": [{"auto_map": {"AutoModel": "evil.Model"}}]})
    path.write_text(text.replace("auto_map", "\\u0061uto_map"), encoding="utf-8")
    error = refused(registry, folder)
    assert (error.kind, error.given) == ("unsafe_adapter", where)


def test_links_out_of_the_folder_are_refused(registry: Registry, folder: Path, original: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(original / WEIGHTS)
    assert "leaves the folder" in refused(registry, folder).message
    (folder / WEIGHTS).unlink()
    shutil.copyfile(original / WEIGHTS, folder / "inside")
    (folder / WEIGHTS).symlink_to("inside")
    (folder / "out").symlink_to(original.parent, target_is_directory=True)
    assert refused(registry, folder).given == "out"
    (folder / "out").unlink()
    import_adapter(registry, folder, name="found")


def test_what_is_no_ordinary_file_is_not_waited_for(registry: Registry, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert refused(registry, folder).given == "pipe"


def test_the_sha256_must_be_the_files(registry: Registry, folder: Path) -> None:
    error = refused(registry, folder, sha256=hashlib.sha256(b"other").hexdigest())
    assert (error.kind, error.given) == ("wrong_digest", digest_file(folder / WEIGHTS))


def test_a_base_of_other_shapes_is_refused(registry: Registry, folder: Path, families: dict[str, Path]) -> None:
    error = refused(registry, folder, model=str(families["qwen2"]))
    assert error.kind == "wrong_base"
    error = refused(registry, folder, model=str(families["qwen2"]), other_base_name=True)
    assert (error.kind, "other shapes" in error.message) == ("adapter_mismatch", True)
    error = refused(registry, folder, model=str(families["gpt2"]), other_base_name=True)
    assert (error.kind, "no linear layer" in error.message) == ("adapter_mismatch", True)


def test_a_base_of_another_digest_than_the_runs_is_refused(registry: Registry, folder: Path, base: Path) -> None:
    (folder / "record.json").write_text(json.dumps({"base": {"name": "tiny", "digest": "f" * 64}}), encoding="utf-8")
    assert refused(registry, folder, model=str(base)).kind == "wrong_base"


def test_a_folder_that_names_no_base_needs_one(registry: Registry, folder: Path, base: Path) -> None:
    configure(folder, base_model_name_or_path=None)
    assert refused(registry, folder).kind == "wrong_base"
    import_adapter(registry, folder, name="found", model=str(base))


def test_ranks_and_sizes_have_limits(registry: Registry, folder: Path) -> None:
    assert refused(registry, folder, limits=Limits(rank=3)).kind == "too_large"
    size = (folder / WEIGHTS).stat().st_size
    error = refused(registry, folder, limits=Limits(weight_bytes=size - 1))
    assert (error.kind, error.given, error.allowed) == ("too_large", size, size - 1)
    (folder / "README.md").write_bytes(b"x" * (1 << 20) + b"x")
    assert refused(registry, folder).kind == "too_large"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(registry: Registry, folder: Path, value: float) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        next(iter(tensors.values()))[0, 0] = value
        return tensors

    change(folder, spoil)
    error = refused(registry, folder)
    assert (error.kind, "not finite" in error.message) == ("bad_adapter", True)


def test_integers_are_no_weights(registry: Registry, folder: Path) -> None:
    change(folder, lambda tensors: {name: one.to(torch.int8) for name, one in tensors.items()})
    assert refused(registry, folder).kind == "bad_adapter"


def test_an_adapter_that_does_nothing_is_refused(registry: Registry, folder: Path) -> None:
    change(folder, lambda tensors: {name: one * (".lora_A." in name) for name, one in tensors.items()})
    assert refused(registry, folder).kind == "not_live"


def test_an_adapter_that_does_next_to_nothing_is_refused(registry: Registry, folder: Path) -> None:
    change(folder, lambda tensors: {name: one * 1e-5 for name, one in tensors.items()})
    assert refused(registry, folder).kind == "not_live"


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias"), ({"peft_type": "LOHA"}, "LOHA")],
)
def test_what_the_bank_cannot_compute_is_refused_with_its_sentence(
    registry: Registry, folder: Path, settings: dict[str, Any], says: str
) -> None:
    configure(folder, **settings)
    error = refused(registry, folder)
    assert (error.kind, says in error.message) == ("unsupported_adapter", True)
    assert "the adapter lora cannot" in error.message


@pytest.mark.parametrize("damage", ["{", "[]", "{}", "null", ""])
def test_a_configuration_that_is_none_is_refused(registry: Registry, folder: Path, damage: str, base: Path) -> None:
    (folder / CONFIG).write_text(damage, encoding="utf-8")
    assert refused(registry, folder, model=str(base)).kind in ("bad_adapter", "unsafe_adapter")


def test_half_a_weight_file_is_refused(registry: Registry, folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    assert refused(registry, folder).kind == "bad_adapter"


def test_a_folder_that_is_none_is_refused(registry: Registry, tmp_path: Path) -> None:
    assert refused(registry, tmp_path / "nothing").kind == "missing_file"
    (tmp_path / "empty").mkdir()
    assert refused(registry, tmp_path / "empty").kind == "bad_adapter"
