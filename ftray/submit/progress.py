"""How far a run or a campaign is: from its folder, where it can be read from here, else from what it has said.

The folder is the truth; the log is what the command prints, line by line (`display.PlainLines`, `leaderboard`).
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ftray.artifacts import RunDirectory, read_json, read_lines
from ftray.campaign import SweepDirectory
from ftray.evaluate.config import LOWER_IS_BETTER

TAIL_BYTES = 256 * 1024
"""Of metrics.jsonl: some hundred lines say what the pace is."""
STEP = re.compile(r"^step +(\d+)(?:/(\d+))?\b")
RATE = re.compile(r"\btokens/s ([\d,]+)")
LEFT = re.compile(r"(?:^| )((?:\d+ h )?(?:\d+ min )?[\d.]+ (?:s|min)) left$")
TRIALS = re.compile(r"^(\d+)(?: of (\d+))? trials ended")
PLANNED = re.compile(r"^\S+: (\d+) trials$")
UNITS = {"h": 3600.0, "min": 60.0, "s": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far it is; None is unknown."""

    step: int | None = None
    total_steps: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    trials: int | None = None
    """Trials that have ended."""
    total_trials: int | None = None
    states: dict[str, int] | None = None
    """Trials by how they ended, and those that are running."""
    best_value: float | None = None
    """The best validation value so far."""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}


def said_so_far(lines: Iterable[str]) -> Progress:
    """Return how far a job is by the lines of its log."""
    known: dict[str, Any] = {}
    for line in lines:
        known |= said(line)
    return Progress(**known)


def said(line: str) -> dict[str, Any]:
    """Return what one line of a log says of the progress."""
    line = line.rstrip()
    if line.startswith("{"):
        return _said_by_machine(line)
    if match := STEP.match(line):
        step, total = match.groups()
        rate, left = RATE.search(line), LEFT.search(line)
        known: dict[str, Any] = {"step": int(step)}
        known |= {"total_steps": int(total)} if total else {}
        known |= {"tokens_per_second": float(rate.group(1).replace(",", ""))} if rate else {}
        return known | ({"seconds_left": seconds_of(left.group(1))} if left else {})
    if match := TRIALS.match(line):
        ended, total = match.groups()
        return {"trials": int(ended)} | ({"total_trials": int(total)} if total else {})
    if match := PLANNED.match(line):
        return {"total_trials": int(match.group(1))}
    return {}


KEYS = {
    "step": "step",
    "total_steps": "total_steps",
    "train/tokens_per_second": "tokens_per_second",
    "seconds_left": "seconds_left",
    "trials": "trials",
    "total_trials": "total_trials",
}
"""Fields of a line for machines (`observe.log`), and what they say of the progress."""


def _said_by_machine(line: str) -> dict[str, Any]:
    """Return what a JSON line says of the progress; a trial's steps are not the campaign's."""
    try:
        told = json.loads(line)
    except json.JSONDecodeError:
        return {}
    if not isinstance(told, dict):
        return {}
    known = {name: told[key] for key, name in KEYS.items() if isinstance(told.get(key), int | float)}
    return {name: value for name, value in known.items() if name != "step" or "trial" not in told}


def seconds_of(text: str) -> float:
    """Return a duration as `summary.duration` spells it, in seconds."""
    words = text.split()
    return sum(float(number) * UNITS[unit] for number, unit in zip(words[::2], words[1::2], strict=True))


def run_progress(run: RunDirectory) -> Progress:
    """Return how far a run is, by its folder."""
    total = read_json(run.plan)["total_steps"] if run.plan.exists() else None
    lines = _last_lines(run.metrics)
    steps = [line for line in lines if line["kind"] == "step"]
    step = max((line["step"] for line in lines), default=None)
    return Progress(
        step=step,
        total_steps=total,
        tokens_per_second=steps[-1].get("train/tokens_per_second") if steps else None,
        seconds_left=time_left(steps, step, total),
    )


def time_left(steps: Sequence[dict[str, Any]], step: int | None, total: int | None) -> float | None:
    """Return how long the rest takes at the pace of the newest attempt."""
    pace = [line for line in steps if line["attempt"] == steps[-1]["attempt"]]
    if step is None or total is None or len(pace) < 2:
        return None
    first, last = pace[0], pace[-1]
    seconds = _seconds_between(first, last)
    return max(0.0, seconds / (last["step"] - first["step"]) * (total - step)) if last["step"] > first["step"] else None


def _seconds_between(first: Mapping[str, Any], last: Mapping[str, Any]) -> float:
    return (datetime.fromisoformat(last["time"]) - datetime.fromisoformat(first["time"])).total_seconds()


def sweep_progress(sweep: SweepDirectory) -> Progress:
    """Return how far a campaign is, by its folder. Its records are only read: another process writes them.

    The rate is that of the trials that are running; the time left is at the pace of those that have ended.
    """
    records = {one["trial_id"]: one for one in read_lines(sweep.ledger) if one.get("role", "search") == "search"}
    job = read_json(sweep.job) if sweep.job.exists() else None
    total = job["campaign"]["trials"] if job else None
    begun = {path.parent.name: path.stat().st_mtime for path in sweep.trials.glob("*/trial.json")}
    running = [trial for trial in begun if trial not in records]
    tails = [_last_lines(sweep.trial(trial).metrics) for trial in running]
    steps = [[line for line in lines if line["kind"] == "step"] for lines in tails]
    rates = [found for lines in steps if (found := pace(lines)) is not None]
    seen = [one["best"]["validation_accuracy"] for one in records.values() if one.get("best")]
    seen += [line["val/accuracy"] for lines in tails for line in lines if line["kind"] == "evaluation"]
    values = [value for value in seen if value is not None]
    lower = job is not None and job["job"]["evaluate"]["task"]["metric"] in LOWER_IS_BETTER
    states = Counter(one["state"] for one in records.values())
    states.update({"running": len(running)} if running else {})
    return Progress(
        trials=len(records),
        total_trials=total,
        tokens_per_second=sum(rates) if rates else None,
        seconds_left=campaign_time_left(begun, len(records), total, now=time.time()),
        states=dict(states),
        best_value=(min if lower else max)(values) if values else None,
    )


def pace(steps: Sequence[dict[str, Any]]) -> float | None:
    """Return the tokens per second between the lines of a trial's newest attempt; waiting for others is included."""
    newest = [line for line in steps if line["attempt"] == steps[-1]["attempt"]]
    if len(newest) < 2:
        return None
    seconds = _seconds_between(newest[0], newest[-1])
    return (newest[-1]["train/tokens"] - newest[0]["train/tokens"]) / seconds if seconds > 0 else None


def campaign_time_left(begun: Mapping[str, float], ended: int, total: int | None, *, now: float) -> float | None:
    """Return how long the trials that have not ended take, at the pace of those that have.

    `begun`: when each trial began, in seconds since the epoch. None before a trial has ended.
    """
    if not ended or not begun or total is None:
        return None
    return max(0.0, (now - min(begun.values())) / ended * (total - ended))


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """Return the last lines of a file of JSON lines; a torn one at either end is left out."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read()
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    return [json.loads(line) for line in (lines[1:] if size > TAIL_BYTES else lines)]
