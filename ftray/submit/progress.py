"""How far a run or a campaign is: from its folder, where it can be read from here, else from what it has said.

The folder is the truth; the log is what the command prints, line by line (`display.PlainLines`, `leaderboard`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ftray.artifacts import RunDirectory, read_json, read_lines
from ftray.campaign import SweepDirectory

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
    seconds = (datetime.fromisoformat(last["time"]) - datetime.fromisoformat(first["time"])).total_seconds()
    return max(0.0, seconds / (last["step"] - first["step"]) * (total - step)) if last["step"] > first["step"] else None


def sweep_progress(sweep: SweepDirectory) -> Progress:
    """Return how far a campaign is, by its folder. Its ledger is only read: another process writes it."""
    records = read_lines(sweep.ledger)
    ended = {record["trial_id"] for record in records if record.get("role", "search") == "search"}
    total = read_json(sweep.job)["campaign"]["trials"] if sweep.job.exists() else None
    return Progress(trials=len(ended), total_trials=total)


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
