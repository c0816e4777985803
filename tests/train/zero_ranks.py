"""One rank of two: every ZeRO stage trains, saves and resumes; rank 0 trains the reference too and writes it all down.

Run as `python zero_ranks.py RANK PORT FOLDER`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import tiny_training as tiny
import torch
import torch.distributed as dist

from ftray.data.collate import collate
from ftray.errors import RunError
from ftray.train.checkpoint import CheckpointWriter, find_checkpoints, load_checkpoint
from ftray.train.health import require_finite_loss
from ftray.work import build_engine

WORLD = 2
BEFORE, AFTER = 4, 3
RUN_ID = "a" * 64
CASES: dict[str, dict[str, Any]] = {
    **{f"lora-{stage}": {"method": "lora", "stage": stage} for stage in (0, 1, 2, 3)},
    **{f"full-{stage}": {"method": "full", "stage": stage} for stage in (0, 2, 3)},
    "lora-2-cpu": {"method": "lora", "stage": 2, "offload_optimizer": "cpu"},
    "lora-3-cpu": {"method": "lora", "stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    "full-2-packed": {"method": "full", "stage": 2, "sequence_packing": True, "micro_batch_size": 1},
    "lora-0-fp16": {"method": "lora", "stage": 0, "precision": "fp16"},
    "lora-2-fp16": {"method": "lora", "stage": 2, "precision": "fp16"},
    "lora-3-bf16": {"method": "lora", "stage": 3, "precision": "bf16"},
}
REFERENCES: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "full": {"method": "full"},
    "lora-fp16": {"method": "lora", "precision": "fp16"},
    "lora-bf16": {"method": "lora", "precision": "bf16"},
}


def newest(folder: Path) -> Any:
    return find_checkpoints(folder, run_id=RUN_ID)[-1]


def train_and_resume(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Train, save, train on; then do the second part again from the checkpoint with a fresh engine."""
    plan = tiny.plan(workers=WORLD, **case)

    def fresh() -> Any:
        return build_engine(tiny.model(case["method"]), plan)

    engine = fresh()
    first = tiny.run(engine, plan, BEFORE)
    CheckpointWriter(folder, run_id=RUN_ID, keep=3).save(engine, first.training.progress)
    second = tiny.run(engine, plan, AFTER, start=first.training.progress)
    other = fresh()
    again = tiny.run(other, plan, AFTER, start=load_checkpoint(newest(folder), other))
    return {
        "losses": first.losses + second.losses,
        "norms": first.norms + second.norms,
        "resumed_losses": again.losses,
        "same_state": tiny.is_equal(tiny.state(other), tiny.state(engine)),
        "optimizer_bytes": engine.group.gather(engine.optimizer_bytes()),
    }


def go_on_elsewhere(folder: Path, case: dict[str, Any]) -> list[float]:
    """Return the losses of the second part at another stage than the checkpoint was written at."""
    plan = tiny.plan(workers=WORLD, **case)
    engine = build_engine(tiny.model(case["method"]), plan)
    return list(tiny.run(engine, plan, AFTER, start=load_checkpoint(newest(folder), engine)).losses)


def overflow() -> dict[str, Any]:
    """Return what a loss scale that is far too large does at stage 2."""
    plan = tiny.plan(workers=WORLD, stage=2, precision="fp16")
    engine = build_engine(tiny.model(), plan)
    engine.scaler.scale = 2.0**40
    before = tiny.state(engine)
    steps = tiny.run(engine, plan, 1)
    weights = {name: tensor for name, tensor in tiny.state(engine).items() if "|" not in name}
    return {
        "finite": math.isfinite(steps.norms[0]),
        "same_weights": tiny.is_equal(weights, before),
        "scale": engine.scaler.scale,
        "optimizer_steps": steps.training.progress.optimizer_steps,
    }


def broken_row() -> dict[str, Any]:
    """Return what a rank says when a row of the other rank has a loss that is no number."""
    plan = tiny.plan(workers=WORLD, stage=0)
    engine = build_engine(tiny.model(), plan)
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[5] = torch.inf
    row = tiny.example([5, 6, 7, 8] if engine.group.rank == 1 else [9, 10, 11, 12], row=engine.group.rank)
    batches = [collate([row], "flat")]
    losses = engine.accumulate(batches, normaliser=4)
    (loss,) = engine.group.total([float(losses[0].sum())])
    try:
        require_finite_loss(loss, step=0, batches=batches, losses=losses, group=engine.group)
    except RunError as error:
        return {"rows": error.given}
    return {"rows": None}


def main(rank: int, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(WORLD))
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, timeout=timedelta(seconds=120))
    found: dict[str, Any] = {name: train_and_resume(folder / name, case) for name, case in CASES.items()}
    found["from_3_to_2"] = go_on_elsewhere(folder / "lora-3", CASES["lora-2"])
    found["from_0_to_3"] = go_on_elsewhere(folder / "full-0", CASES["full-3"])
    found["overflow"] = overflow()
    found["broken_row"] = broken_row()
    if rank == 0:
        for name, case in REFERENCES.items():
            plan = tiny.plan(**case)
            steps = tiny.run(build_engine(tiny.model(case["method"]), plan), plan, BEFORE + AFTER)
            found[name] = {"losses": steps.losses, "norms": steps.norms}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
