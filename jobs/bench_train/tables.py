"""From results.json to tables: the summary that is stored with it, the terminal, and README.md between its markers."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench_report import Grid, describe_machine, fill_readme

GIB = 2**30
__all__ = ["describe_machine", "print_tables", "render_readme", "summarise"]
Record = dict[str, Any]


def summarise(results: Record) -> Record:
    """Return the ratios that the goals are about: medians over pairs that ran one after the other."""
    summary: Record = {}
    if "comparison" in results:
        ours, theirs = (_of(results["comparison"]["runs"], side=side) for side in ("ftray", "trl"))
        pairs = list(zip(ours, theirs, strict=True))
        ratios = [one["tokens_per_second"] / other["tokens_per_second"] for one, other in pairs]
        summary["speedup"] = {"median": statistics.median(ratios), "pairs": ratios}
        gap = statistics.mean(one["accuracy"] - other["accuracy"] for one, other in pairs)
        summary["accuracy_points_over_trl"] = 100 * gap
    if "overhead" in results:
        summary["overhead"] = [
            _overhead(results["overhead"]["runs"], *pair) for pair in results["settings"]["overhead"]["pairs"]
        ]
    return summary


def _overhead(runs: Sequence[Record], reference: str, distributed: str) -> Record:
    before, after = _of(runs, variant=reference), _of(runs, variant=distributed)
    shares = [
        other["step_milliseconds"] / one["step_milliseconds"] - 1 for one, other in zip(before, after, strict=True)
    ]
    return {
        "reference": reference,
        "distributed": distributed,
        "reference_milliseconds": _median(before, "step_milliseconds"),
        "distributed_milliseconds": _median(after, "step_milliseconds"),
        "share": statistics.median(shares),
        "pairs": shares,
    }


def grids(results: Record) -> list[Grid]:
    """Return every table there is something to say in."""
    made = []
    if "comparison" in results:
        made.append(_comparison(results))
    if "choice" in results:
        made.append(_choice(results))
    if "overhead" in results:
        made.append(_overheads(results))
    if "profile" in results:
        made.append(_profile(results["profile"]))
    return made


def _comparison(results: Record) -> Grid:
    runs = results["comparison"]["runs"]
    ours, theirs = _of(runs, side="ftray"), _of(runs, side="trl")
    goals, summary = results["settings"]["goals"], results["summary"]

    def line(name: str, key: str, show: str, unit: float = 1.0, ratio: str = "") -> tuple[str, ...]:
        both = [_median(side, key) / unit for side in (ours, theirs)]
        return (name, *(format(value, show) for value in both), ratio or f"{both[0] / both[1]:.2f}x")

    speed = summary["speedup"]
    spread = f"{min(speed['pairs']):.2f}-{max(speed['pairs']):.2f}"
    accuracies = [
        ", ".join(f"{100 * run['accuracy']:.1f}" for run in side) + f" (mean {_mean_accuracy(side):.1f})"
        for side in (ours, theirs)
    ]
    return Grid(
        title=f"{ours[0]['steps']} steps of the same rows, medians of {len(ours)} seeds in alternation",
        header=("", f"ftray ({ours[0]['variant']})", f"TRL ({theirs[0]['variant']})", "ftray : TRL"),
        rows=[
            line(
                "training, tokens/s",
                "tokens_per_second",
                ",.0f",
                ratio=f"**{speed['median']:.2f}x** ({spread}; goal {goals['speedup']}x)",
            ),
            line("training, seconds", "train_seconds", ".1f"),
            line("whole process, seconds", "wall_seconds", ".1f"),
            line("peak memory of the largest process, GiB", "peak_process_bytes", ".2f", GIB),
            line("peak memory of all processes, GiB", "peak_total_bytes", ".2f", GIB),
            (
                f"held-out exact match, % of {ours[0]['graded_rows']}",
                *accuracies,
                f"{summary['accuracy_points_over_trl']:+.1f} points (goal ≥ -{goals['accuracy_points']:g})",
            ),
        ],
    )


def _choice(results: Record) -> Grid:
    runs, chosen = results["choice"]["runs"], results["choice"]["trl_variant"]
    names = dict.fromkeys((run["side"], run["variant"]) for run in runs)
    rows = []
    for side, variant in names:
        same = _of(runs, side=side, variant=variant)
        mark = " (compared)" if (side, variant) == ("trl", chosen) else ""
        values = (format(_median(same, "tokens_per_second"), ",.0f"), f"{_median(same, 'step_milliseconds'):.1f}")
        rows.append((f"{side} {variant}{mark}", *values))
    steps, times = runs[0]["steps"], len(runs) // len(names)
    return Grid(
        title=f"Every variant, {steps} steps, medians of {times}", header=("", "tokens/s", "ms/step"), rows=rows
    )


def _overheads(results: Record) -> Grid:
    goal = results["settings"]["goals"]["overhead"]
    rows = [
        (
            f"{one['distributed']} over {one['reference']}",
            f"{one['reference_milliseconds']:.1f}",
            f"{one['distributed_milliseconds']:.1f}",
            f"{one['share']:+.1%} ({min(one['pairs']):+.1%} to {max(one['pairs']):+.1%}; goal ≤ {goal:.0%})",
        )
        for one in results["summary"]["overhead"]
    ]
    steps = results["overhead"]["runs"][0]["steps"]
    return Grid(
        title=f"Ray Train + DeepSpeed over the in-process reference, {steps} steps, ms per step, evaluation excluded",
        header=("", "in-process", "Ray + DeepSpeed", "more"),
        rows=rows,
    )


def _profile(record: Record) -> Grid:
    rows = [(one["part"], f"{one['milliseconds']:.1f}", f"{one['share']:.0%}") for one in record["parts"]]
    rows.append(("step", f"{record['step_milliseconds']:.1f}", "100%"))
    return Grid(
        title=f"Where ftray's step goes: in-process, {record['threads']} thread, "
        f"{record['tokens_per_step']:.0f} tokens, {record['unprofiled_milliseconds']:.1f} ms without the profiler",
        header=("", "ms", "share"),
        rows=rows,
    )


def print_tables(results: Record) -> None:
    console = Console()
    for grid in grids(results):
        console.print(grid.to_rich())


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
    tables = "\n\n".join([where, *(grid.to_markdown() for grid in grids(results))])
    fill_readme(file, tables)


def _of(runs: Sequence[Record], **wanted: str) -> list[Record]:
    return [run for run in runs if all(run[key] == value for key, value in wanted.items())]


def _median(runs: Sequence[Record], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def _mean_accuracy(runs: Sequence[Record]) -> float:
    return 100 * statistics.mean(run["accuracy"] for run in runs)
