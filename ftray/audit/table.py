"""The gate's report for people: what was found, failures first, each with its numbers, the fix and rows to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}
ORDER = ("fail", "warn")
SHOWN_ROWS = 3


def show_audit(record: Mapping[str, Any], console: Console, *, title: str = "") -> None:
    """Print an audit.json."""
    status = record["status"]
    counts = Counter(check["status"] for check in record["checks"])
    rest = ", ".join(f"{counts[one]} {spelled}" for one, spelled in (("pass", "passed"), ("skipped", "skipped")))
    console.print(Text.assemble((status.upper(), STYLES[status]), f"  {title}" if title else "", f"  ({rest})"))
    for dataset in record["datasets"]:
        console.print(
            Text(f"  {dataset['name']}: {dataset['rows']:,} rows, {dataset['path']}", style="dim"), soft_wrap=True
        )
    for status in ORDER:
        for check in record["checks"]:
            if check["status"] == status:
                _show_check(check, console)
    names = [check["name"] for check in record["checks"] if check["status"] == "pass"]
    console.print()
    console.print(Text(f"passed: {', '.join(names) or 'none'}", style="dim"))
    for check in record["checks"]:
        if check["status"] == "skipped":
            console.print(Text(f"skipped: {check['name']}: {check['fix']}", style="dim"))


def _show_check(check: Mapping[str, Any], console: Console) -> None:
    """Print what one check found: its name and numbers, the fix, rows to look at."""
    status = "accepted" if check["accepted"] else check["status"]
    limit = check["limit"]
    allowed = "" if limit is None or limit > 1 else f", {limit:.3g} allowed" if limit == 0 else f", limit {limit:.1%}"
    console.print()
    console.print(
        Text.assemble(
            (f"{status:<6}", STYLES.get(check["status"], "")),
            (f"{check['name']}  ", "bold"),
            f"{check['count']:,} of {check['rows']:,} ({check['share']:.1%}{allowed})",
        )
    )
    lines = [f"Accepted: {check['accepted']}" if check["accepted"] else check["fix"]]
    if check["examples"]:
        lines.append(f"Rows: {spell_rows(check['examples'])}")
    for line, style in zip(lines, ("", "dim"), strict=False):
        console.print(Padding(Text(line, style=style), (0, 0, 0, 6)))


def spell_rows(examples: list[dict[str, Any]]) -> str:
    """Return the first rows to look at, in words."""
    return "; ".join(_pair(one) for one in examples[:SHOWN_ROWS])


def _pair(one: Mapping[str, Any]) -> str:
    first = f"{one['dataset']} row {one['row']}"
    if one["other_row"] is None:
        return first
    return f"{first} ~ {one['other_dataset']} row {one['other_row']}"
