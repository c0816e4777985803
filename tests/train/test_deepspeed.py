"""DeepSpeed on two processes: every ZeRO stage has the reference's losses, shares its state and resumes bit for bit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ftray.train.checkpoint import find_checkpoints, load_checkpoint
from ftray.train.deepspeed import NEVER, deepspeed_config
from ftray.work import build_engine

SCRIPT = Path(__file__).parent / "zero_ranks.py"
PATIENCE_SECONDS = 400
BEFORE, AFTER = 4, 3  # as in zero_ranks.py
FP32 = [
    "lora-0", "lora-1", "lora-2", "lora-3", "full-0", "full-2", "full-3", "lora-2-cpu", "lora-3-cpu", "full-2-packed",
]  # fmt: skip
HALF = ["lora-0-fp16", "lora-2-fp16", "lora-3-bf16"]
RUN_ID = "a" * 64


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which two ranks trained every case of zero_ranks.py."""
    made = tmp_path_factory.mktemp("zero")
    port = str(free_port())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(2):
        with (made / f"log-{rank}.txt").open("wb") as log:
            command = [sys.executable, str(SCRIPT), str(rank), port, str(made)]
            ranks.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    try:
        # When one rank fails the other waits for it in a collective, until its own timeout.
        codes = [rank.wait(timeout=PATIENCE_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert codes == [0, 0], "\n".join((made / f"log-{rank}.txt").read_text()[-3000:] for rank in range(2))
    return made


@pytest.fixture(scope="module")
def found(folder: Path) -> Any:
    return json.loads((folder / "rank-0.json").read_text())


def reference(case: str) -> str:
    method, precision = case.split("-")[0], case.split("-")[-1]
    return f"{method}-{precision}" if precision in ("fp16", "bf16") else method


@pytest.mark.slow
@pytest.mark.parametrize("case", FP32)
def test_losses_are_the_references(found: Any, case: str) -> None:
    expected = found[reference(case)]
    assert len(expected["losses"]) == BEFORE + AFTER
    assert found[case]["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert found[case]["norms"] == pytest.approx(expected["norms"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", HALF)
def test_half_precision_has_the_references_losses_but_for_rounding(found: Any, case: str) -> None:
    expected = found[reference(case)]
    assert found[case]["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    assert found[case]["norms"] == pytest.approx(expected["norms"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("case", FP32 + HALF)
def test_a_resumed_run_is_the_run_bit_for_bit(found: Any, case: str) -> None:
    assert found[case]["resumed_losses"] == found[case]["losses"][BEFORE:]
    assert found[case]["same_state"]


@pytest.mark.slow
def test_ranks_agree(folder: Path, found: Any) -> None:
    other = json.loads((folder / "rank-1.json").read_text())
    for case in FP32 + HALF:
        assert other[case] == found[case]


@pytest.mark.slow
def test_optimizer_state_is_shared_from_stage_1_on(found: Any) -> None:
    for method, stages in (("lora", (1, 2, 3)), ("full", (2, 3))):
        alone = found[f"{method}-0"]["optimizer_bytes"]
        assert alone[0] == alone[1] > 0
        for stage in stages:
            shared = found[f"{method}-{stage}"]["optimizer_bytes"]
            assert len(shared) == 2
            assert max(shared) <= 0.55 * alone[0]


@pytest.mark.slow
def test_a_run_goes_on_at_another_stage(found: Any) -> None:
    assert found["from_3_to_2"] == pytest.approx(found["lora"]["losses"][BEFORE:], rel=1e-6)
    assert found["from_0_to_3"] == pytest.approx(found["full"]["losses"][BEFORE:], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "case"), [("lora", "lora-3"), ("full", "full-2"), ("full", "full-3")])
def test_a_run_goes_on_in_one_process(tiny: ModuleType, folder: Path, found: Any, method: str, case: str) -> None:
    (checkpoint,) = find_checkpoints(folder / case, run_id=RUN_ID)
    assert checkpoint.is_whole()
    assert checkpoint.manifest["world_size"] == 2
    plan = tiny.plan(method)
    engine = build_engine(tiny.model(method), plan)
    steps = tiny.run(engine, plan, AFTER, start=load_checkpoint(checkpoint, engine))
    assert steps.losses == pytest.approx(found[method]["losses"][BEFORE:], rel=1e-6)


@pytest.mark.slow
def test_an_adapter_of_two_ranks_is_one_file(folder: Path) -> None:
    (checkpoint,) = find_checkpoints(folder / "lora-3", run_id=RUN_ID)
    assert [path.name for path in checkpoint.weight_files] == ["adapter_model.safetensors"]
    # Every weight is there and whole: under ZeRO-3 others have written empty files.
    assert all(tensor.numel() == 4 * max(tensor.shape) for _, tensor in checkpoint.weights())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["full-2", "full-3"])
def test_a_full_model_of_two_ranks_opens_with_transformers(tiny: ModuleType, folder: Path, case: str) -> None:
    (checkpoint,) = find_checkpoints(folder / case, run_id=RUN_ID)
    assert [path.name for path in checkpoint.weight_files] == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    opened, report = AutoModelForCausalLM.from_pretrained(checkpoint.folder, output_loading_info=True)
    assert not report["missing_keys"]
    engine = tiny.engine("full")
    load_checkpoint(checkpoint, engine)
    weights = dict(engine.model.named_parameters())
    for name, parameter in opened.named_parameters():
        assert torch.equal(parameter, weights[name]), name


@pytest.mark.slow
def test_an_overflow_is_skipped_under_zero(found: Any) -> None:
    assert found["overflow"] == {"finite": False, "same_weights": True, "scale": 2.0**39, "optimizer_steps": 0}


@pytest.mark.slow
def test_every_rank_names_a_row_that_broke_on_one(folder: Path) -> None:
    for rank in range(2):
        assert json.loads((folder / f"rank-{rank}.json").read_text())["broken_row"] == {"rows": [["train", 1]]}


# Configuration


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_configuration_leaves_the_arithmetic_to_the_loop(tiny: ModuleType, stage: int) -> None:
    config = deepspeed_config(tiny.plan(workers=2, stage=stage, max_grad_norm=0.7))
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_accumulation_steps"] == config["train_micro_batch_size_per_gpu"] == 1
    # Stage 0 is clipped by the engine, which needs the norm anyway.
    assert config["gradient_clipping"] == (0.7 if stage else 0.0)
    assert config["steps_per_print"] == NEVER
    assert not {"fp16", "bf16", "optimizer", "scheduler"} & set(config)


def test_offload_is_written_where_the_plan_says(tiny: ModuleType) -> None:
    plan = tiny.plan(workers=2, stage=3, offload_optimizer="nvme", offload_parameters="cpu")
    zero = deepspeed_config(plan)["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "nvme", "pin_memory": False, "nvme_path": "/local_nvme"}
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": False}
    assert "offload_optimizer" not in deepspeed_config(tiny.plan(workers=2, stage=3))["zero_optimization"]


def test_buckets_are_as_large_as_what_is_trained(tiny: ModuleType) -> None:
    bucket = deepspeed_config(tiny.plan(workers=2, stage=2))["zero_optimization"]["reduce_bucket_size"]
    assert bucket == 2**16
