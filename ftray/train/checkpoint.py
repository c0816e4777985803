"""Checkpoints that are whole or do not exist: weights, optimizer, progress, and a manifest written last.

State is stored parameter by parameter, whole, and dealt out among the workers, so it does not depend on how many
there are or on the ZeRO stage: a run goes on with other workers. A LoRA checkpoint is an ordinary PEFT folder, a full
one an ordinary transformers folder (plus the optimizer). Only safetensors and JSON: nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ftray.artifacts import MANIFEST as MANIFEST
from ftray.artifacts import digest_file, read_json, write_json
from ftray.errors import InputError, RunError
from ftray.model.lora import CONFIG_FILE, WEIGHTS_FILE, disk_name, save_adapter_config
from ftray.train.engine import MOMENTS, Engine, ParameterState, trainable
from ftray.train.state import Progress

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

STATE = "state.json"
INDEX = "model.safetensors.index.json"
SCHEMA = "ftray/checkpoint/1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose manifest has been read; `verify` says whether its files are what was written."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def weight_files(self) -> list[Path]:
        names = (name for name in self.manifest["files"] if name.endswith(".safetensors"))
        return [self.folder / name for name in sorted(names) if not name.startswith("optimizer-")]

    def progress(self) -> Progress:
        """Return the saved progress."""
        return Progress.from_record(read_json(self.folder / STATE)["progress"])

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight by its name on disk."""
        for path in self.weight_files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                    yield name, file.get_tensor(name)

    def is_whole(self) -> bool:
        """Return whether every file has the size and SHA-256 that the manifest says."""
        return all(
            (path := self.folder / name).is_file()
            and path.stat().st_size == entry["bytes"]
            and digest_file(path) == entry["sha256"]
            for name, entry in self.manifest["files"].items()
        )


def folder_name(step: int) -> str:
    """Return the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def find_checkpoints(folder: Path, *, run_id: str) -> list[Checkpoint]:
    """Return this run's checkpoints that have a manifest, oldest first.

    Raises InputError `foreign_checkpoint` when the folder holds another job's.
    """
    found = []
    for path in sorted(folder.glob("step-*")):
        if not (path / MANIFEST).is_file():
            continue
        manifest = _read_manifest(path / MANIFEST)
        if manifest is None:
            continue
        if manifest["run_id"] != run_id:
            raise InputError(
                f"{path} belongs to another job (run {str(manifest['run_id'])[:12]}, this is {run_id[:12]})",
                kind="foreign_checkpoint",
                given=manifest["run_id"],
                allowed=run_id,
                hint="Move that folder away, or choose another --storage.",
                file=str(path / MANIFEST),
            )
        if manifest.get("complete") is True:
            found.append(Checkpoint(path, manifest))
    return found


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """Return a manifest, or None for one that is damaged: such a checkpoint does not exist."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    wanted = {"run_id": str, "step": int, "files": dict, "complete": bool}
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(key), kind) for key, kind in wanted.items()):
        return None
    return manifest


def newest_whole(folder: Path, *, run_id: str) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose files verify, and a sentence for each damaged one passed over."""
    notes: list[str] = []
    for checkpoint in reversed(find_checkpoints(folder, run_id=run_id)):
        if checkpoint.is_whole():
            return checkpoint, notes
        notes.append(
            f"checkpoint {checkpoint.folder.name} is damaged (its files differ from its manifest): passed over"
        )
    return None, notes


class CheckpointWriter:
    """Writes and prunes the checkpoints of one run. `save` is collective."""

    def __init__(self, folder: Path, *, run_id: str, keep: int) -> None:
        self.folder = folder
        self.run_id = run_id
        self.keep = keep

    def save(self, engine: Engine, progress: Progress) -> Path:
        """Write the checkpoint of `progress.step`; it exists from the moment its manifest does.

        Raises RunError on every rank when any rank could not write.
        """
        group = engine.group
        target = self.folder / folder_name(progress.step)
        if group.rank == 0:
            # What an interrupted attempt left here has no manifest and is worth nothing.
            shutil.rmtree(target, ignore_errors=True)
        group.gather(None)
        share = _collect_share(engine)
        problem, entries = "", {}
        try:
            entries = _write_share(engine, share, target, progress)
        except OSError as error:
            problem = f"{error.strerror or error} ({target})"
        except SafetensorError as error:
            problem = f"{error} ({target})"
        parts = group.gather((problem, entries))
        problems = [part[0] for part in parts if part[0]]
        if problems:
            raise RunError(
                f"the checkpoint of step {progress.step} could not be written: {problems[0]}",
                kind="unknown",
                given=str(target),
                hint="Free some space, then run the same command again: it goes on from the last whole checkpoint.",
            )
        if group.rank == 0:
            manifest = {
                "schema": SCHEMA,
                "run_id": self.run_id,
                "step": progress.step,
                "world_size": group.size,
                "files": {name: entry for part in parts for name, entry in part[1].items()},
                "complete": True,
            }
            write_json(target / MANIFEST, manifest)
        group.gather(None)
        return target

    def prune(self, *, best_step: int | None) -> None:
        """Delete all but the newest `keep`, the best and the last. The manifest goes first."""
        checkpoints = find_checkpoints(self.folder, run_id=self.run_id)
        kept = {checkpoint.step for checkpoint in checkpoints[-self.keep :]} | {best_step}
        for checkpoint in checkpoints:
            if checkpoint.step not in kept:
                (checkpoint.folder / MANIFEST).unlink()
                shutil.rmtree(checkpoint.folder)


@dataclass(slots=True)
class _Share:
    """What one rank writes: some parameters whole, with their moments; and where every parameter goes."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    file_of: dict[str, str]


def _collect_share(engine: Engine) -> _Share:
    group, adapter = engine.group, is_adapter(engine.model)
    share = _Share({}, {}, {})
    for index, state in enumerate(engine.states()):
        # An adapter is small and must be one file for PEFT; a full model is dealt out.
        owner = 0 if adapter else index % group.size
        name = disk_name(state.name)
        share.file_of[name] = WEIGHTS_FILE if adapter else _shard_name("model", owner, group.size)
        if owner != group.rank:
            continue
        share.weights[name] = state.weight.detach().to("cpu", copy=True).contiguous()
        for key, moment in zip(MOMENTS, state.moments or (), strict=False):
            share.moments[f"{name}|{key}"] = moment.detach().to("cpu", copy=True).contiguous()
    return share


def _shard_name(stem: str, rank: int, size: int) -> str:
    return f"{stem}.safetensors" if size == 1 else f"{stem}-{rank + 1:05d}-of-{size:05d}.safetensors"


def is_adapter(model: nn.Module) -> bool:
    """Return whether `model` is a base with an adapter."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _write_share(engine: Engine, share: _Share, target: Path, progress: Progress) -> dict[str, dict[str, Any]]:
    """Write this rank's files; return their manifest entries."""
    target.mkdir(parents=True, exist_ok=True)
    rank, size = engine.group.rank, engine.group.size
    written: list[Path] = []
    weights_file = WEIGHTS_FILE if is_adapter(engine.model) else _shard_name("model", rank, size)
    for name, tensors in ((weights_file, share.weights), (f"optimizer-{rank:05d}.safetensors", share.moments)):
        if tensors:
            save_file(tensors, target / name, metadata={"format": "pt"})
            written.append(target / name)
    if rank == 0:
        written += _write_description(engine.model, share, target)
        write_json(target / STATE, {"schema": "ftray/state/1", "progress": progress.to_record()})
        written.append(target / STATE)
    for path in written:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {path.name: {"bytes": path.stat().st_size, "sha256": digest_file(path)} for path in written}


def _write_description(model: nn.Module, share: _Share, target: Path) -> list[Path]:
    """Write what makes the folder loadable by PEFT or transformers."""
    if is_adapter(model):
        save_adapter_config(cast("PeftModel", model), target)
        return [target / CONFIG_FILE]
    described = cast("PreTrainedModel", model)
    described.config.save_pretrained(str(target))
    written = [target / "config.json"]
    if described.generation_config is not None:
        described.generation_config.save_pretrained(str(target))
        written.append(target / "generation_config.json")
    if len(set(share.file_of.values())) > 1:
        write_json(target / INDEX, {"metadata": {}, "weight_map": share.file_of})
        written.append(target / INDEX)
    return written


def load_checkpoint(checkpoint: Checkpoint, engine: Engine) -> Progress:
    """Put weights, moments and progress back into `engine` (collective); return the progress."""
    progress = checkpoint.progress()
    moments: dict[str, Tensor] = {}
    for path in sorted(checkpoint.folder.glob("optimizer-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                moments[name] = file.get_tensor(name)
    weights = dict(checkpoint.weights())
    engine.load_states(_states(engine.model, weights, moments), optimizer_step=progress.optimizer_steps)
    return progress


def _states(model: nn.Module, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> Iterator[ParameterState]:
    for name in trainable(model):
        key = disk_name(name)
        pair = tuple(moments[f"{key}|{moment}"] for moment in MOMENTS if f"{key}|{moment}" in moments)
        yield ParameterState(
            name=name, weight=weights[key], moments=(pair[0], pair[1]) if len(pair) == len(MOMENTS) else None
        )


def load_weights(checkpoint: Checkpoint, engine: Engine) -> None:
    """Put only the weights back into `engine` (collective), for evaluation."""
    names = {disk_name(name): name for name in trainable(engine.model)}
    engine.load_weights({names[name]: tensor for name, tensor in checkpoint.weights()})
