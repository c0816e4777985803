"""How submissions stand, for people: the cluster and a table of all, or the lines of one; once, or again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ftray.errors import InputError
from ftray.summary import duration

WATCH_SECONDS = 2.0
WIDE = 110
LEFT_OUT_FIRST = ("verdict", "best", "tokens/s")
MOST_NAME = 14
"""Characters of a job's name on a console that is not wide."""

STYLES = {"queued": "yellow", "running": "cyan", "succeeded": "green", "failed": "red", "stopped": "yellow"}


def watch_status(look: Callable[[int], RenderableType]) -> NoReturn:
    """Show what `look` returns for a console's width until Ctrl-C, a KeyboardInterrupt.

    Raises InputError without a terminal.
    """
    console = Console()
    if not console.is_terminal:
        raise InputError(
            "--watch needs a terminal",
            kind="usage",
            given="--watch",
            allowed="a terminal; elsewhere ftray status, or ftray logs --follow",
            hint="Leave out --watch.",
        )
    with Live(look(console.width), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(look(console.width), refresh=True)


def render_all(record: Mapping[str, Any], console_width: int) -> RenderableType:
    """Return the cluster, what waits for it, and a table of its submissions."""
    lines = [Text(line) for line in cluster_lines(record)]
    if not record["submissions"]:
        return Group(*lines, Text("Nothing has been submitted with ftray."))
    rows = [
        {
            "submission": Text(one["submission_id"]),
            "job": Text(one["name"] + (" (smoke)" if one["smoke"] else "")),
            "state": Text(one["state"], style=STYLES[one["state"]]),
            "done": Text(done(one)),
            "best": Text(best(one)),
            "tokens/s": Text(rate(one).removesuffix(" tokens/s")),
            "left": Text(left(one)),
            "verdict": Text(one["verdict"] or ""),
        }
        for one in record["submissions"]
    ]
    widths = {name: max(len(name), *(row[name].cell_len for row in rows)) for name in rows[0]}
    shown = [name for name in rows[0] if any(row[name].plain for row in rows)]
    # Without an id nothing can be asked; a long name may be cut, and what `ftray status ID` says, too, left out.
    if console_width < WIDE:
        widths["job"] = min(widths["job"], MOST_NAME)
    for name in LEFT_OUT_FIRST:
        if name in shown and sum(widths[one] + 2 for one in shown) - 2 > console_width:
            shown.remove(name)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in shown:
        table.add_column(name, no_wrap=True, min_width=widths[name], max_width=widths[name])
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return Group(*lines, table)


def cluster_lines(record: Mapping[str, Any]) -> list[str]:
    """Say what the cluster has and what waits for it, a node or a demand on each line."""
    cluster, queue = record["cluster"], record["queue"]
    nodes = f"{cluster['nodes']} node{'' if cluster['nodes'] == 1 else 's'}"
    lines = [f"{record['address']}: {nodes}, {_amount(cluster, 'cpus', 'CPUs')}, {_amount(cluster, 'gpus', 'GPUs')}"]
    if cluster["nodes"] > 1:
        lines += [
            f"  {node['address']}{' (head)' if node['head'] else ''}: {node['cpus']:g} CPUs, {node['gpus']:g} GPUs"
            for node in cluster["each"]
        ]
    waiting = [f"{one['count']} x {_wanted(one['wanted'])}" for one in queue["resources"]]
    if waiting:
        lines.append(f"waiting for room: {', '.join(waiting)}")
    if queue["submissions"]:
        lines.append(f"queued: {', '.join(queue['submissions'])}")
    return lines


def _amount(cluster: Mapping[str, Any], name: str, title: str) -> str:
    used = cluster[f"used_{name}"]
    return f"{cluster[name]:g} {title}" if used is None else f"{used:g} of {cluster[name]:g} {title} in use"


def _wanted(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def render_one(record: Mapping[str, Any]) -> RenderableType:
    """Return one submission."""
    grid = Table.grid(padding=(0, 2))
    lines = {
        "submission": f"{record['submission_id']} ({record['name']}, {record['kind']})",
        "state": record["state"] + (f", exit code {record['exit_code']}" if record["exit_code"] is not None else ""),
        "done": done(record),
        "trials": by_state(record),
        "best": best(record),
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
    return grid


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


def by_state(record: Mapping[str, Any]) -> str:
    """Say how a campaign's trials stand."""
    return ", ".join(f"{count} {state}" for state, count in (record["states"] or {}).items())


def best(record: Mapping[str, Any]) -> str:
    """Say what the best validation value of a campaign is."""
    value = record["best_value"]
    return "" if value is None else f"{value:.4g}"


def rate(record: Mapping[str, Any]) -> str:
    """Say how fast it is."""
    speed = record["tokens_per_second"]
    return f"{speed:,.0f} tokens/s" if speed and record["state"] == "running" else ""


def left(record: Mapping[str, Any]) -> str:
    """Say how long the training still takes."""
    seconds = record["seconds_left"]
    return duration(seconds) if seconds and record["state"] == "running" else ""
