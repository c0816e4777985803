"""What went wrong in a run, why, and what to change: rules over its records. A healthy run has no finding.

One cause gets one finding. `RULES` are asked in the order of what can be the reason of what; a finding that an earlier
one explains (`EXPLAINS`) is not reported beside it, only named in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ftray.report.evidence import Evidence, gather
from ftray.report.finding import Finding, Kind
from ftray.report.records import Records
from ftray.report.rules.answers import format_drift, label_imbalance, mode_collapse, untrained_end_token
from ftray.report.rules.contamination import contamination
from ftray.report.rules.fitting import lr_too_low, nothing_learned, overfitting, underfitting
from ftray.report.rules.optimisation import course
from ftray.report.rules.remedies import changes
from ftray.report.rules.retention import alignment_tax, forgetting

SCHEMA = "ftray/diagnosis/1"
Rule = Callable[[Evidence], Finding | None]
RULES: tuple[Rule, ...] = (
    contamination,
    course,
    nothing_learned,
    lr_too_low,
    label_imbalance,
    untrained_end_token,
    format_drift,
    mode_collapse,
    underfitting,
    overfitting,
    forgetting,
    alignment_tax,
)
"""Causes before what they may cause. `course` is four kinds of which a curve gets one."""
SMOKE_RULES: tuple[Rule, ...] = (contamination,)
"""A tenth of the rows and of the steps says nothing about how well a run goes."""
UNTRAINED: tuple[Kind, ...] = ("untrained_end_token", "format_drift", "mode_collapse", "underfitting")
"""What a model that has not learned its task shows whatever the reason."""
UNSTABLE: tuple[Kind, ...] = (
    "nothing_learned", "label_imbalance", *UNTRAINED, "overfitting", "forgetting", "alignment_tax",
)  # fmt: skip
"""What weights that were thrown about show."""
EXPLAINS: dict[Kind, tuple[Kind, ...]] = {
    "lr_too_high": UNSTABLE,
    "diverging": UNSTABLE,
    "oscillating": UNSTABLE,
    "nothing_learned": ("lr_too_low", *UNTRAINED),
    "lr_too_low": UNTRAINED,
    "label_imbalance": ("mode_collapse", "underfitting"),
    "untrained_end_token": ("format_drift", "underfitting"),
    "format_drift": ("underfitting",),
    "mode_collapse": ("underfitting", "alignment_tax"),
    "underfitting": (),
}
"""Cause first. Contamination, spikes, overfitting and forgetting explain nothing: each needs evidence of its own."""


def diagnose(records: Records) -> dict[str, Any]:
    """Return the `ftray/diagnosis/1` document of a run, finished or not."""
    rules = SMOKE_RULES if records.job.get("smoke") else RULES
    evidence = gather(records)
    found = [finding for rule in rules if (finding := rule(evidence)) is not None]
    findings = [replace(one, sets=changes(evidence.job, one.sets)) for one in root_causes(found)]
    return {"schema": SCHEMA, "findings": [finding.to_record() for finding in findings]}


def root_causes(found: list[Finding]) -> list[Finding]:
    """Keep the findings that no kept one explains, in order; each names those it explains."""
    kept: list[Finding] = []
    explained: dict[Kind, list[Kind]] = {}
    for finding in found:
        reason = next((one.kind for one in kept if finding.kind in EXPLAINS.get(one.kind, ())), None)
        if reason is None:
            kept.append(finding)
        else:
            explained.setdefault(reason, []).append(finding.kind)
    return [replace(finding, explains=tuple(explained.get(finding.kind, ()))) for finding in kept]
