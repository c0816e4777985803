"""The simulated campaigns: a few of them, and that the committed results keep to the goal."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "jobs" / "bench_selection"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_selection", FOLDER / "bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_noise_is_seldom_claimed_and_a_plain_difference_often_found(bench: ModuleType) -> None:
    noise = bench.run(bench.Setting(accuracy=0.8), campaigns=100)
    assert noise["distinguishable"] <= 5
    assert noise["recommended"]["winner"] <= noise["distinguishable"]
    assert noise["naive"] > noise["distinguishable"]
    plain = bench.run(bench.Setting(accuracy=0.8, effect=0.15), campaigns=20)
    assert plain["better_trial_distinguishable"] >= 18


def test_the_tables_are_written_from_few_campaigns(bench: ModuleType) -> None:
    grids = bench.tables(bench.measure(campaigns=2))
    assert [len(grid.rows) for grid in grids] == [12, 8]
    assert all(len(row) == len(grid.header) for grid in grids for row in grid.rows)


def test_the_committed_results_keep_to_the_goal() -> None:
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    assert results["campaigns"] == 1000
    assert all(kind["distinguishable"] <= 50 for kind in results["nothing_better"])
    assert max(kind["naive"] for kind in results["nothing_better"]) > 100
