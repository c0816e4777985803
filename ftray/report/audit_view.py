"""What the report shows of audit.json: findings first, the rest folded, and the facts that a reader can use.

Records of older versions have no facts, and any fact may be missing: then its part is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftray.audit.wording import NAMES
from ftray.report import wording
from ftray.report.wording import Tone

TONES: dict[str, Tone] = {"pass": "good", "warn": "warn", "fail": "bad", "skipped": "neutral"}
STATUS_ORDER = ("fail", "warn")
EXAMPLES = 3
MOST_LABELS = 10
MOST_ROWS = 6
KEEPINGS = {
    "drifts": "begin in the format and go on with something else",
    "truncated": "stop inside the format",
    "other": "are never in the format",
    "valid": "are valid to their end",
}
PERCENTILES = ("p5", "p25", "p50", "p75", "p95")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A small table of facts, as text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One label and how often training shows it; `width` is its share of the commonest one's rows."""

    label: str
    count: int
    share: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """One check."""

    name: str
    title: str
    status: str
    tone: Tone
    found: str
    share: str
    limit: str
    advice: str
    examples: str
    """Places to look at; empty where nothing is wrong."""
    split: str
    """The count by kind or by dataset; empty where there is one only."""
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditView:
    """The section."""

    status: str
    tone: Tone
    findings: tuple[CheckRow, ...]
    """Failed ones first, then warnings."""
    others: tuple[CheckRow, ...]
    others_title: str
    labels: tuple[Bar, ...]
    labels_note: str
    lengths: Table | None


def audit_view(audit: Mapping[str, Any] | None) -> AuditView | None:
    """Return what the dataset gate found; None without an audit."""
    if audit is None:
        return None
    checks = audit["checks"]
    facts = {check["name"]: check.get("facts", {}) for check in checks}
    worst_first = [check for status in STATUS_ORDER for check in checks if check["status"] == status]
    others = [check for check in checks if check["status"] not in STATUS_ORDER]
    status = audit["status"]
    return AuditView(
        status={"pass": "passed the gate", "warn": "passed with warnings", "fail": "failed the gate"}[status],
        tone=TONES[status],
        findings=tuple(map(_row, worst_first)),
        others=tuple(map(_row, others)),
        others_title=_counted(others),
        labels=label_bars(facts.get("label_balance", {}).get("labels", {})),
        labels_note=_labels_note(facts.get("label_balance", {})),
        lengths=_lengths(facts.get("diversity", {})),
    )


def _counted(checks: Sequence[Mapping[str, Any]]) -> str:
    passed = sum(check["status"] == "pass" for check in checks)
    skipped = len(checks) - passed
    parts = [f"{passed} check{'s' if passed != 1 else ''} passed"] if passed else []
    return ", ".join([*parts, *([f"{skipped} skipped"] if skipped else [])])


def _row(check: Mapping[str, Any]) -> CheckRow:
    accepted, limit = check["accepted"], check["limit"]
    is_finding = check["status"] in STATUS_ORDER
    return CheckRow(
        name=check["name"],
        title=NAMES.get(check["name"], wording.words(check["name"])),
        status=check["status"],
        tone=TONES[check["status"]],
        found=f"{check['count']:,} of {check['rows']:,}",
        share=wording.value(check["share"], ""),
        limit=wording.MISSING if limit is None else wording.count(limit) if limit > 1 else wording.value(limit, ""),
        advice=f"Accepted: {accepted}" if accepted else check["fix"],
        examples="; ".join(map(_place, check["examples"][:EXAMPLES])) if is_finding else "",
        split=_split(check),
        tables=tuple(_tables(check)),
    )


def _place(pointer: Mapping[str, Any]) -> str:
    place = f"{pointer['dataset']} row {pointer['row']}"
    if pointer["other_row"] is None:
        return place
    return f"{place} and {pointer['other_dataset']} row {pointer['other_row']}"


def _split(check: Mapping[str, Any]) -> str:
    """Return what was found by kind, or by dataset where several were looked at."""
    facts = check.get("facts", {})
    if not check["count"] or check["name"] == "format_drift":
        return ""
    if facts.get("kinds"):
        return ", ".join(f"{kind} {count:,}" for kind, count in facts["kinds"].items())
    found = facts.get("found", {})
    return ", ".join(f"{name} {one['count']:,} of {one['rows']:,}" for name, one in found.items() if len(found) > 1)


def _tables(check: Mapping[str, Any]) -> Iterator[Table]:
    facts = check.get("facts", {})
    if check["name"] == "format_drift":
        yield from _format_tables(facts)
    elif check["name"] == "label_noise" and check["count"]:
        yield from _noise_tables(facts)


def _format_tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    """Yield how the answers keep to the format, and where the worst ones leave it."""
    if kinds := facts.get("kinds"):
        counts = [(KEEPINGS.get(kind, kind), wording.count(count)) for kind, count in kinds.items() if count]
        yield Table(title="The answers", head=("They", "Rows"), rows=tuple(counts), note=facts["format"])
    if worst := facts.get("worst", [])[:MOST_ROWS]:
        places = [
            (f"{one['dataset']} row {one['row']}", wording.words(one["kind"]), wording.count(one["valid_characters"]))
            for one in worst
        ]
        yield Table(title="Where they leave it", head=("Row", "How", "Valid characters"), rows=tuple(places))


def _noise_tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    worst = facts.get("worst", [])[:MOST_ROWS]
    if worst and "suggested" in worst[0]:
        suspects = [
            (f"train row {one['row']}", one["given"], one["suggested"], wording.value(one["probability"], ""))
            for one in worst
        ]
        head = ("Row", "Given", "Suggested", "Probability")
        yield Table(title="Read these first", head=head, rows=tuple(suspects))
    elif worst:
        surprising = [(f"train row {one['row']}", wording.plain(one["bits_per_byte"])) for one in worst]
        median = f"the median is {wording.plain(facts['median_bits_per_byte'])}"
        yield Table(title="Read these first", head=("Row", "Bits per byte"), rows=tuple(surprising), note=median)


def label_bars(counts: Mapping[str, int]) -> tuple[Bar, ...]:
    """Return the commonest labels, commonest first."""
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: -item[1])[:MOST_LABELS]
    return tuple(
        Bar(label=label, count=count, share=count / total, width=count / ranked[0][1]) for label, count in ranked
    )


def _labels_note(facts: Mapping[str, Any]) -> str:
    if not facts.get("labels"):
        return ""
    num_labels = len(facts["labels"])
    shown = f"the {MOST_LABELS} commonest of {num_labels}" if num_labels > MOST_LABELS else f"all {num_labels}"
    return f"{shown}; evenness {facts['entropy']:.2f} (1 is an even split)"


def _lengths(facts: Mapping[str, Any]) -> Table | None:
    words = {side: percentiles for side, percentiles in facts.get("words", {}).items() if percentiles}
    if not words:
        return None
    rows = []
    for side, percentiles in words.items():
        distinct = facts.get("distinct_2", {}).get(side)
        rows.append((side, *(wording.count(percentiles[key]) for key in PERCENTILES), wording.value(distinct, "")))
    head = ("Words in", "5%", "25%", "median", "75%", "95%", "Distinct pairs")
    note = f"Percentiles over {facts['sampled_rows']:,} rows, and the share of their pairs of words that differ."
    return Table(title="Lengths of the training rows", head=head, rows=tuple(rows), note=note)
