"""The rule about held-out rows that training has seen: whatever else a run shows, its numbers are not to be trusted."""

from __future__ import annotations

from typing import Any

from ftray.report.evidence import Evidence
from ftray.report.finding import Finding
from ftray.report.rules.remedies import each_training_source

DROPPED = ("overlap_exact", "overlap_normalised")
"""What `decontaminate: true` drops from training: rows whose question stands in a held-out file."""
OVERLAPS = ("overlap_exact", "overlap_normalised", "overlap_near", "overlap_ngram")
NUM_EXAMPLES = 5


def contamination(evidence: Evidence) -> Finding | None:
    """An overlap beyond its limit that the job accepted, or that the gate only warned of."""
    checks = [check for name in OVERLAPS if (check := evidence.checks.get(name)) and _is_beyond(check)]
    if not checks:
        return None
    worst = max(checks, key=lambda check: float(check["share"]))
    examples = [
        {key: one[key] for key in ("dataset", "row", "other_dataset", "other_row")} for one in worst["examples"]
    ]
    datasets = ", ".join(sorted({one["dataset"] for one in examples})) or "held-out"
    is_dropped = _is_dropped(evidence, worst)
    how = "decontaminate: true" if is_dropped else "ftray audit TRAIN --against FILE --write-clean CLEAN"
    reason = worst["accepted"]
    accepted = f" The job accepts it: {reason!r}." if reason else ""
    return Finding(
        kind="contamination",
        severity="fail",
        symptom=f"{worst['count']} of {worst['rows']} rows of {datasets} ({worst['share']:.1%}) stand in the training "
        f"data, too ({worst['name']}).{accepted}",
        evidence={
            "checks": {check["name"]: {key: check[key] for key in ("count", "rows", "share")} for check in checks},
            "rows": examples[:NUM_EXAMPLES],
        },
        cause="Training rows were drawn from the same pool as the held-out ones, or one file was made from the other.",
        fix=f"Drop these rows from training ({how}) and take the acceptance back; the figures on these rows show "
        "memory, not skill.",
        sets=each_training_source(evidence, "decontaminate", "true") if is_dropped else (),
    )


def _is_dropped(evidence: Evidence, check: dict[str, Any]) -> bool:
    """Return whether `decontaminate: true` finds these rows: neither near ones nor those of probes are."""
    if check["name"] not in DROPPED:
        return False
    data = evidence.job["data"]
    # A validation share is cut from training after rows are dropped: there is no file to compare with.
    files = {name for name in ("validation", "test") if isinstance(data[name], dict | list)}
    return bool(check["examples"]) and all(one["dataset"] in files for one in check["examples"])


def _is_beyond(check: dict[str, Any]) -> bool:
    if check["status"] not in ("warn", "fail") or not check["count"]:
        return False
    return check["status"] == "fail" or (check["limit"] is not None and check["share"] > check["limit"])
