"""Adapters and aliases as people read them, and as `ftray adapters list` spells them for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Record = Mapping[str, Any]
GAP = 2
"""Blanks between two columns."""
FEWEST = 3
"""Columns that are shown however narrow the screen is: what addresses an adapter is never cut."""


def summary_of(record: Record, aliases: Mapping[str, Record]) -> dict[str, Any]:
    """Return an adapter's line: what it is, how it was judged, who points at it."""
    target = (record["name"], record["digest"])
    kept = ("name", "digest", "kind", "base", "rank", "verdict", "run_id", "created_at", "created_by", "bytes")
    return {
        **{key: record.get(key) for key in kept},
        "sweep_id": record.get("sweep_id"),
        "metric": headline(record),
        "aliases": sorted(alias for alias, one in aliases.items() if (one["name"], one["digest"]) == target),
    }


def headline(record: Record) -> dict[str, Any] | None:
    """Return the number that an adapter was trained for, beside its base's; None where nobody has compared them."""
    tasks = record.get("metrics", {}).get("tasks")
    if not tasks:
        return None
    task = tasks[0]
    return {
        "name": task["metric"],
        "split": record["metrics"]["split"],
        "base": task["base"]["value"],
        "tuned": task["tuned"]["value"],
    }


def show_adapters(document: Record, console: Console) -> None:
    """Print the table of adapters; what addresses them is never cut."""
    from rich.table import Table
    from rich.text import Text

    from ftray.registry.names import spell
    from ftray.summary import VERDICTS

    if not document["adapters"]:
        console.print(
            f"No adapters in {document['registry']}. ftray train and ftray sweep register theirs.",
            markup=False,
            soft_wrap=True,
        )
        return
    rows = [
        {
            "adapter": spell(one["name"], one["digest"]),
            "aliases": " ".join(one["aliases"]),
            "verdict": Text(*VERDICTS[one["verdict"]]),
            "metric": _headline(one["metric"]),
            "kind": one["kind"],
            "size": size(one["bytes"]),
            "registered": one["created_at"][:16].replace("T", " "),
        }
        for one in document["adapters"]
    ]
    columns = _fitting(rows, console.width)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=True, min_width=max(len(row[column]) for row in rows))
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    console.print(table)
    console.print(f"in {document['registry']}", style="dim", markup=False, soft_wrap=True)


def _fitting(rows: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """Return the columns that a screen shows whole, from the left; the first three always, and empty ones never."""
    found: list[str] = []
    left = width
    for column in rows[0]:
        longest = max(len(row[column]) for row in rows)
        needed = max(longest, len(column)) + GAP
        if longest == 0:
            continue
        if len(found) >= FEWEST and needed - GAP > left:
            break
        found.append(column)
        left -= needed
    return found


def show_adapter(record: Record, console: Console) -> None:
    """Print one adapter."""
    from rich.text import Text

    from ftray.registry.names import spell
    from ftray.summary import VERDICTS, show_pairs

    verdict, style = VERDICTS[record["verdict"]]
    console.print(Text.assemble(spell(record["name"], record["digest"]), "  ", (verdict, style)), soft_wrap=True)
    for reason in record.get("verdict_reasons") or []:
        console.print(f"  - {reason}", markup=False, soft_wrap=True)
    template = record.get("template")
    shape = f", rank {record['rank']}, alpha {record['alpha']:g}" if record.get("rank") else ""
    run = f"run {record['run_id'][:12]}" if record.get("run_id") else ""
    sweep = f"campaign {record['sweep_id'][:12]}, trial {record['trial_id']}" if record.get("sweep_id") else ""
    pairs = {
        "digest": record["digest"],
        "aliases": " ".join(record.get("aliases", [])),
        "kind": f"{record['kind']}{shape}, {size(record['bytes'])}",
        "base": f"{record['base']['name']} ({record['base']['digest'][:12]})",
        "metric": _headline(headline(record)),
        "from": run or sweep or str(record.get("imported", {}).get("from", "")),
        "template": template["name"] if template else "none: prompts are plain texts",
        "changes": f"{record['fingerprint']['max_abs_difference_from_base']:.3g} logits of the base's, on its probe",
        "by": f"{record['created_by']} at {record['created_at']}",
        "folder": str(record.get("folder", "")),
    }
    show_pairs(pairs, console)


def show_alias(alias: Record, console: Console) -> None:
    """Print where an alias points now."""
    from ftray.registry.names import spell

    before = alias["previous"]
    was = f", before {spell(before['name'], before['digest'])}" if before else ""
    console.print(
        f"{alias['alias']} is {spell(alias['name'], alias['digest'])} (generation {alias['generation']}{was})",
        markup=False,
        soft_wrap=True,
    )


def _headline(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    from ftray.summary import shown

    base, tuned = (shown(metric["name"], metric[side]) for side in ("base", "tuned"))
    return f"{metric['name']} {base} > {tuned}"


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if unit != "B" else f"{count} B"
