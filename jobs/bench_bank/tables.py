"""From results.json to tables: the terminal, and README.md between its markers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench_report import Grid, describe_machine, fill_readme

__all__ = ["describe_machine", "print_tables", "render_readme"]
MIB = 2**20
HEADER = ("shape", "load", "threads", "slots", "PEFT ms", "bank ms", "ratio", "goal")
Record = dict[str, Any]


def grid(results: Record) -> Grid:
    """Return the table of training."""
    return Grid(title="Milliseconds of a trial's step", header=HEADER, rows=training_rows(results))


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
        f"{results['started_at'][:10]}, {machine['cores']} cores of {machine['cpu']}, {results['device']}, "
        f"torch {versions['torch']}, PEFT {versions['peft']}; medians of {results['settings']['repeats']}. "
        "The goal is for the best number of slots."
    )
    said = "\n".join(f"- {line}" for line in sentences(results))
    fill_readme(file, "\n\n".join([where, grid(results).to_markdown(), said]))


def training_rows(results: Record) -> list[tuple[str, ...]]:
    """Return a line for each case that was measured."""
    goals = results["settings"]["goals"]
    rows = []
    for one in results.get("training", []):
        case = (one["shape"], one["load"], str(one["threads"]), str(one["slots"]))
        if "failed" in one:
            rows.append((*case, "", "", one["failed"], ""))
            continue
        of_threads = goals.get(f"{one['shape']} {one['load']}", goals.get(one["load"], {}))
        goal = of_threads.get(one["threads"], of_threads.get(str(one["threads"])))
        numbers = (f"{one['peft_ms']:.1f}", f"{one['bank_ms']:.1f}", f"{one['ratio']:.2f}")
        rows.append((*case, *numbers, "" if goal is None else f"{goal:g}"))
    return rows


def sentences(results: Record) -> list[str]:
    """Return what serving and memory came to."""
    goal = results["settings"]["goals"].get("forward")
    said = []
    for one in results.get("serving", []):
        speeds = ", ".join(f"{side.replace('_', ' ')} {speed:,.0f}" for side, speed in one["tokens_per_second"].items())
        forward, wanted = one["forward_ms"], "" if goal is None else f", goal {goal:+.0%}"
        over = f"{one['mixed_over_base']:+.0%}{wanted}"
        said.append(
            f"{one['shape']}, {one['threads']} threads, {one['rows']} rows of {one['tokens']} tokens, an adapter each: "
            f"forward {forward['mixed']:.1f} ms, base {forward['base']:.1f} ms ({over}); "
            f"tokens/s generated: {speeds}; {one['equal_answers']} of {one['rows']} answers token-equal to PEFT's"
        )
    if "memory" in results:
        one = results["memory"]
        bank, peft = ((one[f"{side}_bytes"] - one["base_bytes"]) / MIB for side in ("bank", "peft"))
        said.append(
            f"{one['slots']} trials of {one['shape']} at once, beyond a process with the base: bank {bank:,.0f} MiB, "
            f"PEFT models with a base each {peft:,.0f} MiB"
        )
    return said
