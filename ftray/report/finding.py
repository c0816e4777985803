"""A finding: what a run shows, why, what to do, and the changes to its job file that do it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "contamination", "lr_too_high", "diverging", "oscillating", "loss_spike", "lr_too_low", "nothing_learned",
    "label_imbalance", "untrained_end_token", "format_drift", "mode_collapse", "underfitting", "overfitting",
    "forgetting", "alignment_tax",
]  # fmt: skip
Severity = Literal["info", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that went wrong, for whoever has to decide what to run next."""

    kind: Kind
    severity: Severity
    """`fail`: the adapter is not usable, or its numbers are not to be trusted. `warn`: usable, and it can be better."""
    symptom: str
    """What the records show, with the numbers."""
    evidence: dict[str, Any]
    """The numbers and rows: plain JSON values."""
    cause: str
    """The likeliest reason."""
    fix: str
    """What to do, as whole sentences."""
    sets: tuple[str, ...] = ()
    """Changes to the job file, each as `ftray train JOB --set` takes it."""
    explains: tuple[Kind, ...] = field(default=())
    """Findings that this one is the reason of, which are therefore not reported beside it."""

    def to_record(self) -> dict[str, Any]:
        """Return the finding as in diagnosis.json."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "symptom": self.symptom,
            "evidence": self.evidence,
            "cause": self.cause,
            "fix": self.fix,
            "set": list(self.sets),
            "explains": list(self.explains),
        }
