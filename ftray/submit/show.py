"""How submissions stand, for people: a table of all, or the lines of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ftray.summary import duration

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"queued": "yellow", "running": "cyan", "succeeded": "green", "failed": "red", "stopped": "yellow"}


def show_all(record: Mapping[str, Any], console: Console) -> None:
    """Print the cluster and a table of its submissions."""
    cluster = record["cluster"]
    nodes = f"{cluster['nodes']} node{'' if cluster['nodes'] == 1 else 's'}"
    console.print(
        f"{record['address']}: {nodes}, {cluster['cpus']:g} CPUs, {cluster['gpus']:g} GPUs",
        markup=False,
        soft_wrap=True,
    )
    if not record["submissions"]:
        console.print("Nothing has been submitted with ftray.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("submission", "job", "state", "done", "rate", "left", "verdict"):
        table.add_column(name, no_wrap=True)
    for one in record["submissions"]:
        table.add_row(
            one["submission_id"],
            one["name"] + (" (smoke)" if one["smoke"] else ""),
            Text(one["state"], style=STYLES[one["state"]]),
            done(one),
            rate(one),
            left(one),
            one["verdict"] or "",
        )
    console.print(table)


def show_one(record: Mapping[str, Any], console: Console) -> None:
    """Print one submission."""
    grid = Table.grid(padding=(0, 2))
    lines = {
        "submission": f"{record['submission_id']} ({record['name']}, {record['kind']})",
        "state": record["state"] + (f", exit code {record['exit_code']}" if record["exit_code"] is not None else ""),
        "done": done(record),
        "rate": rate(record),
        "left": left(record),
        "verdict": record["verdict"],
        "says": record["message"],
        "labels": " ".join(f"{key}={text}" for key, text in record["labels"].items()),
        "folder": record["path"],
        "submitted": record["submitted_at"],
        "ended": record["ended_at"],
    }
    for name, text in lines.items():
        if text:
            grid.add_row(Text(name, style="dim"), Text(str(text)))
    console.print(grid, soft_wrap=not console.is_terminal)


def done(record: Mapping[str, Any]) -> str:
    """Say how far it is."""
    kind, number, total = (
        ("trials", record["trials"], record["total_trials"])
        if record["kind"] == "sweep"
        else ("steps", record["step"], record["total_steps"])
    )
    if number is None:
        return ""
    return f"{number}/{total} {kind}" if total else f"{number} {kind}"


def rate(record: Mapping[str, Any]) -> str:
    """Say how fast it is."""
    speed = record["tokens_per_second"]
    return f"{speed:,.0f} tokens/s" if speed and record["state"] == "running" else ""


def left(record: Mapping[str, Any]) -> str:
    """Say how long the training still takes."""
    seconds = record["seconds_left"]
    return duration(seconds) if seconds and record["state"] == "running" else ""
