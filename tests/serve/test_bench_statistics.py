"""The simulated experiments are the store's statistics, number by number; the committed results keep to the goals."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ftray.serve.experiment.statistics.comparison import Centre, Comparison
from ftray.serve.experiment.statistics.sample_ratio import SampleRatio
from ftray.serve.experiment.statistics.sequences import Moments

FOLDER = Path(__file__).resolve().parent.parent.parent / "jobs" / "bench_statistics"
PARTS = ("simulation", "traffic", "tables", "bench_report")
RUNS = 3


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    path = list(sys.path)
    for part in PARTS:  # other benchmarks have modules of these names
        sys.modules.pop(part, None)
    spec = importlib.util.spec_from_file_location("bench_statistics", FOLDER / "bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    for part in PARTS:
        sys.modules.pop(part, None)


@pytest.mark.parametrize("which", [0, 3, 4, 6, 7])
def test_arrays_and_events_give_the_same_numbers(bench: ModuleType, which: int) -> None:
    setting = bench.NOTHING[which]
    setting = type(setting)(**{**bench.asdict(setting), "events": 700})
    traffic = bench.simulate(setting, RUNS, np.random.default_rng(5))
    challenger = traffic.chances.shape[1] - 1
    psi, fraction, least = bench.fractions(traffic, challenger)
    log_e, _ = bench.log_e_values(fraction)
    mean, width = bench.half_widths(psi, bench.ALPHA, 2.0 / least**2)
    for run in range(RUNS):
        comparison, centre = Comparison(), Centre()
        for event, (arm, outcome) in enumerate(zip(traffic.arm[run], traffic.outcome[run], strict=True)):
            if arm in (0, challenger):
                comparison.add(
                    float(outcome),
                    centre=centre.value,
                    is_challenger=bool(arm == challenger),
                    challenger=float(traffic.chances[event, challenger]),
                    control=float(traffic.chances[event, 0]),
                )
            else:
                comparison.skip()
            centre.add(float(outcome))
            difference = comparison.difference(bench.ALPHA)
            assert difference is not None
            assert comparison.bet.log_e == pytest.approx(log_e[run, event], abs=1e-9)
            assert difference.estimate == pytest.approx(mean[run, event], abs=1e-9)
            assert difference.high - difference.low == pytest.approx(2 * width[run, event], rel=1e-7)
        assert comparison.bet.largest == pytest.approx(max(0.0, log_e[run].max()), abs=1e-9)


def test_units_and_votes_and_latencies_too(bench: ModuleType) -> None:
    random = np.random.default_rng(6)
    chances = np.repeat(np.array([[0.95, 0.05], [0.5, 0.5]]), 200, axis=0)
    arms = bench.draw_arms(chances, 1, random)
    log_e = bench.ratio_log_e(arms, chances)[0]
    ratio = SampleRatio()
    for event, arm in enumerate(arms[0]):
        ratio.add("ab"[arm], dict(zip("ab", map(float, chances[event]), strict=True)))
        assert ratio.log_e == pytest.approx(log_e[event], abs=1e-9)
    values = random.lognormal(size=(1, 300))
    mean, width = bench.half_widths(values, bench.ALPHA)
    moments = Moments()
    for value in values[0]:
        moments.add(float(value))
    interval = moments.interval(bench.ALPHA)
    assert interval is not None
    assert (interval.estimate, interval.high) == pytest.approx((mean[0, -1], mean[0, -1] + width[0, -1]))


def test_few_experiments_fill_every_table(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PER_ARM", 300)
    for kind in ("NOTHING", "BETTER", "HELD"):
        short = [type(one)(**{**bench.asdict(one), "events": 600}) for one in getattr(bench, kind)]
        monkeypatch.setattr(bench, kind, short)
    grids = bench.tables(bench.measure(runs=2))
    assert [len(grid.rows) for grid in grids] == [10, 6, 9, 5, 3]
    assert all(len(row) == len(grid.header) for grid in grids for row in grid.rows)


def test_the_committed_results_keep_to_the_goals() -> None:
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    runs = results["runs"]
    assert (runs, results["looks"], results["units_per_arm"]) == (2000, 250, 5000)
    by_user = [one for one in results["nothing_better"] if one["unit"] == "user"]
    assert {one["name"] for one in by_user} >= {"50/50", "90/10", "400 users, 20 requests each"}
    assert all(one["betting"] <= 0.05 * runs for one in by_user)
    assert min(one["peeking"] for one in by_user) > 0.35 * runs
    units = {tuple(one["rates"]): one for one in results["one_better"] if one["name"] == "50/50"}
    assert units[0.5, 0.6]["median_challenger_units"] <= 500
    assert units[0.95, 0.98]["median_challenger_units"] <= 900
    assert all(one["alarms"] <= 0.001 * one["runs"] for one in results["sample_ratio"] if not one["lost"])
    assert all(one["missed"] <= 0.05 * runs for one in results["intervals"])
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{units[0.5, 0.6]['median_outcomes']:,}" in readme


def test_the_committed_cross_check_agrees() -> None:
    record = json.loads((FOLDER / "cross_check.json").read_text(encoding="utf-8"))
    assert record["largest_relative_difference"] < 1e-9
    assert all(math.isfinite(case["last_log10_e_value"]) for case in record["cases"])
