"""RUN/report.html: the run as one page to send to a colleague, made of the records on disk and nothing else.

The page loads nothing and runs nothing (its content security policy says so); the same records give the same bytes.
What they show went wrong is written beside it as RUN/diagnosis.json, so that page and file cannot disagree.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from ftray.artifacts import RunDirectory, write_json, write_text
from ftray.report import wording
from ftray.report.answers_view import answers_view
from ftray.report.audit_view import audit_view
from ftray.report.diagnose import diagnose
from ftray.report.drawings import comparison_plots, training_plots, validity_plot
from ftray.report.examples import choose_examples
from ftray.report.forgetting_view import forgetting_view
from ftray.report.page import Headline, Tile, render_page
from ftray.report.records import Records, read_records
from ftray.report.wording import Tone

FAILURES = {
    "oom": "Out of memory",
    "data": "The data could not be used",
    "node": "A machine or process was lost",
    "communication": "The workers lost each other",
    "nonfinite": "The numbers stopped being finite",
    "nothing_learned": "Nothing was learned",
    "unknown": "An error ended the run",
}
FINDINGS = {
    "contamination": "Held-out rows stand in the training data",
    "lr_too_high": "The learning rate is too high",
    "diverging": "Training diverged",
    "oscillating": "Training goes back and forth",
    "loss_spike": "The loss has spikes",
    "lr_too_low": "The learning rate is too low",
    "nothing_learned": "Nothing was learned",
    "label_imbalance": "One label swallows the others",
    "untrained_end_token": "Answers do not end",
    "format_drift": "Answers leave their format",
    "mode_collapse": "One answer to everything",
    "underfitting": "Too little was learned",
    "overfitting": "Training rows were learned by heart",
    "forgetting": "General ability was forgotten",
    "alignment_tax": "Instructions are followed worse",
}
VERDICTS: dict[str, tuple[str, Tone]] = {
    "ship": ("Ship", "good"),
    "do_not_ship": ("Do not ship", "bad"),
    "inconclusive": ("Inconclusive", "warn"),
    "none": ("No verdict", "neutral"),
}


def render_run(run: RunDirectory) -> Path:
    """Write RUN/diagnosis.json and RUN/report.html; return the page's path.

    Raises InputError when the folder holds no run.
    """
    records = read_records(run)
    diagnosis = diagnose(records)
    write_json(run.diagnosis, diagnosis)
    task = records.task
    page = render_page(
        "run.html.jinja",
        styles=("run.css",),
        records=records,
        headline=headline(records),
        findings=diagnosis["findings"],
        finding_names=FINDINGS,
        progress_tiles=progress_tiles(records),
        task=task,
        comparison_plots=comparison_plots(records),
        training_plots=training_plots(records),
        examples=choose_examples(records.predictions, task=task["name"], higher_is_better=task["higher_is_better"])
        if task
        else (),
        answers=answers_view(records),
        validity_plot=validity_plot(records),
        forgotten=forgetting_view(records),
        data=audit_view(records.audit),
        events=records.of_kind("event"),
        given=failure_details(records),
        job_yaml=yaml.safe_dump(records.job["job"], sort_keys=False, allow_unicode=True, width=100),
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
            name = what or f"{wording.metric(records.metric)} on validation rows"
            tiles.append(Tile(what=name, number=shown, note=f"at step {logged[-1]['step']}"))
    return tiles


def failure_details(records: Records) -> str:
    """Return what a failure recorded beside its message, as JSON; empty when there is nothing."""
    failure = (records.result or {}).get("failure") or {}
    given = failure.get("given")
    return "" if given is None else json.dumps(given, ensure_ascii=False)
