"""From results.json to README.md, between its markers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench_report import Grid, describe_machine, fill_readme

__all__ = ["describe_machine", "print_tables", "render_readme", "render_summary"]
HEADER = ("what", "command", "exit", "seconds", "seen")
TITLES = {
    "refused": "Refused before anything is queued",
    "train": "A training run, submitted four times",
    "sweep": "A campaign, submitted four times",
    "replaced": "A node is lost, and another one joins",
    "alone": "A node is lost, and none joins (`compute.workers: [1, 2]`)",
    "store": "No folder in common: an object store, and a node that is lost",
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


def render_summary(results: Record, file: Path) -> None:
    """Put what was asked and seen between the markers of cluster/README.md."""
    known = dict(_known(results))
    rows = [row for part, say in SUMMARIES.items() if part in known for row in say(known[part])]
    days = ", ".join(sorted({record["ended_at"][:10] for record in known.values()}))
    places = " and ".join(sorted({record["place"] for record in known.values()}))
    grid = Grid(title=f"Seen on {days}, {places}", header=("asked", "seen"), rows=rows)
    fill_readme(file, grid.to_markdown().replace("---:", "---"))


def _submitted(record: Record) -> list[tuple[str, str]]:
    figures, holds = record["figures"], record["holds"]
    assert "the second one attaches" in holds
    name = next(step["command"] for step in record["steps"]).split()[2]
    if "trials" in figures:
        before = figures["trials_before_stop"]
        once = f"trials that had ended when it was stopped: {before}; in all: {figures['trials']}, each once"
    else:
        once = (
            f"stopped after step {figures['stopped_at_step']}, resumed at step {figures['resumed_at_step']} of "
            f"{figures['steps']}; {_equal(figures)}"
        )
    return [
        (f"`{name}` submitted twice, followed, Ctrl-C", "one submission; the second attaches; it goes on after Ctrl-C"),
        ("stopped, submitted again, ended", once),
        ("submitted once more", f"finished, nothing trained: {figures['result']}"),
    ]


def _lost(record: Record) -> list[tuple[str, str]]:
    figures = record["figures"]
    asked = next(step["asked"] for step in record["steps"] if step["asked"].startswith("kill"))
    joins = [step["seen"] for step in record["steps"] if step["asked"] == "another node joins"]
    return [
        (
            f"{asked} after a checkpoint; {'another joins' if joins else 'none joins, `workers: [1, 2]`'}",
            f"goes on from step {figures['resumed_at_step']} after {figures['pause_seconds']:.0f} s; {_equal(figures)}",
        )
    ]


def _stored(record: Record) -> list[tuple[str, str]]:
    figures = record["figures"]
    return [
        (
            "an S3 emulator as storage, no folder in common; a node is killed, another joins with nothing",
            f"goes on from step {figures['resumed_at_step']} after {figures['pause_seconds']:.0f} s; "
            f"{_equal(figures)}; submitted again: finished",
        )
    ]


def _equal(figures: Record) -> str:
    """Return how a run compares with the one that nobody has disturbed."""
    weights = f"weights differ by at most {figures['largest_difference']:.2g}"
    return (
        f"against an undisturbed run: the same step selected, {figures['equal_answers']} of {figures['answers']} test "
        f"answers equal, {'weights equal bit by bit' if figures['equal_files'] else weights}"
    )


def _asked(record: Record) -> list[tuple[str, str]]:
    answers = "; ".join(f"`{model}`: {text!r}" for model, text in record["figures"].items())
    return [("`serveConfigV2` of `rayservice.yaml` by `serve deploy`, one question", answers)]


SUMMARIES: dict[str, Callable[[Record], list[tuple[str, str]]]] = {
    "refused": lambda record: [
        (
            "bad input",
            "; ".join(step["asked"] for step in record["steps"]) + ": exit code 2, one sentence, nothing queued",
        )
    ],
    "train": _submitted,
    "sweep": _submitted,
    "replaced": _lost,
    "alone": _lost,
    "store": _stored,
    "endpoint": _asked,
}


def _known(results: Record) -> list[tuple[str, Record]]:
    return [(part, results["parts"][part]) for part in TITLES if part in results["parts"]]
