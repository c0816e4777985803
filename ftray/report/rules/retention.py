"""Rules about what the base could do before: general ability, and following instructions."""

from __future__ import annotations

from typing import Any

from ftray.evaluate.verdict import SIGNIFICANCE
from ftray.report.evidence import Evidence
from ftray.report.finding import Finding
from ftray.report.rules.fitting import is_better
from ftray.report.rules.remedies import epochs, lower_rate, replay
from ftray.report.wording import words


def forgetting(evidence: Evidence) -> Finding | None:
    """What general probes lost is beyond the job's limits, as the verdict has it."""
    measured = _measured(evidence)
    if measured is None or measured["passed"]:
        return None
    lost = _beyond_limits(evidence)
    if (not lost and "parts" not in measured) or _is_instructions_alone(evidence, lost):
        return None
    more_replay = replay(evidence)
    full = evidence.method == "full"
    return Finding(
        kind="forgetting",
        severity="fail",
        symptom=f"General ability fell beyond the job's limits: {_pooled(measured)}"
        f"{', '.join(_fall(one) for one in lost) or 'what a probe is worth is no number'}.",
        evidence={"probes": lost, "forgetting": measured},
        cause="Nothing in the training rows rehearses what the base could do, and the steps are large enough to undo "
        "it.",
        fix=("Rehearse: mix in texts that the base itself writes (data.replay). " if more_replay else "")
        + "Lower the learning rate or train fewer epochs"
        + (", or use LoRA instead of training all weights." if full else "."),
        sets=(*more_replay, lower_rate(evidence), epochs(evidence, 0.5)),
    )


def _measured(evidence: Evidence) -> dict[str, Any] | None:
    """Return what evaluation.json says of forgetting; None where there are no probes."""
    return evidence.evaluation.get("forgetting") if evidence.evaluation else None


def _pooled(measured: dict[str, Any]) -> str:
    """Return the share of all items together where that is beyond its limit, for it can be without any probe's fall."""
    part = measured.get("parts", {}).get("right_or_wrong")
    if part is None or part["degraded"] <= measured["limit"] * part["n"]:
        return ""
    return (
        f"of {part['n']} items {part['degraded']} were right before and are wrong now ({part['score']:.1%}, limit "
        f"{measured['limit']:.1%}); "
    )


def _fall(one: dict[str, Any]) -> str:
    if one["base"] is None or one["tuned"] is None:
        return f"{one['name']} has no value"
    counted = f" ({one['degraded']} of {one['n']} forgotten)" if "degraded" in one else ""
    return f"{one['name']} {one['base']:.3g} to {one['tuned']:.3g} {words(one['metric'])}{counted}"


def _is_instructions_alone(evidence: Evidence, lost: list[dict[str, Any]]) -> bool:
    """Whether only instruction probes are beyond their limit, at the price of a better task."""
    return bool(lost) and all(one["role"] == "instruction" for one in lost) and is_better(evidence)


def _beyond_limits(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the probes that lost more than the job allows, those that lost most beyond it first."""
    measured = _measured(evidence) or {}
    if "parts" not in measured:
        # A version that counted no items: general probes alone, by what their means lost.
        limits = {"limit": evidence.job["evaluate"]["max_forgetting"],
                  "max_bits_per_byte_increase": evidence.job["evaluate"]["max_bits_per_byte_increase"]}  # fmt: skip
        probes = [task for task in evidence.of_role("general") if None not in _values(task)]
        lost = [one for task in probes if (one := _loss_of_mean(task, limits))]
    elif measured["passed"]:
        return []
    else:
        part = measured["parts"].get("right_or_wrong")
        are_too_many = part is not None and part["degraded"] > measured["limit"] * part["n"]
        lost = []
        for task in evidence.of_role("general", "instruction"):
            # Rows that are right or wrong count together, over all such probes.
            is_counted = task["paired"] is not None
            if is_counted and not are_too_many:
                continue
            one = _loss_of_items(task, measured) if is_counted else _loss_of_mean(task, measured)
            if one is not None:
                lost.append(one)
    return sorted(lost, key=lambda one: -one["harm"] if one["harm"] is not None else float("-inf"))


def _loss_of_items(task: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any] | None:
    """Return a probe of which more items were forgotten than the limit's share."""
    if task["degraded"] <= limits["limit"] * task["n"]:
        return None
    harm = task["degraded"] / task["n"]
    return {**_lost(task, harm=harm, limit=limits["limit"]), "degraded": task["degraded"], "n": task["n"]}


def _loss_of_mean(task: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any] | None:
    """Return a probe whose score fell, or whose bits per byte rose, by more than the limit; no number is beyond it."""
    base, tuned = _values(task)
    bits = task["bits_per_byte_change"]
    limit = limits["limit"] if bits is None else limits["max_bits_per_byte_increase"]
    harm = bits if bits is not None else None if base is None or tuned is None else base - tuned
    return None if harm is not None and harm <= limit else _lost(task, harm=harm, limit=limit)


def _lost(task: dict[str, Any], *, harm: float | None, limit: float) -> dict[str, Any]:
    base, tuned = _values(task)
    named = {key: task[key] for key in ("name", "role", "metric")}
    return {**named, "base": base, "tuned": tuned, "harm": harm, "limit": limit}


def _values(task: dict[str, Any]) -> tuple[float | None, float | None]:
    return task["base"]["value"], task["tuned"]["value"]


def alignment_tax(evidence: Evidence) -> Finding | None:
    """Instructions or formats followed worse, significantly or beyond the limit, while the task got better.

    Not where general probes are beyond their limits, too: that is forgetting.
    """
    lost = _beyond_limits(evidence)
    if not is_better(evidence) or (lost and not _is_instructions_alone(evidence, lost)):
        return None
    beyond = {one["name"] for one in lost}
    worse = [task for task in evidence.of_role("instruction", "format") if task["name"] in beyond or _is_worse(task)]
    if not worse:
        return None
    falls = {one["name"]: _fall(one) for one in lost}
    names = ", ".join(
        falls.get(task["name"]) or f"{task['name']} {task['base']['value']:.1%} to {task['tuned']['value']:.1%}"
        for task in worse
    )
    refused = " beyond the limit (evaluate.max_forgetting)" if lost else ""
    more_replay = replay(evidence)
    return Finding(
        kind="alignment_tax",
        severity="fail" if lost else "warn",
        symptom=f"The task got better, and instructions are followed worse{refused}: {names}.",
        evidence={
            "tasks": [
                {key: task[key] for key in ("name", "role", "metric", "n", "p_value")}
                | {"base": task["base"]["value"], "tuned": task["tuned"]["value"]}
                for task in worse
            ]
        },
        cause="Every training row is answered in the task's one way, so other instructions lose their hold.",
        fix="Mix rows with other instructions into training: a second source of instruction data, or replay. Then a "
        "lower learning rate or fewer epochs.",
        sets=(*more_replay, lower_rate(evidence), epochs(evidence, 0.5)),
    )


def _is_worse(task: dict[str, Any]) -> bool:
    base, tuned = task["base"]["value"], task["tuned"]["value"]
    if base is None or tuned is None or task["p_value"] is None:
        return False
    return bool((tuned < base) == task["higher_is_better"] and tuned != base and task["p_value"] <= SIGNIFICANCE)
