"""Simulated experiments: how often a winner is claimed that is none, and how many units a real one takes.

python jobs/bench_statistics/bench.py

A few minutes on one core; needs neither a model nor data. Writes results.json and README.md's tables.
"""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from rich.console import Console
from scipy.stats import chi2

from ftray.serve.experiment.statistics.comparison import MEMORY
from ftray.serve.experiment.statistics.sample_ratio import ALARM
from ftray.serve.experiment.tally import FEWEST

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench_report import describe_machine, fill_readme  # noqa: E402  (the folder above is where benchmarks share it)
from simulation import (  # noqa: E402
    FloatArray,
    IntArray,
    Traffic,
    first_at_least,
    fractions,
    half_widths,
    log_e_values,
    ratio_log_e,
)
from tables import CLAIMS, tables  # noqa: E402
from traffic import REQUESTS, USERS, Setting, draw_arms, simulate, simulate_users  # noqa: E402

RUNS = 2000
BLOCK = 50
"""Runs that are held in memory at a time."""
LOOKS = 250
ALPHA = 0.05

PER_ARM = 5000
SEED = 20240229
USERS_NAME = f"{USERS} users, {REQUESTS} requests each"
HALVES, SKEWED = ((0.5, 0.5),), ((0.9, 0.1),)
RAMP = ((0.95, 0.05), (0.8, 0.2), (0.5, 0.5))
NOTHING = (
    Setting(name="50/50", rates=(0.5, 0.5), shares=HALVES, events=2 * PER_ARM),
    Setting(name="50/50, high rate", rates=(0.95, 0.95), shares=HALVES, events=2 * PER_ARM),
    Setting(name="90/10", rates=(0.5, 0.5), shares=SKEWED, events=2 * PER_ARM),
    Setting(name="90/10, high rate", rates=(0.95, 0.95), shares=SKEWED, events=2 * PER_ARM),
    Setting(name="ramp 5, 20, 50 %, drifting rate", rates=(0.3, 0.3), shares=RAMP, events=2 * PER_ARM, drift=0.4),
    Setting(name="ramp 5, 20, 50 %, falling rate", rates=(0.9, 0.9), shares=RAMP, events=2 * PER_ARM, drift=-0.4),
    Setting(
        name="half of one arm's feedback is missing, drifting rate", rates=(0.3, 0.3), shares=HALVES,
        events=2 * PER_ARM, drift=0.4, answering=(1.0, 0.5),
    ),
    Setting(name="three arms", rates=(0.5, 0.5, 0.5), shares=((1 / 3, 1 / 3, 1 / 3),), events=3 * PER_ARM),
)  # fmt: skip
BETTER = (
    Setting(name="50/50", rates=(0.5, 0.6), shares=HALVES, events=2 * PER_ARM),
    Setting(name="50/50", rates=(0.95, 0.98), shares=HALVES, events=2 * PER_ARM),
    Setting(name="50/50", rates=(0.5, 0.55), shares=HALVES, events=2 * PER_ARM),
    Setting(name="50/50", rates=(0.8, 0.9), shares=HALVES, events=2 * PER_ARM),
    Setting(name="90/10", rates=(0.5, 0.6), shares=SKEWED, events=2 * PER_ARM),
    Setting(name="ramp 5, 20, 50 %", rates=(0.5, 0.6), shares=RAMP, events=2 * PER_ARM),
)
HELD = (
    *NOTHING[:4],
    Setting(name="50/50, very high rate", rates=(0.99, 0.99), shares=HALVES, events=2 * PER_ARM),
    NOTHING[4],
    *BETTER[:2],
)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=RUNS)
    asked = parser.parse_args()
    began = time.monotonic()
    results = measure(asked.runs)
    results["seconds"] = round(time.monotonic() - began, 1)
    grids = tables(results)
    for grid in grids:
        Console().print(grid.to_rich())
    if asked.runs == RUNS:
        (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        fill_readme(HERE / "README.md", "\n\n".join(grid.to_markdown() for grid in grids))


def measure(runs: int) -> dict[str, Any]:
    """Return what is claimed where nothing is better, and found where an arm is."""
    return {
        "schema": "ftray/bench_statistics/1",
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "runs": runs,
        "alpha": ALPHA,
        "looks": LOOKS,
        "units_per_arm": PER_ARM,
        "nothing_better": [false_winners(setting, runs) for setting in NOTHING] + user_level(runs),
        "one_better": [units_to_decide(setting, runs) for setting in BETTER],
        "intervals": [misses(setting, runs) for setting in HELD] + [guardrail_misses(runs)],
        "sample_ratio": sample_ratio(runs),
        "preferences": [votes(share, runs) for share in (0.5, 0.6, 0.7)],
    }


def blocks(setting: Setting, runs: int) -> Iterator[Traffic]:
    """Yield experiments of one kind; the same seed for each kind."""
    random = np.random.default_rng(SEED)
    for begin in range(0, runs, BLOCK):
        yield simulate(setting, min(BLOCK, runs - begin), random)


def false_winners(setting: Setting, runs: int) -> dict[str, Any]:
    """Return how many experiments without a difference claim one."""
    counts = dict.fromkeys(CLAIMS, 0)
    for traffic in blocks(setting, runs):
        for name, found in claims(traffic).items():
            counts[name] += int(found.sum())
    return {**asdict(setting), "unit": "user", **counts}


def claims(traffic: Traffic) -> dict[str, np.ndarray]:
    """Return which experiments claim a difference: ours after any outcome, a z-test at any of the looks, and once."""
    challengers = range(1, traffic.chances.shape[-1])
    log_e, unforgetting = (
        [log_e_values(fractions(traffic, one, memory)[1])[0] for one in challengers] for memory in (MEMORY, None)
    )
    z = np.max([np.abs(z_scores(traffic, one)) for one in challengers], axis=0)
    critical = NormalDist().inv_cdf(1 - ALPHA / 2 / len(log_e))
    needed = math.log(len(log_e) / ALPHA)
    return {
        "betting": (np.max(log_e, axis=0) >= needed).any(axis=1),
        "unforgetting": (np.max(unforgetting, axis=0) >= needed).any(axis=1),
        "peeking": (z >= critical).any(axis=1),
        "once": z[:, -1] >= critical,
    }


def z_scores(traffic: Traffic, challenger: int) -> FloatArray:
    """Return the pooled two-sample z at each look [run, look]; 0 before both arms have outcomes."""
    at = np.linspace(0, traffic.outcome.shape[1], LOOKS + 1).astype(int)[1:] - 1
    n, rates = [], []
    for arm in (0, challenger):
        fell = traffic.arm == arm
        n.append(np.cumsum(fell, axis=1)[:, at])
        rates.append(np.cumsum(traffic.outcome * fell, axis=1)[:, at] / np.maximum(1, n[-1]))
    pooled = (rates[0] * n[0] + rates[1] * n[1]) / np.maximum(1, n[0] + n[1])
    variance = pooled * (1 - pooled) * (1 / np.maximum(1, n[0]) + 1 / np.maximum(1, n[1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (rates[1] - rates[0]) / np.sqrt(variance)
    return np.where((variance > 0) & (n[0] > 0) & (n[1] > 0), z, 0.0)


def user_level(runs: int) -> list[dict[str, Any]]:
    """Return false winners with few users of many requests each: counted by user, as we do, and by request."""
    random = np.random.default_rng(SEED)
    found: dict[str, dict[str, int]] = {unit: dict.fromkeys(CLAIMS, 0) for unit in ("user", "request")}
    for begin in range(0, runs, BLOCK):
        requests, units = simulate_users(0.5, min(BLOCK, runs - begin), random)
        for unit, traffic in (("user", units), ("request", requests)):
            for name, claimed in claims(traffic).items():
                found[unit][name] += int(claimed.sum())
    shown = {
        "name": "400 users, 20 requests each",
        "rates": (0.5, 0.5),
        "shares": HALVES,
        "drift": 0.0,
        "answering": None,
    }
    return [
        {**shown, "events": 400 if unit == "user" else 8000, "unit": unit, **counts} for unit, counts in found.items()
    ]


def units_to_decide(setting: Setting, runs: int) -> dict[str, Any]:
    """Return how many experiments find the better arm, and after how many units of the smaller arm."""
    decided, wrong, units, outcomes, unforgetting = 0, 0, [], [], []
    for traffic in blocks(setting, runs):
        log_e, up = log_e_values(fractions(traffic, 1)[1])
        at = first_at_least(log_e, math.log(1 / ALPHA))
        rows = np.flatnonzero(at >= 0)
        # E is the mean of both halves, so more than half of it is the up half's.
        ahead = up[rows, at[rows]] >= log_e[rows, at[rows]]
        decided, wrong = decided + int(ahead.sum()), wrong + int((~ahead).sum())
        seen = np.cumsum(traffic.arm == 1, axis=1)
        units += [int(seen[row, at[row]]) if at[row] >= 0 else math.inf for row in range(len(at))]
        outcomes += after(at)
        log_e, _ = log_e_values(fractions(traffic, 1, None)[1])
        unforgetting += after(first_at_least(log_e, math.log(1 / ALPHA)))
    return {
        **asdict(setting),
        "decided": decided,
        "wrong": wrong,
        "median_challenger_units": finite(np.median(units)),
        "median_outcomes": finite(np.median(outcomes)),
        "median_outcomes_unforgetting": finite(np.median(unforgetting)),
        "ninety_percent_outcomes": finite(np.quantile(outcomes, 0.9, method="inverted_cdf")),
        "z_once_units_per_arm": z_units(*setting.rates),
    }


def after(positions: IntArray) -> list[float]:
    """Return how many events it took to reach each position; infinite for those that were not reached."""
    return [int(one) + 1 if one >= 0 else math.inf for one in positions]


def finite(number: float) -> int | None:
    return int(number) if math.isfinite(number) else None


def z_units(first: float, second: float, power: float = 0.8) -> int:
    """Return the units per arm at which a z-test with one look, planned beforehand, finds it with this power."""
    normal = NormalDist()
    mean = (first + second) / 2
    alone = normal.inv_cdf(1 - ALPHA / 2) * math.sqrt(2 * mean * (1 - mean))
    together = normal.inv_cdf(power) * math.sqrt(first * (1 - first) + second * (1 - second))
    return math.ceil(((alone + together) / (second - first)) ** 2)


def misses(setting: Setting, runs: int) -> dict[str, Any]:
    """Return how often the difference's interval ever misses the true difference."""
    truth, missed = setting.rates[1] - setting.rates[0], 0
    for traffic in blocks(setting, runs):
        psi, _, least = fractions(traffic, 1)
        mean, width = half_widths(psi, ALPHA, 2.0 / least**2)
        missed += int((np.abs(mean - truth) > width).any(axis=1).sum())
    return {**asdict(setting), "missed": missed}


def guardrail_misses(runs: int) -> dict[str, Any]:
    """Return how often a guardrail's interval ever misses the mean of latencies (log-normal, deviation of log 0.75)."""
    random = np.random.default_rng(SEED)
    deviation, missed = 0.75, 0
    for begin in range(0, runs, BLOCK):
        latency = random.lognormal(0.0, deviation, size=(min(BLOCK, runs - begin), PER_ARM))
        mean, width = half_widths(latency, ALPHA)
        beyond = np.abs(mean - math.exp(deviation**2 / 2)) > width
        missed += int(beyond[:, FEWEST - 1 :].any(axis=1).sum())
    return {"name": "guardrail: skewed latencies, from 50 units on", "rates": None, "events": PER_ARM, "missed": missed}


def sample_ratio(runs: int) -> list[dict[str, Any]]:
    """Return alarms where all is well, and after how many units where one arm loses some of its own."""
    kinds: list[tuple[str, tuple[tuple[float, ...], ...], float]] = [
        ("50/50", HALVES, 0.0),
        ("90/10", SKEWED, 0.0),
        ("ramp 5, 20, 50 %", RAMP, 0.0),
        ("50/50, one arm loses 5 %", HALVES, 0.05),
        ("50/50, one arm loses 20 %", HALVES, 0.2),
    ]
    return [ratio_alarms(name, shares, lost, runs if lost else 5 * runs) for name, shares, lost in kinds]


def ratio_alarms(name: str, shares: tuple[tuple[float, ...], ...], lost: float, runs: int) -> dict[str, Any]:
    random = np.random.default_rng(SEED)
    units = 2 * PER_ARM
    stages = np.array(shares)
    chances = stages[np.arange(units) * len(stages) // units]
    alarms, peeking, seen_units = 0, 0, []
    for begin in range(0, runs, BLOCK):
        arm = draw_arms(chances, min(BLOCK, runs - begin), random, answering=(1.0, 1.0 - lost))
        at = first_at_least(ratio_log_e(arm, chances), math.log(ALARM))
        alarms += int((at >= 0).sum())
        seen_units += after(at)
        looks = np.linspace(0, units, LOOKS + 1).astype(int)[1:] - 1
        expected = np.cumsum(chances[:, 1])[looks]
        seen, n = np.cumsum(arm == 1, axis=1)[:, looks], looks + 1
        peeking += int(
            ((seen - expected) ** 2 / (expected * (1 - expected / n)) >= chi2.isf(0.001, 1)).any(axis=1).sum()
        )
    return {
        "name": name, "lost": lost, "runs": runs, "units": units, "alarms": alarms, "chi_square_peeking": peeking,
        "median_units": finite(np.median(seen_units)),
    }  # fmt: skip


def votes(share: float, runs: int) -> dict[str, Any]:
    """Return how often, and after how many raters, votes with one tie in five show a preference."""
    random = np.random.default_rng(SEED)
    raters, ties = 2000, 0.2
    at = []
    for begin in range(0, runs, BLOCK):
        shape = (min(BLOCK, runs - begin), raters)
        fraction = np.where(random.random(shape) < ties, 0.0, np.where(random.random(shape) < share, 1.0, -1.0))
        at.append(first_at_least(log_e_values(fraction)[0], math.log(1 / ALPHA)))
    found = np.concatenate(at)
    return {"share": share, "ties": ties, "raters": raters, "shown": int((found >= 0).sum()),
            "median_raters": finite(np.median(after(found)))}  # fmt: skip


if __name__ == "__main__":
    main()
