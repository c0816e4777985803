"""From results.json to README.md, between its markers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench_report import Grid, describe_machine, fill_readme

__all__ = ["describe_machine", "print_tables", "render_readme"]
HEADER = ("what", "command", "exit", "seconds", "seen")
TITLES = {
    "refused": "Refused before anything is queued",
    "train": "A training run, submitted four times",
    "sweep": "A campaign, submitted four times",
    "replaced": "A node is lost, and another one joins",
    "alone": "A node is lost, and none joins (`compute.workers: [1, 2]`)",
    "endpoint": "`serveConfigV2` on both nodes",
}
Record = dict[str, Any]


def grid(part: str, record: Record) -> Grid:
    """Return the table of one part."""
    rows = [
        (
            step["asked"],
            f"`{step['command']}`" if step["command"] else "",
            "" if step["exit_code"] is None else str(step["exit_code"]),
            "" if step["seconds"] is None else f"{step['seconds']:.1f}",
            step["seen"].replace("|", "\\|"),
        )
        for step in record["steps"]
    ]
    return Grid(title=f"{TITLES[part]} ({record['seconds']:.0f} s, {record['place']})", header=HEADER, rows=rows)


def sentences(record: Record) -> str:
    """Return what held in one part."""
    return "Held: " + "; ".join(dict.fromkeys(record["holds"])) + "."


def print_tables(results: Record) -> None:
    """Print what held."""
    for part, record in results["parts"].items():
        print(f"{TITLES[part]}: {sentences(record)}")


def render_readme(results: Record, file: Path) -> None:
    """Put the tables between README.md's markers."""
    machine, versions = results["machine"], results["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    where = f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}, {named}."
    parts = [f"{grid(part, record).to_markdown()}\n\n{sentences(record)}" for part, record in _known(results)]
    fill_readme(file, "\n\n".join([where, *parts]))


def _known(results: Record) -> list[tuple[str, Record]]:
    return [(part, results["parts"][part]) for part in TITLES if part in results["parts"]]
