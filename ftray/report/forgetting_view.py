"""What the report says on forgetting: the score in words, each probe beside its limit, and forgotten items to read.

`score` counts items of every kind together; the limits hold for each kind on its own, which is why a high score may
stand beside "within the limits".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftray.evaluate.compare import DEGRADED_LIKELIHOOD, DEGRADED_SCORE, Grading
from ftray.evaluate.config import LOWER_IS_BETTER
from ftray.evaluate.forgetting import GENERAL_ROLES
from ftray.report import wording
from ftray.report.examples import spread
from ftray.report.records import Records
from ftray.report.wording import Tone

SHOWN = 6
"""Forgotten items of a probe that are shown."""
COSTLIER = f"{DEGRADED_LIKELIHOOD - 1:.0%}"
KINDS: dict[Grading, str] = {
    "right_or_wrong": "Items that were right before and are wrong now",
    "score": f"Items whose score fell by more than {100 * DEGRADED_SCORE:g} points",
    "likelihood": f"Texts that cost over {COSTLIER} more bits per byte",
}


MARKS: dict[bool | None, tuple[str, Tone]] = {
    True: ("kept", "good"),
    False: ("lost", "bad"),
    None: ("not measured", "neutral"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The items of one kind of grading, and the limit that their probes are held against."""

    what: str
    counts: Mapping[str, Any]
    """n, degraded, score, low, high."""
    limit: str
    passed: bool | None
    """None where a number is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One general or instruction task beside its limit."""

    task: Mapping[str, Any]
    grading: Grading
    limit: str
    mark: str
    tone: Tone


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenItem:
    """One item that fine-tuning made worse. Scores are in the probe's metric."""

    row: int
    prompt: str
    expected: str
    base: str
    tuned: str
    base_score: float | None
    tuned_score: float | None
    harm: float
    """How much worse: instructions lost, score lost, or the factor that the bits per byte grew by."""
    broken: tuple[str, ...]
    """Instructions that the base followed and the tuned model does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenOfProbe:
    """Items of one probe, worst first, of the `count` that got worse."""

    name: str
    metric: str
    grading: Grading
    what: str
    count: int
    n: int
    items: tuple[ForgottenItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingView:
    """The section: probes, what the score is made of, and items to read."""

    probes: tuple[Probe, ...]
    parts: tuple[Part, ...]
    """Empty in records of older versions."""
    drop: str
    """The mean fall over the probes graded 0-1, as a sentence; empty where there are none."""
    forgotten: tuple[ForgottenOfProbe, ...]


def forgetting_view(records: Records) -> ForgettingView | None:
    """Return what was forgotten; None where nothing was measured."""
    if records.evaluation is None:
        return None
    tasks = [task for task in records.evaluation["tasks"] if task["role"] in GENERAL_ROLES]
    if not tasks:
        return None
    limits = records.job["job"]["evaluate"]
    forgetting = records.evaluation["forgetting"] or {}
    probes = tuple(_probe(task, tasks, limits) for task in tasks)
    found = (_forgotten(probe, records.predictions) for probe in probes)
    return ForgettingView(
        probes=probes,
        parts=tuple(
            _part(grading, forgetting["parts"][grading], tasks, limits)
            for grading in KINDS
            if grading in forgetting.get("parts", {})
        ),
        drop=_drop(forgetting.get("mean_drop")),
        forgotten=tuple(one for one in found if one.items),
    )


def grading_of(task: Mapping[str, Any]) -> Grading:
    """Return how a task of evaluation.json is graded, as `compare` decided it."""
    if task["paired"]:
        return "right_or_wrong"
    return "likelihood" if task["metric"] in LOWER_IS_BETTER else "score"


def _is_within(task: Mapping[str, Any], limits: Mapping[str, Any]) -> bool | None:
    """Return whether one probe alone stays within the limit of its kind; None where a number is missing."""
    grading, base, tuned = grading_of(task), task["base"]["value"], task["tuned"]["value"]
    if grading == "right_or_wrong":
        return bool(task["paired"]["only_base"] <= limits["max_forgetting"] * task["n"])
    if grading == "score":
        return None if base is None or tuned is None else bool(base - tuned <= limits["max_forgetting"])
    change = task["bits_per_byte_change"]
    return None if change is None else bool(change <= limits["max_bits_per_byte_increase"])


def is_kind_within(grading: Grading, tasks: Sequence[Mapping[str, Any]], limits: Mapping[str, Any]) -> bool | None:
    """Return whether the probes of one kind keep its limit, as `measure_forgetting` decides; None if unmeasured."""
    of_kind = [task for task in tasks if grading_of(task) == grading]
    if grading == "right_or_wrong":
        forgotten = sum(task["paired"]["only_base"] for task in of_kind)
        return bool(forgotten / sum(task["n"] for task in of_kind) <= limits["max_forgetting"])
    within = [_is_within(task, limits) for task in of_kind]
    return None if None in within else all(within)


def _probe(task: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]], limits: Mapping[str, Any]) -> Probe:
    grading, alone = grading_of(task), _is_within(task, limits)
    share, bits = limits["max_forgetting"], limits["max_bits_per_byte_increase"]
    allowed: dict[Grading, str] = {
        "right_or_wrong": f"{100 * share:g}% forgotten, all such probes together",
        "score": f"{wording.MINUS}{100 * share:g} points",
        "likelihood": f"+{bits:g} bits per byte",
    }
    mark, tone = MARKS[alone]
    if alone is False and is_kind_within(grading, tasks, limits):
        mark, tone = "more than that alone", "warn"
    return Probe(task=task, grading=grading, limit=allowed[grading], mark=mark, tone=tone)


def _part(
    grading: Grading, counts: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]], limits: Mapping[str, Any]
) -> Part:
    share, bits = limits["max_forgetting"], limits["max_bits_per_byte_increase"]
    limit: dict[Grading, str] = {
        "right_or_wrong": f"{100 * share:g}% of these items, all such probes together",
        "score": f"none on the number of items: the mean of each probe may fall by {100 * share:g} points",
        "likelihood": f"none on the number of texts: each probe may rise by {bits:g} bits per byte",
    }
    passed = is_kind_within(grading, tasks, limits)
    return Part(what=KINDS[grading], counts=counts, limit=limit[grading], passed=passed)


def _drop(mean_drop: Mapping[str, Any] | None) -> str:
    if not mean_drop or mean_drop["value"] is None:
        return ""
    change = {key: None if mean_drop[key] is None else 0.0 - mean_drop[key] for key in ("value", "low", "high")}
    ends = {"low": change["high"], "high": change["low"]}
    return (
        "Over the probes graded between 0 and 1 the mean changed by "
        f"{wording.change(change['value'], '')} ({wording.change_interval(ends, '')}), gains counted against losses."
    )


def _forgotten(probe: Probe, predictions: Sequence[Mapping[str, Any]]) -> ForgottenOfProbe:
    task = probe.task
    rows = [line for line in predictions if line["task"] == task["name"]]
    items = [item for line in rows if (item := forgotten_item(line, probe.grading, task["metric"])) is not None]
    return ForgottenOfProbe(
        name=task["name"],
        metric=task["metric"],
        grading=probe.grading,
        what=KINDS[probe.grading],
        count=len(items),
        n=task["n"],
        items=worst_items(items, SHOWN),
    )


def forgotten_item(line: Mapping[str, Any], grading: Grading, metric: str) -> ForgottenItem | None:
    """Return a line of predictions.jsonl as an item that got worse; None where it did not."""
    broken = [
        instruction
        for instruction, before, after in zip(
            line.get("instructions", []), line.get("base_followed", []), line.get("tuned_followed", []), strict=True
        )
        if before and not after
    ]
    harm = _harm(line, grading, metric)
    if harm is None:
        return None
    return ForgottenItem(
        **{key: line[key] for key in ("row", "prompt", "expected", "base", "tuned", "base_score", "tuned_score")},
        harm=harm + len(broken),
        broken=tuple(broken),
    )


def _harm(line: Mapping[str, Any], grading: Grading, metric: str) -> float | None:
    """Return how much worse a row became; None where it counts as kept. As `compare` counts degraded rows."""
    if grading == "right_or_wrong":
        return 0.0 if line["base_correct"] and line["tuned_correct"] is False else None
    before, after = line["base_score"], line["tuned_score"]
    if before is None or after is None:
        return None
    if grading == "score":
        return float(before - after) if before - after > DEGRADED_SCORE else None
    if metric == "perplexity":
        before, after = math.log(before), math.log(after)
    if after <= DEGRADED_LIKELIHOOD * before:
        return None
    return float(after / before) if before > 0 else math.inf


def worst_items(items: Sequence[ForgottenItem], count: int) -> tuple[ForgottenItem, ...]:
    """Return the `count` worst, worst first; of equally bad ones some that are spread over all."""
    ranked = sorted(items, key=lambda item: -item.harm)
    if len(ranked) <= count:
        return tuple(ranked)
    edge = ranked[count - 1].harm
    worse = [item for item in ranked if item.harm > edge]
    equal = [item for item in ranked if item.harm == edge]
    return (*worse, *spread(equal, count - len(worse)))
