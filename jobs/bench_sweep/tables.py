"""From the runs to a summary and tables: the terminal, and README.md between its markers."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench_report import Grid, describe_machine, fill_readme

__all__ = ["describe_machine", "print_tables", "render_readme", "summarise"]
GIB = 2**30
NAMES = {"ftray": "ftray, shared base", "recipe": "Ray's recipe", "processes": "a process for each trial"}
Record = dict[str, Any]


def summarise(runs: Sequence[Record], settings: Record) -> list[Record]:
    """Return for each case and scheduler what every side took, and its ratio to ftray's runs of the same repeats."""
    summary = []
    for case, scheduler in itertools.product(settings["cases"], settings["schedulers"]):
        same = [run for run in runs if (run["case"], run["scheduler"]) == (case, scheduler)]
        if not same:
            continue
        by_side = {side: [run for run in same if run["side"] == side] for side in NAMES}
        ours = by_side["ftray"]
        sides = {side: _side(theirs, ours) for side, theirs in by_side.items() if theirs}
        summary.append({"case": case, "scheduler": scheduler, "sides": sides, **_differences(same)})
    return summary


def _side(theirs: Sequence[Record], ours: Sequence[Record]) -> Record:
    record = {
        "wall_seconds": _median(theirs, "wall_seconds"),
        "peak_total_bytes": _median(theirs, "peak_total_bytes"),
        "peak_process_bytes": _median(theirs, "peak_process_bytes"),
        "steps": _median(theirs, "steps"),
        "completed": statistics.median(sum(trial["completed"] for trial in run["trials"]) for run in theirs),
        "best_accuracy": statistics.median(max(trial["accuracy"] for trial in run["trials"]) for run in theirs),
    }
    if not ours:
        return record
    of_repeat = {run["repeat"]: run for run in ours}
    ratios = [run["wall_seconds"] / of_repeat[run["repeat"]]["wall_seconds"] for run in theirs]
    return {**record, "over_ftray": {"median": statistics.median(ratios), "repeats": ratios}}


def _differences(runs: Sequence[Record]) -> Record:
    """Return the largest differences between sides, over the trials that both completed."""
    found: Record = {"validation_loss_difference": 0.0, "train_loss_difference": 0.0, "compared_trials": 0}
    for one, other in itertools.combinations(runs, 2):
        if one["side"] == other["side"]:
            continue
        for mine, theirs in zip(one["trials"], other["trials"], strict=True):
            if not (mine["completed"] and theirs["completed"]):
                continue
            found["compared_trials"] += 1
            for name in ("validation_loss", "train_loss"):
                difference = abs(mine[name] - theirs[name])
                found[f"{name}_difference"] = max(found[f"{name}_difference"], difference)
    return found


def grids(results: Record) -> list[Grid]:
    """Return a table for each case and scheduler."""
    goals, made = results["settings"]["goals"], []
    trials = len(results["runs"][0]["trials"])
    for one in results["summary"]:
        under = "no scheduler" if one["scheduler"] == "none" else "the same ASHA"
        rows = [_row(side, record, goals, one["case"]) for side, record in one["sides"].items()]
        made.append(
            Grid(
                title=f"{one['case']}: {trials} trials, {under}, medians of {results['settings']['repeats']}",
                header=("", "seconds", "over ftray", "memory, GiB", "largest process", "completed", "steps", "best, %"),
                rows=rows,
            )
        )
    return made


def _row(side: str, record: Record, goals: Record, case: str) -> tuple[str, ...]:
    ratio = record.get("over_ftray")
    spelled = ""
    if ratio is not None and side != "ftray":
        goal = goals[side].get(case)
        wanted = "" if goal is None else f"; goal {goal:g}x"
        spelled = f"**{ratio['median']:.2f}x** ({min(ratio['repeats']):.2f}-{max(ratio['repeats']):.2f}{wanted})"
    return (
        NAMES[side],
        f"{record['wall_seconds']:.1f}",
        spelled,
        f"{record['peak_total_bytes'] / GIB:.2f}",
        f"{record['peak_process_bytes'] / GIB:.2f}",
        f"{record['completed']:g}",
        f"{record['steps']:,.0f}",
        f"{100 * record['best_accuracy']:.1f}",
    )


def sentences(results: Record) -> list[str]:
    """Return how far the sides' losses are apart."""
    goal = results["settings"]["goals"]["loss_difference"]
    return [
        f"{one['case']}, {one['scheduler']}: {one['compared_trials']} pairs of completed trials of two sides differ by "
        f"at most {one['validation_loss_difference']:.1e} in the final validation loss (goal ≤ {goal:.0e}) and "
        f"{one['train_loss_difference']:.1e} in the loss of the last step"
        for one in results["summary"]
        if one["compared_trials"]
    ]


def print_tables(results: Record) -> None:
    """Print what was measured beside the goals."""
    console = Console()
    for grid in grids(results):
        console.print(grid.to_rich())
    for line in sentences(results):
        console.print(line, highlight=False)


def render_readme(results: Record, file: Path) -> None:
    """Write the tables between the README's markers. Numbers of a --quick run are not results."""
    assert not results["quick"], "these results are of a --quick run; run the whole benchmark first"
    machine, versions = results["machine"], results["versions"]
    where = (
        f"`{results['command']}`, {results['started_at'][:10]}, {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_gib']} GiB, Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    )
    said = "\n".join(f"- {line}" for line in sentences(results))
    fill_readme(file, "\n\n".join([where, *(grid.to_markdown() for grid in grids(results)), said]))


def _median(runs: Sequence[Record], key: str) -> float:
    return statistics.median(run[key] for run in runs)
