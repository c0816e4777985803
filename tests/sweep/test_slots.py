"""Trials that share a base are the trainings that each would be alone, whatever happens to their neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sweep_world import Campaign, finish, losses, open_campaign, write_world

from ftray.artifacts import RunDirectory
from ftray.finetune import finetune

CONFIGURATIONS = (
    ("method.rank=4", "method.alpha=8"),
    ("method.rank=8", "train.learning_rate=5e-3"),
    ("method.rank=2", "train.batch_size=6", "train.weight_decay=0.1"),
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return open_campaign(write_world(tmp_path_factory.mktemp("sweep")))


def folder(place: Path, name: str) -> RunDirectory:
    return RunDirectory(place / name)


def test_trials_are_the_runs_of_their_configurations(campaign: Campaign, tmp_path: Path) -> None:
    base = campaign.base(slots=2)
    specs = [campaign.spec(*sets) for sets in CONFIGURATIONS]
    runs = [base.join(spec, folder(tmp_path, spec.trial_id)) for spec in specs]
    finish(base, runs)
    for sets, run in zip(CONFIGURATIONS, runs, strict=True):
        alone = campaign.load(*sets, f"storage={tmp_path}")
        result = finetune(alone, display=lambda line: None, on_plan=lambda prepared: None)
        other = RunDirectory(Path(result["path"]))
        assert np.allclose(losses(run.folder), losses(other), rtol=0, atol=1e-4)
        assert run.progress.step == result["steps"]
        assert run.best.step == result["selected"]["step"]
        assert run.best.value == result["selected"]["value"]
