"""Who trains the trials: shared bases where they can, and a refusal where they are wanted and cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_world import open_campaign, write_job, write_world

from ftray.errors import InputError
from ftray.sweep.mode import choose_mode


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mode")
    write_world(folder)
    return folder


def chosen(world: Path, *sets: str, **options: Any) -> tuple[str, str]:
    campaign = open_campaign(write_job(world, "job.yaml"), *sets)
    return choose_mode(campaign.load().job, campaign.prepared.plan, **options)


def test_lora_trials_share_a_base(world: Path) -> None:
    assert chosen(world) == ("shared", "LoRA trials fit on one copy of the base")
    assert chosen(world, "sweep.mode=trainers", "compute.workers=1")[0] == "trainers"
    assert chosen(world, "compute.workers=1", forced="trainers") == ("trainers", "--force-mode says so")


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        (("method={kind: full}",), "full fine-tuning"),
        (("compute.deepspeed.stage=3",), "ZeRO-3"),
        (("train.precision=fp16",), "fp16"),
    ],
)
def test_what_shares_no_base_gets_trainers(world: Path, sets: tuple[str, ...], reason: str) -> None:
    mode, why = chosen(world, *sets, "compute.workers=1")
    assert mode == "trainers"
    assert reason in why
    with pytest.raises(InputError, match="cannot share a base") as refused:
        chosen(world, *sets, "compute.workers=1", forced="shared")
    assert refused.value.path == "sweep.mode"


def test_a_base_that_is_too_large_for_a_gpu_gets_trainers(world: Path) -> None:
    gib = 2**30
    assert chosen(world, "compute.workers=1", base=70 * gib, accelerator=80 * gib)[0] == "trainers"
    assert chosen(world, "compute.workers=1", base=16 * gib, accelerator=80 * gib)[0] == "shared"


def test_trainers_need_workers(world: Path) -> None:
    with pytest.raises(InputError, match="needs workers") as refused:
        chosen(world, "method={kind: full}")
    assert refused.value.path == "compute.workers"
