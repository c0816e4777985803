"""Simulated campaigns: how often a winner is claimed that is none, and how often a better trial is found.

python jobs/bench_selection/bench.py

Under a minute; needs neither a model nor data. Writes results.json and README.md's tables.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ftray.campaign import Point, TrialResult
from ftray.evaluate.intervals import RowStatistics, mcnemar, wilson
from ftray.sweep.choice import choose
from ftray.sweep.comparison import Comparison, Scores, compare_finalists
from ftray.sweep.recommendation import recommend

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from bench_report import Grid, fill_readme  # noqa: E402  (the folder above is where benchmarks share it)

CAMPAIGNS = 1000
TRIALS = 16
FINALISTS = 3
VALIDATION_ROWS, TEST_ROWS = 200, 700
ACCURACIES = (0.5, 0.8, 0.95)
EFFECTS = (0.02, 0.03, 0.05)
BASE_BEHIND = 0.10
"""How much worse the base is where an effect is looked for."""
OF_THE_ROW, OF_THE_TRIAL = 0.7, 0.2
"""Shares of a result's variance that its row and its trial decide, the latter for all of a trial's checkpoints."""
CHECKPOINTS = 5
SEED = 20240229
Right = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One kind of campaign; trial 0 is the default and the last trial is the better one, if any is."""

    accuracy: float
    effect: float = 0.0
    test_split: bool = True
    checkpoints: int = 1
    """Of every trial, of which validation keeps the best."""
    default_checkpoints: int | None = None
    """Of the default and the base, where they have fewer: the others then have more chances than they."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one campaign ends with."""

    distinguishable: bool
    recommended: str
    winner_is_better: bool
    """Whether validation chose the trial that is really better."""
    naive: bool
    """Whether the best of all on the rows that decide is better than the default with a plain p <= 0.05."""
    validation_alone: bool
    """Whether the winner is, on the rows that chose it."""
    intervals_hold: bool
    """Whether every interval of a difference to the default holds the true one."""


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--campaigns", type=int, default=CAMPAIGNS)
    asked = parser.parse_args()
    began = time.monotonic()
    results = measure(asked.campaigns)
    results["seconds"] = round(time.monotonic() - began, 1)
    grids = tables(results)
    for grid in grids:
        Console().print(grid.to_rich())
    if asked.campaigns == CAMPAIGNS:
        (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        fill_readme(HERE / "README.md", "\n\n".join(grid.to_markdown() for grid in grids))


def measure(campaigns: int) -> dict[str, Any]:
    """Return what is claimed where nothing is better, and found where one trial is."""
    nothing = [
        Setting(accuracy=accuracy, test_split=test_split, checkpoints=checkpoints, default_checkpoints=of_default)
        for accuracy in ACCURACIES
        for test_split, checkpoints, of_default in (
            (True, CHECKPOINTS, None),
            (False, 1, None),
            (False, CHECKPOINTS, None),
            (False, CHECKPOINTS, 1),
        )
    ]
    # At 95 % there is no room for 5 points more.
    better = [
        Setting(accuracy=accuracy, effect=effect)
        for accuracy in ACCURACIES
        for effect in EFFECTS
        if accuracy + effect < 1
    ]
    return {
        "schema": "ftray/bench_selection/1",
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "campaigns": campaigns,
        "trials": TRIALS,
        "finalists": FINALISTS,
        "rows": {"validation": VALIDATION_ROWS, "test": TEST_ROWS},
        "base_behind": BASE_BEHIND,
        "share_of_variance": {"row": OF_THE_ROW, "trial": OF_THE_TRIAL},
        "nothing_better": [run(setting, campaigns) for setting in nothing],
        "one_better": [run(setting, campaigns) for setting in better],
    }


def run(setting: Setting, campaigns: int) -> dict[str, Any]:
    """Return how many campaigns of one kind end how."""
    random = np.random.default_rng(SEED)
    outcomes = [campaign(setting, random) for _ in range(campaigns)]
    return {
        **asdict(setting),
        "distinguishable": sum(one.distinguishable for one in outcomes),
        "better_trial_distinguishable": sum(one.distinguishable and one.winner_is_better for one in outcomes),
        "better_trial_chosen": sum(one.winner_is_better for one in outcomes),
        "naive": sum(one.naive for one in outcomes),
        "validation_alone": sum(one.validation_alone for one in outcomes),
        "intervals_hold": sum(one.intervals_hold for one in outcomes),
        "recommended": {
            name: sum(one.recommended == name for one in outcomes) for name in ("winner", "default", "base")
        },
    }


def campaign(setting: Setting, random: np.random.Generator) -> Outcome:
    """Simulate one campaign: validation rows choose, and the test rows, or the same rows without them, decide."""
    accuracies = np.full(TRIALS, setting.accuracy)
    accuracies[-1] += setting.effect
    # Where nothing is better, training did nothing either: the base is one more of them.
    base = setting.accuracy - (BASE_BEHIND if setting.effect else 0.0)
    everyone = np.append(accuracies, base)
    checkpoints = np.full(TRIALS + 1, setting.checkpoints)
    checkpoints[[0, -1]] = setting.default_checkpoints or setting.checkpoints
    chosen = right_rows(everyone, VALIDATION_ROWS, checkpoints, random)
    trials = [result(position, rows) for position, rows in enumerate(chosen[:-1])]
    choice = choose(trials, higher_is_better=True, finalists=FINALISTS)
    asked = right_rows(everyone, TEST_ROWS, np.ones_like(checkpoints), random) if setting.test_split else chosen
    comparison = compare_finalists(
        choice,
        {trial.trial_id: scores(rows) for trial, rows in zip(trials, asked[:-1], strict=True)},
        scores(asked[-1]),
        higher_is_better=True,
        split="test" if setting.test_split else "validation",
    )
    assert choice.winner is not None
    assert comparison.winner_vs_default is not None
    best_asked = int(asked[:-1].mean(axis=1).argmax())
    winner = int(choice.winner.trial_id, 16)
    return Outcome(
        distinguishable=comparison.winner_vs_default.distinguishable,
        recommended=recommend(comparison, metric="exact_match").recommended,
        winner_is_better=setting.effect > 0 and winner == TRIALS - 1,
        naive=plainly_better(asked[best_asked], asked[0]),
        validation_alone=plainly_better(chosen[winner], chosen[0]),
        intervals_hold=intervals_hold(comparison, accuracies),
    )


def right_rows(
    accuracies: NDArray[np.float64], num_rows: int, checkpoints: NDArray[np.int_], random: np.random.Generator
) -> Right:
    """Return which rows each model gets right [models, rows]: its checkpoint that is best on these rows.

    A row is as hard for one model as for another, but for the parts of the trial and the checkpoint.
    """
    shape = (len(accuracies), int(checkpoints.max()), num_rows)
    ease = (
        np.sqrt(OF_THE_ROW) * random.standard_normal(num_rows)
        + np.sqrt(OF_THE_TRIAL) * random.standard_normal((shape[0], 1, num_rows))
        + np.sqrt(1 - OF_THE_ROW - OF_THE_TRIAL) * random.standard_normal(shape)
    )
    limits = np.array([NormalDist().inv_cdf(accuracy) for accuracy in accuracies])
    right = ease < limits[:, None, None]
    exists = np.arange(shape[1]) < checkpoints[:, None]
    best = np.where(exists, right.sum(axis=2), -1).argmax(axis=1)
    rows: Right = right[np.arange(len(accuracies)), best]
    return rows


def result(position: int, rows: Right) -> TrialResult:
    """Return a trial's line of the ledger; its loss breaks ties and says nothing."""
    point = Point(step=1, validation_accuracy=float(rows.mean()), validation_loss=float((position * 7) % TRIALS))
    return TrialResult(
        trial_id=f"{position:012x}",
        config={},
        seed=position,
        state="completed",
        reason="",
        steps=1,
        epochs=1.0,
        best=point,
        last=point,
        seconds=0.0,
        tokens=1,
        adapter=None,
        is_default=position == 0,
    )


def scores(rows: Right) -> Scores:
    """Return the rows as what is compared."""
    sums = np.stack([rows, np.ones(len(rows))], axis=1).astype(np.float64)
    return Scores(statistics=RowStatistics(rows=sums, value_of=lambda sums: sums[:, 0] / sums[:, 1]), correct=rows)


def plainly_better(these: Right, those: Right) -> bool:
    """Return what a single comparison would claim of two models."""
    only_these, only_those = int((these & ~those).sum()), int((those & ~these).sum())
    return only_these > only_those and mcnemar(only_those, only_these) <= 0.05


def intervals_hold(comparison: Comparison, accuracies: NDArray[np.float64]) -> bool:
    """Return whether all intervals of differences to the default hold the true ones."""
    against = {name: one.against_default for name, one in comparison.candidates.items() if one.against_default}
    truth = {name: accuracies[int(name, 16)] - accuracies[0] for name in against}
    return all(one.estimate.low <= truth[name] <= one.estimate.high for name, one in against.items())


def tables(results: dict[str, Any]) -> list[Grid]:
    campaigns = results["campaigns"]

    def share(count: int) -> str:
        estimate = wilson(count, campaigns)
        return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"

    rows_that_decide = {True: f"{TEST_ROWS} test", False: f"{VALIDATION_ROWS} validation"}
    nothing = [
        (
            f"{one['accuracy']:.0%}",
            rows_that_decide[one["test_split"]],
            f"{one['checkpoints']}, default {one['default_checkpoints'] or one['checkpoints']}",
            share(one["distinguishable"]),
            share(campaigns - one["recommended"]["base"]),
            share(one["naive"]),
            share(one["validation_alone"]),
            share(one["intervals_hold"]),
        )
        for one in results["nothing_better"]
    ]
    better = [
        (
            f"{one['accuracy']:.0%}",
            f"+{100 * one['effect']:.0f} points",
            share(one["better_trial_chosen"]),
            share(one["better_trial_distinguishable"]),
            share(one["distinguishable"] - one["better_trial_distinguishable"]),
            share(one["recommended"]["winner"]),
            share(one["recommended"]["default"]),
            share(one["intervals_hold"]),
        )
        for one in results["one_better"]
    ]
    return [
        Grid(
            title="Nothing is better than the default, and nothing is better than the base",
            header=(
                "accuracy", "rows that decide", "checkpoints", "claims a winner", "recommends other than the base",
                "uncorrected: best of all on these rows", "uncorrected: winner on validation", "intervals hold",
            ),
            rows=nothing,
        ),
        Grid(
            title="One trial of 16 is better",
            header=(
                "accuracy", "by", "validation chooses it", "it is claimed", "another is claimed", "recommends winner",
                "recommends default", "intervals hold",
            ),
            rows=better,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
