"""Overlay the curves of a campaign's trials: which learning rate converges fastest without overfitting.

python jobs/clinc_lr_sweep/curves.py SWEEP     # writes results.json, draws curves.svg
python jobs/clinc_lr_sweep/curves.py --draw    # draws curves.svg from results.json again
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from ftray.artifacts import read_json, write_json
from ftray.campaign import Ledger, SweepDirectory
from ftray.tracking import current_lines

HERE = Path(__file__).parent
KEPT = (
    "sweep_id", "name", "status", "mode", "mode_reason", "objective", "searcher", "scheduler", "counts", "base",
    "winner_vs_default", "recommended", "seconds", "accelerator_hours",
)  # fmt: skip
POINT = {
    "epoch": "epoch",
    "validation_accuracy": "val/accuracy",
    "validation_loss": "val/loss",
    "train_loss": "train/loss_average",
}
NEAR = 0.02
"""Accuracy below the best of all trials that counts as having converged."""
MOST_RISE = 0.05
"""Rise of the validation loss above its lowest, as a share, from which on a trial overfits."""


def keep(root: Path) -> None:
    """Write results.json: the numbers of the campaign, without the paths of this machine."""
    sweep = SweepDirectory(root)
    record = read_json(sweep.sweep)
    trials = []
    for result in sorted(Ledger(sweep.ledger).results(), key=lambda one: one.config["learning_rate"]):
        lines = [line for line in current_lines(sweep.trial(result.trial_id).metrics) if line["kind"] == "evaluation"]
        trials.append(
            {
                "learning_rate": result.config["learning_rate"],
                "is_default": result.is_default,
                "state": result.state,
                "reason": result.reason,
                "steps": result.steps,
                "seconds": result.seconds,
                "curve": [{name: line[key] for name, key in POINT.items()} for line in lines],
            }
        )
    kept = {
        "command": "FTRAY_SHARED=../shared ftray sweep jobs/clinc_lr_sweep/job.yaml",
        "cpus": os.cpu_count(),
        **{key: record[key] for key in KEPT if key in record},
        "fastest": fastest(trials),
        "trials": trials,
    }
    write_json(HERE / "results.json", kept)


def fastest(trials: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the trial that converges in the fewest epochs among those that do not overfit; None without one."""
    best = max(point["validation_accuracy"] for trial in trials for point in trial["curve"])
    reached = []
    for trial in trials:
        near = [point["epoch"] for point in trial["curve"] if point["validation_accuracy"] >= best - NEAR]
        # A loss that was no number is null in the records.
        losses = [point["validation_loss"] for point in trial["curve"]]
        if near and None not in losses and losses[-1] <= (1 + MOST_RISE) * min(losses):
            reached.append({"learning_rate": trial["learning_rate"], "epoch": near[0], "best_of_all": best})
    return min(reached, key=lambda one: one["epoch"], default=None)


def draw() -> None:
    """Draw validation loss and accuracy over epochs, from results.json alone; equal numbers give the same file."""
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "clinc_lr_sweep", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    trials = read_json(HERE / "results.json")["trials"]
    figure, (losses, values) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    for trial, shade in zip(trials, plt.get_cmap("viridis")(_spread(len(trials))), strict=True):
        label = f"{trial['learning_rate']:g}" + (" (default)" if trial["is_default"] else "")
        epochs = [point["epoch"] for point in trial["curve"]]
        for axes, key, lowest in ((losses, "validation_loss", True), (values, "validation_accuracy", False)):
            numbers = [point[key] if point[key] is not None else float("nan") for point in trial["curve"]]
            axes.plot(epochs, numbers, color=shade, linewidth=1.5, label=label)
            at = min(range(len(numbers)), key=lambda index: numbers[index] if lowest else -numbers[index])
            axes.plot(epochs[at], numbers[at], "o", color=shade, markersize=5)
    losses.set_yscale("log")
    losses.set_ylabel("validation loss, nats per label (logarithmic)")
    values.set_ylabel("validation accuracy")
    for axes in (losses, values):
        axes.set_xlabel("epochs")
        axes.grid(alpha=0.2)
    values.legend(title="learning rate", fontsize="small")
    figure.savefig(HERE / "curves.svg", metadata={"Date": None})


def _spread(count: int) -> list[float]:
    """Return places of a colour map, without its palest end."""
    return [0.9 * index / max(1, count - 1) for index in range(count)]


if __name__ == "__main__":
    if sys.argv[1:] != ["--draw"]:
        keep(Path(sys.argv[1]))
    draw()
