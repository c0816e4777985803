"""What a campaign refuses before anything is started: no Ray, no folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from trial_world import load_world

from ftray.errors import InputError
from ftray.sweep.leaderboard import open_leaderboard
from ftray.sweep.run import sweep

SPACE = {"learning_rate": {"loguniform": [1e-4, 1e-2]}}


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"sweep": {"space": SPACE, "searcher": "optunna"}}, "sweep.searcher"),
        ({"sweep": {"space": SPACE}, "compute": {"workers": 1, "gpus_per_worker": 1000}}, "compute.workers"),
        ({"sweep": {"space": SPACE, "resolution": 0.001}}, "sweep.resolution"),
        ({"sweep": {"space": SPACE}, "evaluate": {"task": {"metric": "json_fields"}}}, "evaluate.task.metric"),
        ({"sweep": {"space": {"learning_rates": [1e-4, 1e-2]}}}, "sweep.space.learning_rates"),
    ],
)
def test_bad_input_starts_nothing(tmp_path: Path, sections: dict[str, Any], path: str) -> None:
    loaded = load_world(tmp_path, method={"kind": "lora"}, **sections)
    was_running = ray.is_initialized()
    with open_leaderboard(quiet=True, metric="exact_match") as board, pytest.raises(InputError) as refused:
        sweep(loaded, display=board)
    assert refused.value.path == path
    assert ray.is_initialized() == was_running
    assert not (tmp_path / "runs").exists()
