"""Changes to a job file that several rules propose, each as `ftray train JOB --set` takes it.

A record lists every setting its version has, so what a job cannot take is never proposed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ftray.jobfile import apply_sets
from ftray.report.evidence import Evidence

LOWER_BY = 3.0
"""A learning rate that is not above the usual ones is lowered by this factor."""
RAISE_BY = 10.0
"""A learning rate below the usual ones is raised by this factor, or to their middle where that is more."""
REPLAY_TEXTS = 300
REPLAY_FRACTION = 0.25
"""300 texts sampled from the base, a quarter of the rows: kept a story model within 0.06 bits per byte on SNIPS."""


def changes(job: dict[str, Any], sets: Sequence[str]) -> tuple[str, ...]:
    """Return those of `sets` that change anything in the resolved job."""

    def apply(setting: str) -> dict[str, Any]:
        content = copy.deepcopy(job)
        apply_sets(content, [setting])
        return content

    return tuple(setting for setting in sets if apply(setting) != job)


def lower_rate(evidence: Evidence) -> str:
    """Return a lower learning rate: the upper end of the usual ones, or a third where it is not above them."""
    _, most = evidence.usual_rates
    rate = evidence.learning_rate
    return f"train.learning_rate={most if rate > most else rate / LOWER_BY:.3g}"


def higher_rate(evidence: Evidence) -> str:
    """Return a higher learning rate: ten times, and never below the middle of the usual ones."""
    least, most = evidence.usual_rates
    return f"train.learning_rate={max(RAISE_BY * evidence.learning_rate, (least * most) ** 0.5):.2g}"


def epochs(evidence: Evidence, factor: float) -> str:
    """Return the passes over the rows times `factor`; as steps where the job counts steps."""
    train = evidence.job["train"]
    if train.get("max_steps"):
        return f"train.max_steps={max(1, round(factor * train['max_steps']))}"
    return f"train.epochs={factor * train['epochs']:.3g}"


def more_capacity(evidence: Evidence) -> tuple[str, ...]:
    """Return what lets an adapter change more: all linear layers, twice the rank at the usual scale of 2."""
    method = evidence.job["method"]
    if evidence.method != "lora":
        return ()
    rank = min(64, max(16, 2 * method["rank"]))
    wider = () if method["target_modules"] == "all-linear" else ("method.target_modules=all-linear",)
    if rank <= method["rank"]:
        return wider
    return (*wider, f"method.rank={rank}", f"method.alpha={2 * rank}")


def less_capacity(evidence: Evidence) -> tuple[str, ...]:
    """Return what keeps an adapter from learning rows by heart: half the rank at the same scale, dropout."""
    method = evidence.job["method"]
    if evidence.method != "lora":
        return ()
    dropout = () if method["dropout"] else ("method.dropout=0.1",)
    if method["rank"] < 8:
        return dropout
    return (f"method.rank={method['rank'] // 2}", f"method.alpha={method['alpha'] / 2:g}", *dropout)


def replay(evidence: Evidence) -> tuple[str, ...]:
    """Return replay of what the base itself says; more of it where the job has some. None without the setting."""
    data = evidence.job["data"]
    if "replay" not in data:
        return ()
    present: dict[str, Any] | None = data["replay"]
    if present is None:
        return (f"data.replay={{sample_base: {REPLAY_TEXTS}, fraction: {REPLAY_FRACTION}}}",)
    fraction = float(present["fraction"])
    return (f"data.replay.fraction={min(0.5, 2 * fraction):g}",) if fraction < 0.5 else ()


def each_training_source(evidence: Evidence, key: str, value: str) -> tuple[str, ...]:
    """Return `key=value` for every training source of the job."""
    train = evidence.job["data"]["train"]
    if isinstance(train, list):
        return tuple(f"data.train.{index}.{key}={value}" for index in range(len(train)))
    return (f"data.train.{key}={value}",)
