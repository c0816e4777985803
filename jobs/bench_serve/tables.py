"""From results.json to tables: the terminal, and README.md between its markers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench_report import Grid, describe_machine, fill_readme

__all__ = ["describe_machine", "print_tables", "render_readme"]
HEADER = ("16 requests at once", "threads", "engine", "PEFT mixed batch", "one by one", "over mixed", "over one by one")
Record = dict[str, Any]


def grid(results: Record) -> Grid:
    """Return the table of throughput."""
    goals = results["settings"]["goals"]
    rows = []
    for one in results.get("throughput", []):
        low, high = one["new_tokens"]
        case = f"{low} new tokens each" if low == high else f"{low} to {high} new tokens"
        speeds = one["tokens_per_second"]
        goal = goals.get(one["load"], {})
        rows.append(
            (
                case,
                str(one["threads"]),
                *(f"{speeds[side]:,.0f}" for side in ("engine", "static", "one_by_one")),
                *(_against(one["ratios"][side], goal.get(side)) for side in ("static", "one_by_one")),
            )
        )
    return Grid(title="Tokens a second, and ratios", header=HEADER, rows=rows)


def sentences(results: Record) -> list[str]:
    """Return what adapters cost, and what loading one takes."""
    goals, said = results["settings"]["goals"], []
    for one in results.get("adapters", []):
        over = f"{one['mixed_over_base']:+.0%} (goal {goals['adapters']:+.0%})"
        said.append(f"Four arms in a batch of 16 over the base alone, {one['threads']} threads, 512x8: {over}")
    for one in results.get("hot_load", []):
        goal = goals["hot_load"]
        said.append(
            f"An adapter of {one['bytes'] / 1e6:.1f} MB loaded while 16 answers run, {one['threads']} threads, 512x8: "
            f"{1e3 * one['seconds']:.0f} ms, at most {1e3 * one['longest_seconds']:.0f} ms (goal "
            f"{1e3 * goal['seconds']:.0f} ms); the answers stood still for {one['stall_steps']:.1f} steps of "
            f"{1e3 * one['step_seconds']:.0f} ms beyond the usual one (goal {goal['steps']:g})"
        )
    return said


def print_tables(results: Record) -> None:
    """Print what was measured beside the goals."""
    console = Console()
    console.print(grid(results).to_rich())
    for line in sentences(results):
        console.print(line, highlight=False)


def render_readme(results: Record, file: Path) -> None:
    """Put the tables between README.md's markers. Numbers of a --quick run are not results."""
    assert not results["quick"], "these results are of a --quick run; run the whole benchmark first"
    machine, versions = results["machine"], results["versions"]
    where = (
        f"{results['started_at'][:10]}, {machine['cores']} cores of {machine['cpu']}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, PEFT {versions['peft']}; medians of "
        f"{results['settings']['repeats']}."
    )
    said = "\n".join(f"- {line}" for line in sentences(results))
    fill_readme(file, "\n\n".join([where, grid(results).to_markdown(), said]))


def _against(ratio: float, goal: float | None) -> str:
    return f"{ratio:.2f}x" if goal is None else f"{ratio:.2f}x (goal {goal:g}x)"
