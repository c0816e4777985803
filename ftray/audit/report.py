"""What the dataset gate says: one record per check, with counts, the worst rows and the fix."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any, Literal

from ftray.data.conversations import Example

Status = Literal["pass", "warn", "fail", "skipped"]
CHECKS = (
    "overlap_exact", "overlap_normalised", "overlap_near", "overlap_ngram", "duplicates_exact", "duplicates_near",
    "conflicts", "split_leakage", "format_drift", "diversity", "label_balance", "label_coverage", "empty", "truncation",
    "refusals", "encoding", "role_order", "template_tokens", "outliers", "personal_data", "size", "label_noise",
    "relevance",
)  # fmt: skip
"""Every check there is, in the order of audit.json."""
NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """A row to look at, and the row it collides with."""

    dataset: str
    row: int
    other_dataset: str | None = None
    other_row: int | None = None
    similarity: float | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the pointer as in audit.json."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one check found: `count` of `rows` rows."""

    name: str
    status: Status
    count: int
    rows: int
    limit: float | None
    """The largest share (or, beyond 1, the least number) that passes; None where there is no such number."""
    examples: tuple[Pointer, ...]
    fix: str
    """What was found and what to change, as whole sentences; why it was not looked for, where `skipped`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers beyond the count, for the report: plain JSON values."""
    accepted: str | None = None

    @property
    def share(self) -> float:
        return self.count / self.rows if self.rows else 0.0

    def to_record(self) -> dict[str, Any]:
        """Return the check as in audit.json."""
        plain = {
            name: getattr(self, name) for name in ("name", "status", "count", "rows", "share", "limit", "accepted")
        }
        examples = [pointer.to_record() for pointer in self.examples]
        return {**plain, "examples": examples, "fix": self.fix, "facts": self.facts}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedDataset:
    """A dataset the audit read."""

    name: str
    path: str
    rows: int
    digest: str

    def to_record(self) -> dict[str, Any]:
        """Return the dataset as in audit.json."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """All checks over all datasets."""

    datasets: tuple[AuditedDataset, ...]
    checks: tuple[Check, ...]

    @property
    def status(self) -> Literal["pass", "warn", "fail"]:
        """The worst status; a failed check that was accepted counts as a warning."""
        found = {"warn" if check.accepted and check.status == "fail" else check.status for check in self.checks}
        return "fail" if "fail" in found else "warn" if "warn" in found else "pass"

    @property
    def failed(self) -> tuple[Check, ...]:
        """The failed checks that nobody accepted."""
        return tuple(check for check in self.checks if check.status == "fail" and not check.accepted)

    def to_record(self) -> dict[str, Any]:
        """Return the `ftray/audit/1` document."""
        return {
            "schema": "ftray/audit/1",
            "status": self.status,
            "datasets": [dataset.to_record() for dataset in self.datasets],
            "checks": [check.to_record() for check in self.checks],
        }


class Worst:
    """Counts what is found and keeps the few rows where it is worst, the earliest of equals."""

    def __init__(self, size: int = NUM_EXAMPLES) -> None:
        self.count = 0
        self._size = size
        self._heap: list[tuple[float, int, Pointer]] = []

    def add(self, pointer: Pointer, severity: float = 0.0) -> None:
        """Count a row; the larger `severity`, the earlier it is shown."""
        self.count += 1
        entry = (severity, -self.count, pointer)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        """The worst rows, worst first."""
        return tuple(entry[2] for entry in sorted(self._heap, key=lambda entry: entry[:2], reverse=True))


def found(
    name: str,
    worst: Worst,
    *,
    rows: int,
    fix: str,
    limit: float,
    over: Status = "warn",
    under: Status = "pass",
    facts: dict[str, Any] | None = None,
) -> Check:
    """Return a check of `worst.count` in `rows` rows: `over` beyond the share `limit`, `under` when there are some."""
    status: Status = "pass" if not worst.count else over if worst.count > limit * rows else under
    return Check(
        name=name,
        status=status,
        count=worst.count,
        rows=rows,
        limit=limit,
        examples=worst.pointers,
        fix=fix if worst.count else "",
        facts=facts or {},
    )


def skipped(name: str, why: str, *, rows: int = 0, limit: float | None = None) -> Check:
    """Return a check that was not made, and why."""
    return Check(name=name, status="skipped", count=0, rows=rows, limit=limit, examples=(), fix=why)


def pointer(example: Example, other: Example | None = None, similarity: float | None = None) -> Pointer:
    """Return the place of a row, and of the row it collides with."""
    return Pointer(
        dataset=example.dataset,
        row=example.row,
        other_dataset=None if other is None else other.dataset,
        other_row=None if other is None else other.row,
        similarity=similarity,
    )
