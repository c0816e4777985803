"""Numbers as a reader wants them: percent for shares, points for their differences, seconds as minutes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ftray import summary
from ftray.evaluate.config import LOWER_IS_BETTER

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
LONGEST = 700
"""Characters of a prompt or an answer that are shown."""
Tone = Literal["good", "bad", "warn", "neutral"]
"""How a verdict, a check or an outcome is coloured."""
METRICS = {
    "nll": "negative log-likelihood",
    "json_valid": "valid JSON",
    "json_fields": "JSON fields",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "token_f1": "token F1",
    "macro_f1": "macro F1",
    "instructions": "all instructions followed",
    "format_valid": "in the declared format",
}
"""Metrics whose name is not what a reader would call them."""


def is_share(metric: str) -> bool:
    """Return whether the metric is a number 0-1 where more is better, written as percent."""
    return metric not in LOWER_IS_BETTER


def value(number: float | None, metric: str) -> str:
    """Write a metric's value: 90.0%, or 0.717."""
    if number is None:
        return MISSING
    return f"{number:.1%}" if is_share(metric) else plain(number)


def change(number: float | None, metric: str) -> str:
    """Write a difference of two values with its sign: +90.0 points, or +0.121."""
    if number is None:
        return MISSING
    text = f"{100 * number:+.1f} points" if is_share(metric) else f"{number:+.3f}"
    return text.replace("-", MINUS)


def interval(estimate: Mapping[str, Any], metric: str) -> str:
    """Write the 95 % interval of an estimate: 87.6% to 92.0%."""
    if estimate["low"] is None or estimate["high"] is None:
        return "no interval"
    return f"{value(estimate['low'], metric)} to {value(estimate['high'], metric)}"


def change_interval(estimate: Mapping[str, Any], metric: str) -> str:
    """Write the 95 % interval of a difference: +87.7 to +92.1."""
    if estimate["low"] is None or estimate["high"] is None:
        return "no interval"
    low, high = (change(estimate[end], metric).removesuffix(" points") for end in ("low", "high"))
    return f"{low} to {high}"


def plain(number: float | None) -> str:
    """Write a number with four digits."""
    return MISSING if number is None else f"{number:.4g}"


def count(number: float | None) -> str:
    """Write a whole number with thousands apart."""
    return MISSING if number is None else f"{number:,.0f}"


def p_value(number: float | None) -> str:
    """Write a p-value."""
    if number is None:
        return MISSING
    return "p < 0.001" if number < 0.001 else f"p = {number:.2g}"


def duration(seconds: float | None) -> str:
    """Write seconds as 42.0 s, 2 min 42 s or 3 h 05 min."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: float | None) -> str:
    """Write bytes as MiB or GiB."""
    if num_bytes is None:
        return MISSING
    mebibytes = num_bytes / 2**20
    return f"{mebibytes:.1f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def moment(text: str | None) -> str:
    """Write a UTC time of a record without its fraction."""
    return MISSING if text is None else text[:19].replace("T", " ") + " UTC"


def excerpt(text: str, longest: int = LONGEST) -> str:
    """Return the beginning of a long text, and how much is left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]} … ({len(text) - longest:,} more characters)"


def words(name: str) -> str:
    """Write an identifier as words: still wrong, overlap exact."""
    return name.replace("lm_eval:", "lm-eval ").replace("_", " ")


def metric(name: str) -> str:
    """Write a metric's name: exact match, macro F1."""
    return METRICS.get(name, words(name))


def title(text: str) -> str:
    """Write a text as the beginning of a line: its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def task_name(task: Mapping[str, Any]) -> str:
    """Write which task of evaluation.json this is: the metric alone for the task itself, for others also their name."""
    if task["role"] in ("task", "format"):
        return f"{'answers ' if task['role'] == 'format' else ''}{metric(task['metric'])}"
    return f"{task['name']}: {metric(task['metric'])}"


def command(sets: Sequence[str]) -> list[str]:
    """Write changes to a job file as the command that tries them, quoted for a shell, in parts that stay together."""
    return ["ftray train JOB", *(f"--set {shlex.quote(change)}" for change in sets)]


def setting(value: Any) -> str:
    """Write what a field of a job was set to: 0.0002, true, cosine."""
    return MISSING if value is None else summary.setting(value)


def forgotten(score: float | None, unit: str) -> str:
    """Write a forgetting score: a share of items that got worse, or bits per byte."""
    if score is None:
        return MISSING
    return value(score, "") if unit == "share" else f"{score:+.3f} bits per byte".replace("-", MINUS)
