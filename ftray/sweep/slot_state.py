"""Checkpoints of a trial in a slot: the folders that a run of its own writes, so that either can go on from them."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from ftray.artifacts import RunDirectory, digest_file, write_json
from ftray.model.bank import Bank, Factors
from ftray.model.bank_peft import PREFIX, read_adapter, save_slot
from ftray.model.lora import CONFIG_FILE, WEIGHTS_FILE
from ftray.train.bank_engine import BankEngine, SlotState
from ftray.train.checkpoint import MANIFEST, SCHEMA, STATE, Checkpoint, find_checkpoints, folder_name
from ftray.train.engine import MOMENTS
from ftray.train.state import Progress

OPTIMIZER = "optimizer-00000.safetensors"


def save_state(engine: BankEngine, slot: int, progress: Progress, folder: Path, *, trial_id: str, base: str) -> None:
    """Write the checkpoint of a slot at `progress.step`; it exists from the moment its manifest does.

    Files are not synced one by one: the manifest's digests tell a torn one, and there are many trials.
    """
    target = folder / folder_name(progress.step)
    shutil.rmtree(target, ignore_errors=True)
    save_slot(engine.bank, slot, target, base_name=base)
    state = engine.state(slot)
    moments = {
        f"{PREFIX}{layer}.lora_{letter}.weight|{moment}": factor.contiguous()
        for moment, factors in zip(MOMENTS, (state.exp_avg, state.exp_avg_sq), strict=True)
        for layer, pair in factors.items()
        for letter, factor in zip("AB", pair, strict=True)
    }
    save_file(moments, str(target / OPTIMIZER), metadata={"format": "pt"})
    write_json(target / STATE, {"schema": "ftray/state/1", "progress": progress.to_record()})
    files = {
        name: {"bytes": (target / name).stat().st_size, "sha256": digest_file(target / name)}
        for name in (WEIGHTS_FILE, CONFIG_FILE, OPTIMIZER, STATE)
    }
    manifest = {
        "schema": SCHEMA,
        "run_id": trial_id,
        "step": progress.step,
        "world_size": 1,
        "files": files,
        "complete": True,
    }
    write_json(target / MANIFEST, manifest)


def restore_state(engine: BankEngine, slot: int, checkpoint: Checkpoint, *, weight_decay: float) -> Progress:
    """Put a checkpoint into a slot; return its progress."""
    progress = checkpoint.progress()
    adapter, weights = read_adapter(checkpoint.folder)
    moments = load_file(str(checkpoint.folder / OPTIMIZER))

    def factors(moment: str) -> Factors:
        names = {layer: f"{PREFIX}{layer}.lora_{{}}.weight|{moment}" for layer in weights}
        return {layer: (moments[name.format("A")], moments[name.format("B")]) for layer, name in names.items()}

    state = SlotState(
        adapter=adapter,
        weights=weights,
        exp_avg=factors(MOMENTS[0]),
        exp_avg_sq=factors(MOMENTS[1]),
        steps=progress.optimizer_steps,
        weight_decay=weight_decay,
    )
    engine.restore(slot, state)
    return progress


def copy_state(checkpoint: Checkpoint, folder: Path, *, trial_id: str) -> None:
    """Write a checkpoint as another trial's that has done the same steps."""
    target = folder / checkpoint.folder.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(checkpoint.folder, target, ignore=shutil.ignore_patterns(MANIFEST))
    write_json(target / MANIFEST, {**checkpoint.manifest, "run_id": trial_id})


def prune(folder: Path, *, trial_id: str, kept: set[int | None]) -> None:
    """Delete the checkpoints of all other steps, the manifest first."""
    for checkpoint in find_checkpoints(folder, run_id=trial_id):
        if checkpoint.step not in kept:
            (checkpoint.folder / MANIFEST).unlink()
            shutil.rmtree(checkpoint.folder)


def export_adapter(trial: RunDirectory, step: int) -> Path:
    """Copy a checkpoint's adapter, without the optimizer, to the trial's adapter folder; return it."""
    staged = trial.root / ".adapter.tmp"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        shutil.copy2(trial.checkpoints / folder_name(step) / name, staged / name)
    shutil.rmtree(trial.adapter, ignore_errors=True)
    staged.rename(trial.adapter)
    return trial.adapter


def load_into(bank: Bank, slot: int, folder: Path) -> None:
    """Put a trial's adapter folder into a slot."""
    adapter, factors = read_adapter(folder)
    bank.put(slot, adapter, factors)
