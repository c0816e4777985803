"""What a campaign came to, for people: what to take and why, the numbers beside each other, the next command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ftray.campaign import SweepDirectory
from ftray.summary import VERDICTS, duration, setting, show_pairs, shown

if TYPE_CHECKING:
    from rich.console import Console

RECOMMENDED = {
    "winner": ("take the winner", "bold green"),
    "default": ("keep the default", "bold yellow"),
    "base": ("keep the base", "bold red"),
}
STATUSES = {"failed": ("failed", "bold red"), "interrupted": ("interrupted", "bold yellow")}
OUT_OF_BUDGET = ("out of budget", "bold yellow")
"""Of a campaign that its budget ended before any trial had a value."""
STATES = ("completed", "pruned", "diverged", "failed", "budget")


def show_sweep(record: Mapping[str, Any], console: Console, *, command: str) -> None:
    """Print a campaign's end; `command` is what goes on with it."""
    directory = SweepDirectory(Path(record["path"]))
    has_ended = record["status"] not in STATUSES and record["winner"] is not None
    decision, style = STATUSES.get(record["status"]) or (
        RECOMMENDED[record["recommended"]] if has_ended else OUT_OF_BUDGET
    )
    console.print()
    console.print(Text.assemble((decision, style), "  ", (directory.root.name, "dim")))
    for reason in record.get("reasons", ()):
        console.print(Text(f"  {reason}"))
    console.print()
    if has_ended:
        console.print(_table(record))
        console.print()
    compared = _sides(record) if has_ended else {}
    pairs = {
        **{name.partition(":")[0]: _settings(one) for name, one in compared.items()},
        "verdict": _verdict(record) if has_ended else "",
        "trials": _counts(record),
        "time": _times(record),
        "note": " ".join(record.get("notes", ())),
        **(_adapter(record) if has_ended else {}),
        "report": str(directory.report) if directory.report.exists() else "",
        "next": _next(record, command),
    }
    if record.get("reused"):
        pairs = {"reused": "this campaign has ended before; nothing was trained", **pairs}
    show_pairs(pairs, console)


def _table(record: Mapping[str, Any]) -> Table:
    """Return base, default, winner and the other finalists: validation, test, and how far from the default."""
    metric = record["objective"]["metric"]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("", "validation", "test", "minus default"):
        # Numbers are never cut off: on a narrow screen they take another line.
        table.add_column(name or "  ", no_wrap=not name, overflow="fold")
    for name, one in {"base": record["base"], **_sides(record)}.items():
        table.add_row(
            f"  {name}",
            _interval(metric, one["validation"]),
            _interval(metric, one["test"]),
            _difference(metric, one.get("difference_from_default")),
            style="bold" if name.startswith("winner") else None,
        )
    return table


def _sides(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    default, winner = record["default"], record["winner"]
    if default and winner and default["trial_id"] == winner["trial_id"]:
        found = {"winner: default": winner}
    else:
        found = {name: one for name, one in (("default", default), ("winner", winner)) if one}
    known = {one["trial_id"] for one in found.values()}
    others = [one for one in record["finalists"] if one["trial_id"] not in known]
    return {**found, **{f"finalist {place}": one for place, one in enumerate(others, start=2)}}


def _settings(one: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={setting(value)}" for name, value in one["config"].items())


def _interval(metric: str, estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    value, low, high = (shown(metric, estimate[end]) for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _difference(metric: str, estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    is_share = shown(metric, 0.0).endswith("%")
    ends = [estimate[end] for end in ("value", "low", "high")]
    value, low, high = ("-" if end is None else f"{100 * end:+.1f}" if is_share else f"{end:+.3g}" for end in ends)
    return f"{value} ({low} to {high})"


def _counts(record: Mapping[str, Any]) -> str:
    counts = record["counts"]
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    if counts["deduplicated"]:
        parts.append(f"{counts['deduplicated']} equal to others and not run again")
    return ", ".join(parts) or "none has ended"


def _times(record: Mapping[str, Any]) -> str:
    seconds, hours = record["seconds"], record["accelerator_hours"]
    decided = seconds["to_decision"]
    parts = [
        "" if decided is None else f"{duration(decided)} to the decision",
        f"{duration(seconds['wall'])} in all",
        "" if hours is None else f"{hours:.3g} accelerator-hours",
    ]
    return ", ".join(filter(None, parts))


def _adapter(record: Mapping[str, Any]) -> dict[str, str]:
    """Return where the recommended weights are; the base needs none."""
    one = record[record["recommended"]]
    adapter = one.get("adapter") if record["recommended"] != "base" and one else None
    return {"adapter": adapter["path"]} if adapter else {}


def _verdict(record: Mapping[str, Any]) -> str:
    """Say whether what is recommended can be used: it may be better than the default and have forgotten too much."""
    verdict = record.get("verdict")
    if verdict is None or record["recommended"] == "base":
        return ""
    words, _ = VERDICTS[verdict["decision"]]
    return f"{words}: {' '.join(verdict['reasons'])}"


def _next(record: Mapping[str, Any], command: str) -> str:
    """Return the command that goes on: the same again, or the training of what is recommended."""
    if record["status"] == "failed":
        return f"{command} --fresh   (from the beginning: the same command alone prints this again)"
    if record["status"] == "budget" and record["winner"] is None:
        return f"{command} --set sweep.budget=...   (a larger one: it goes on)"
    if record["status"] not in ("completed", "budget"):
        return command
    if record["recommended"] == "winner":
        return f"{_training(command, record.get('set', ()))}   (the winner, trained by itself)"
    if record["recommended"] == "default":
        return f"{_training(command, ())}   (the default, trained by itself)"
    return ""


def _training(command: str, sets: Sequence[str]) -> str:
    """Return the sweep's command as one that trains with `sets`: what changes the sweep itself has no place there."""
    _, _, job, *given = shlex.split(command)
    words, rest = ["ftray", "train", job], iter(given)
    for word in rest:
        if word == "--smoke":
            words.append(word)
        elif word in ("--set", "--storage"):
            value = next(rest)
            words += [] if value.startswith("sweep.") else [word, value]
    for change in sets:
        words += ["--set", change]
    return shlex.join(words)
