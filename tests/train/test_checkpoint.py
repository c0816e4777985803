"""A checkpoint is whole or does not exist, comes back bit for bit, and opens with PEFT and transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ftray.artifacts import digest_file, read_json
from ftray.errors import InputError
from ftray.train.checkpoint import (
    MANIFEST,
    Checkpoint,
    CheckpointWriter,
    find_checkpoints,
    folder_name,
    is_adapter,
    load_checkpoint,
    load_weights,
    newest_whole,
)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
RUN_ID = "a" * 64
INPUTS = {"input_ids": torch.tensor([[3, 4, 5, 6, 7]])}


@pytest.fixture
def trained(tiny: ModuleType) -> Any:
    """Return an adapter's engine after three steps, and those steps."""
    engine = tiny.engine()
    return engine, tiny.run(engine, tiny.plan(), 3)


def save(folder: Path, engine: Any, progress: Any, *, keep: int = 3) -> CheckpointWriter:
    writer = CheckpointWriter(folder, run_id=RUN_ID, keep=keep)
    writer.save(engine, progress)
    return writer


def the_only(folder: Path) -> Checkpoint:
    (checkpoint,) = find_checkpoints(folder, run_id=RUN_ID)
    return checkpoint


# Round trips


@pytest.mark.parametrize(("method", "dropout"), [("lora", 0.0), ("lora", 0.2), ("full", 0.0)])
def test_a_checkpoint_comes_back_bit_for_bit(tiny: ModuleType, tmp_path: Path, method: str, dropout: float) -> None:
    from ftray.work import build_engine

    plan = tiny.plan(method)

    def fresh() -> Any:
        return build_engine(tiny.model(method, **({"dropout": dropout} if dropout else {})), plan)

    engine = fresh()
    first = tiny.run(engine, plan, 3)
    save(tmp_path, engine, first.training.progress)
    other = fresh()
    progress = load_checkpoint(the_only(tmp_path), other)
    assert progress == first.training.progress
    assert tiny.is_equal(tiny.state(other), tiny.state(engine))
    rest, again = tiny.run(engine, plan, 3, start=first.training.progress), tiny.run(other, plan, 3, start=progress)
    assert (again.losses, again.norms) == (rest.losses, rest.norms)
    assert tiny.is_equal(tiny.state(other), tiny.state(engine))


def test_a_checkpoint_before_the_first_step_has_no_moments(tiny: ModuleType, tmp_path: Path) -> None:
    engine, plan = tiny.engine(), tiny.plan()
    save(tmp_path, engine, tiny.run(engine, plan, 0).training.progress)
    assert not list(the_only(tmp_path).folder.glob("optimizer-*"))
    other = tiny.engine()
    load_checkpoint(the_only(tmp_path), other)
    assert tiny.is_equal(tiny.state(other), tiny.state(engine))


def test_weights_alone_can_be_put_back(tiny: ModuleType, trained: Any, tmp_path: Path) -> None:
    engine, steps = trained
    save(tmp_path, engine, steps.training.progress)
    other = tiny.engine()
    load_weights(the_only(tmp_path), other)
    weights = {name: weight for name, weight in tiny.state(engine).items() if "|" not in name}
    assert tiny.is_equal(tiny.state(other), weights)


def test_the_manifest_is_the_contracts(trained: Any, tmp_path: Path) -> None:
    engine, steps = trained
    save(tmp_path, engine, steps.training.progress)
    folder = tmp_path / "step-00000003"
    manifest = read_json(folder / MANIFEST)
    assert {key: manifest[key] for key in ("schema", "run_id", "step", "world_size", "complete")} == {
        "schema": "ftray/checkpoint/1", "run_id": RUN_ID, "step": 3, "world_size": 1, "complete": True,
    }  # fmt: skip
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {MANIFEST}
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": (folder / name).stat().st_size, "sha256": digest_file(folder / name)}
    assert not [path for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


# Other programs


def test_an_adapter_opens_with_peft(tiny: ModuleType, trained: Any, tmp_path: Path) -> None:
    engine, steps = trained
    save(tmp_path, engine, steps.training.progress)
    opened = PeftModel.from_pretrained(tiny.base_model(), str(tmp_path / "step-00000003"))
    opened.eval()
    engine.model.eval()
    with torch.no_grad():
        expected = engine.model(**INPUTS).logits
        assert torch.equal(opened(**INPUTS).logits, expected)
        assert not torch.equal(tiny.base_model()(**INPUTS).logits, expected)


def test_a_full_model_opens_with_transformers(tiny: ModuleType, tmp_path: Path) -> None:
    engine = tiny.engine("full")
    steps = tiny.run(engine, tiny.plan("full"), 2)
    save(tmp_path, engine, steps.training.progress)
    folder = tmp_path / "step-00000002"
    opened, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    engine.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(**INPUTS).logits, engine.model(**INPUTS).logits)
    assert is_adapter(tiny.model())
    assert not is_adapter(engine.model)


# What does not exist


def test_a_folder_without_a_manifest_does_not_exist(trained: Any, tmp_path: Path) -> None:
    engine, steps = trained
    save(tmp_path, engine, steps.training.progress)
    shutil.copytree(tmp_path / folder_name(3), tmp_path / folder_name(4))
    (tmp_path / folder_name(4) / MANIFEST).unlink()
    (tmp_path / "other").mkdir()
    checkpoint, notes = newest_whole(tmp_path, run_id=RUN_ID)
    assert checkpoint is not None
    assert (checkpoint.step, notes) == (3, [])


def test_no_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "nowhere", run_id=RUN_ID) == (None, [])


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_with_a_note(tiny: ModuleType, tmp_path: Path, damage: str) -> None:
    engine, plan = tiny.engine(), tiny.plan()
    first = tiny.run(engine, plan, 2)
    save(tmp_path, engine, first.training.progress)
    second = tiny.run(engine, plan, 2, start=first.training.progress)
    save(tmp_path, engine, second.training.progress)
    file = tmp_path / folder_name(4) / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes(content if damage == "flip" else content[:-8])
    checkpoint, notes = newest_whole(tmp_path, run_id=RUN_ID)
    assert checkpoint is not None
    assert checkpoint.step == 2
    (note,) = notes
    assert "step-00000004" in note
    assert "damaged" in note


def test_a_manifest_that_is_not_complete_does_not_count(trained: Any, tmp_path: Path) -> None:
    engine, steps = trained
    save(tmp_path, engine, steps.training.progress)
    path = tmp_path / folder_name(3) / MANIFEST
    path.write_text(json.dumps(read_json(path) | {"complete": False}))
    assert find_checkpoints(tmp_path, run_id=RUN_ID) == []


def test_another_jobs_checkpoints_are_not_touched(trained: Any, tmp_path: Path) -> None:
    engine, steps = trained
    save(tmp_path, engine, steps.training.progress)
    for find in (find_checkpoints, newest_whole):
        with pytest.raises(InputError, match="belongs to another job") as caught:
            find(tmp_path, run_id="b" * 64)
        assert caught.value.kind == "foreign_checkpoint"
        assert caught.value.file == str(tmp_path / folder_name(3) / MANIFEST)


def test_what_an_interrupted_attempt_left_is_replaced(trained: Any, tmp_path: Path) -> None:
    engine, steps = trained
    folder = tmp_path / folder_name(3)
    folder.mkdir()
    (folder / "optimizer-00001.safetensors").write_bytes(b"half")
    save(tmp_path, engine, steps.training.progress)
    assert not (folder / "optimizer-00001.safetensors").exists()
    assert the_only(tmp_path).is_whole()


# Pruning


def test_the_newest_and_the_best_survive(trained: Any, tmp_path: Path) -> None:
    engine, steps = trained
    writer = CheckpointWriter(tmp_path, run_id=RUN_ID, keep=2)
    for step in range(1, 7):
        steps.training.progress.step = step
        writer.save(engine, steps.training.progress)
    writer.prune(best_step=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder_name(step) for step in (3, 5, 6)]
    writer.prune(best_step=6)
    assert [one.step for one in find_checkpoints(tmp_path, run_id=RUN_ID)] == [5, 6]
    CheckpointWriter(tmp_path, run_id=RUN_ID, keep=1).prune(best_step=None)
    assert the_only(tmp_path).step == 6


# A full disk

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import tiny_training as tiny
from ftray.errors import RunError
from ftray.train.checkpoint import CheckpointWriter, newest_whole

folder, method = Path(sys.argv[1]), sys.argv[2]
plan = tiny.plan(method)
engine = tiny.engine(method)
writer = CheckpointWriter(folder, run_id="a" * 64, keep=3)
first = tiny.run(engine, plan, 1)
writer.save(engine, first.training.progress)
second = tiny.run(engine, plan, 1, start=first.training.progress)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    writer.save(engine, second.training.progress)
except RunError as error:
    checkpoint, notes = newest_whole(folder, run_id="a" * 64)
    print(error.kind, checkpoint.step, notes, error.hint, error.message, sep="|")
"""


def test_a_full_disk_is_a_run_error_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), "full"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == 0, done.stderr
    kind, step, notes, hint, message = done.stdout.strip().split("|")
    assert (kind, step, notes) == ("unknown", "1", "[]")
    assert "space" in hint
    assert "the checkpoint of step 2 could not be written" in message
    assert not (tmp_path / folder_name(2) / MANIFEST).exists()


def test_names_on_disk_are_pefts(trained: Any, tmp_path: Path) -> None:
    engine, steps = trained
    save(tmp_path, engine, steps.training.progress)
    names = load_file(tmp_path / folder_name(3) / "adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert not any(".default." in name for name in names)
