"""RUN/report.html: the run as one page to send to a colleague, made of the records on disk and nothing else.

The page loads nothing and runs nothing (its content security policy says so); the same records give the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ftray.artifacts import RunDirectory, write_text
from ftray.report import wording
from ftray.report.drawings import comparison_plots, training_plots
from ftray.report.examples import choose_examples
from ftray.report.records import Records, read_records

TEMPLATES = Path(__file__).parent
FILTERS = (
    wording.value, wording.change, wording.interval, wording.change_interval, wording.plain, wording.count,
    wording.p_value, wording.duration, wording.size, wording.moment, wording.excerpt, wording.words,
)  # fmt: skip
FAILURES = {
    "oom": "Out of memory",
    "data": "The data could not be used",
    "node": "A machine or process was lost",
    "communication": "The workers lost each other",
    "nonfinite": "The numbers stopped being finite",
    "nothing_learned": "Nothing was learned",
    "unknown": "An error ended the run",
}
CHECKS = {
    "overlap_exact": "Evaluation rows that are also training rows",
    "overlap_normalised": "Evaluation rows that are also training rows, but for case and blanks",
    "duplicates_exact": "Training rows that repeat an earlier row",
    "conflicts": "Equal prompts with different answers",
    "empty": "Rows with an empty prompt or answer",
    "size": "Number of training rows",
    "label_coverage": "Evaluation answers that training never shows",
}
Tone = Literal["good", "bad", "warn", "neutral"]
VERDICTS: dict[str, tuple[str, Tone]] = {
    "ship": ("Ship", "good"),
    "do_not_ship": ("Do not ship", "bad"),
    "inconclusive": ("Inconclusive", "warn"),
    "none": ("No verdict", "neutral"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The first thing a reader sees."""

    eyebrow: str
    label: str
    tone: Tone
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One large number."""

    what: str
    number: str
    note: str = ""


def render_run(run: RunDirectory) -> Path:
    """Write RUN/report.html and return its path. Raises InputError when the folder holds no run."""
    records = read_records(run)
    task = records.task
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({word.__name__: word for word in FILTERS})
    page = environment.get_template("run.html.jinja").render(
        css=Markup((TEMPLATES / "run.css").read_text(encoding="utf-8")),
        records=records,
        headline=headline(records),
        progress_tiles=progress_tiles(records),
        task=task,
        comparison_plots=comparison_plots(records),
        training_plots=training_plots(records),
        examples=choose_examples(records.predictions, task=task["name"], higher_is_better=task["higher_is_better"])
        if task
        else (),
        probes=probes(records),
        events=records.of_kind("event"),
        given=failure_details(records),
        job_yaml=yaml.safe_dump(records.job["job"], sort_keys=False, allow_unicode=True, width=100),
        check_names=CHECKS,
    )
    write_text(run.report, page)
    return run.report


def headline(records: Records) -> Headline:
    """Return the verdict, or what happened where there is none."""
    result, far = records.result, progress(records)
    if result is None:
        reason = f"There is no result: the run is still going on, or its process was killed. {far}"
        return Headline(eyebrow="Outcome", label="Not finished", tone="neutral", reasons=(reason,))
    if result["status"] == "interrupted":
        reasons = (f"The run was stopped by hand. {far}", "The same command goes on from its last checkpoint.")
        return Headline(eyebrow="Outcome", label="Interrupted", tone="warn", reasons=reasons)
    if result["status"] == "failed":
        failure = result["failure"]
        reasons = (f"{FAILURES[failure['kind']]}: {failure['message']}", far)
        return Headline(eyebrow="Outcome", label="The run failed", tone="bad", reasons=reasons)
    verdict = records.evaluation["verdict"] if records.evaluation else None
    label, tone = VERDICTS[verdict["decision"] if verdict else result["verdict"]]
    reasons = tuple(verdict["reasons"] if verdict else result["verdict_reasons"])
    return Headline(eyebrow="Verdict", label=label, tone=tone, reasons=reasons)


def progress(records: Records) -> str:
    """Say how far the training got."""
    if not records.lines:
        return "Nothing was recorded: it ended before its first step."
    last = max(records.lines, key=lambda line: str(line["time"]))
    total = f" of {records.plan['total_steps']}" if records.plan else ""
    return f"It reached step {records.last_step}{total}; the last record is from {wording.moment(last['time'])}."


def progress_tiles(records: Records) -> list[Tile]:
    """Return the numbers that a run without an evaluation has to show."""
    planned = f"of {records.plan['total_steps']} planned" if records.plan else ""
    tiles = [Tile(what="Optimizer steps", number=str(records.last_step), note=planned)]
    for key, what in (("train/loss", "Training loss"), ("val/loss", "Validation loss"), ("val/accuracy", "")):
        logged = [line for line in records.lines if line.get(key) is not None]
        if logged:
            number = logged[-1][key]
            shown = wording.plain(number) if what else wording.value(number, records.metric)
            name = what or f"{wording.words(records.metric)} on validation rows"
            tiles.append(Tile(what=name, number=shown, note=f"at step {logged[-1]['step']}"))
    return tiles


def failure_details(records: Records) -> str:
    """Return what a failure recorded beside its message, as JSON; empty when there is nothing."""
    failure = (records.result or {}).get("failure") or {}
    given = failure.get("given")
    return "" if given is None else json.dumps(given, ensure_ascii=False)


def probes(records: Records) -> list[dict[str, Any]]:
    """Return the general probes, each with the loss it may show and whether it stays within it."""
    if records.evaluation is None:
        return []
    limits = records.job["job"]["evaluate"]
    rows = []
    for task in records.evaluation["tasks"]:
        bits, base, tuned = task["bits_per_byte_change"], task["base"]["value"], task["tuned"]["value"]
        limit = limits["max_forgetting"] if bits is None else limits["max_bits_per_byte_increase"]
        lost = bits if bits is not None else None if base is None or tuned is None else base - tuned
        allowed = f"{wording.MINUS}{100 * limit:g} points" if bits is None else f"+{limit:g} bits per byte"
        if task["role"] == "general":
            rows.append({**task, "allowed": allowed, "kept": None if lost is None else lost <= limit})
    return rows
