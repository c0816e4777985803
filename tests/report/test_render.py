"""The run report: what it says for every way a run can end, and that it is one safe, self-contained file."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_records
from page_reader import Page, check_page
from run_records import job as resolved_job

from ftray.artifacts import RunDirectory, append_line, write_json
from ftray.errors import FAILURE_KINDS, InputError
from ftray.report.render import render_run

RUN_ID = "ab12" * 16
DIGEST = "cd34" * 16
HOSTILE = "<script src='https://evil.example/x.js'></script>&\"'</pre>{{ 7 * 7 }}"

Records = dict[str, Any]


def estimate(value: float, spread: float = 0.05) -> Records:
    return {"value": value, "low": value - spread, "high": value + spread}


def compared(name: str, role: str, metric: str, base: float, tuned: float) -> Records:
    lower = metric in {"nll", "perplexity", "bits_per_byte"}
    paired = {"both": 1, "only_base": 2, "only_tuned": 30, "neither": 7} if role == "task" and not lower else None
    return {
        "name": name,
        "role": role,
        "metric": metric,
        "higher_is_better": not lower,
        "n": 40,
        "base": estimate(base),
        "tuned": estimate(tuned),
        "difference": estimate(tuned - base),
        "paired": paired,
        "p_value": 1e-9,
        "bits_per_byte_change": tuned - base if lower else None,
    }


def predictions() -> list[Records]:
    outcomes = [(False, True)] * 30 + [(False, False)] * 7 + [(True, False)] * 2 + [(True, True)]
    return [
        {
            "task": "task",
            "row": row,
            "prompt": f"What is {row}?",
            "expected": f"answer {row}",
            "base": f"before {row}",
            "tuned": f"after {row}",
            "base_correct": base,
            "tuned_correct": tuned,
            "base_score": float(base),
            "tuned_score": float(tuned),
        }
        for row, (base, tuned) in enumerate(outcomes)
    ]


def job() -> Records:
    return {
        "schema": "ftray/job/1",
        "run_id": RUN_ID,
        "smoke": False,
        "job": resolved_job("train.learning_rate=0.0004321"),
        "model_digest": DIGEST,
        "data_digests": {"train": DIGEST, "test": DIGEST},
        "ftray_version": "9.9.9",
    }


def plan() -> Records:
    return {
        "schema": "ftray/plan/1",
        "mode_reason": "compute.workers is 0: plain torch in this process",
        "batch_size": 16,
        "micro_batch_size": 8,
        "steps_per_epoch": 20,
        "total_steps": 40,
        "precision": "fp32",
        "max_grad_norm": 1.0,
        "schedule": {"kind": "cosine", "peak": 1e-3, "minimum": 0.0, "warmup_steps": 2, "total_steps": 40},
        "data": {"train_rows": 320, "train_tokens": 12000, "train_labels": 1200},
    }


def audit() -> Records:
    check = {"share": 0.0125, "limit": 0.01, "accepted": None, "examples": [], "rows": 320, "count": 4, "fix": ""}
    pointer = {"dataset": "train", "row": 17, "other_dataset": "train", "other_row": 3, "similarity": None}
    return {
        "schema": "ftray/audit/1",
        "status": "warn",
        "datasets": [{"name": "train", "path": "train.jsonl", "rows": 320, "digest": DIGEST}],
        "checks": [
            {**check, "name": "duplicates_exact", "status": "warn", "examples": [pointer], "fix": "Remove them."},
            {**check, "name": "conflicts", "status": "fail", "accepted": "two annotators"},
            {**check, "name": "size", "status": "pass", "limit": 100.0},
        ],
    }


def selection() -> Records:
    candidate = {"value": 0.7, "loss": 0.4, "selected": False}
    return {
        "schema": "ftray/selection/1",
        "split": "validation",
        "metric": "exact_match",
        "step": 30,
        "value": 0.8,
        "last_value": 0.7,
        "reason": "The highest.",
        "candidates": [
            {**candidate, "step": 30, "value": 0.8, "selected": True, "reason": "The highest value, 0.8."},
            {**candidate, "step": 40, "reason": "Its value 0.7 is worse than 0.8."},
        ],
    }


def evaluation() -> Records:
    return {
        "schema": "ftray/evaluation/1",
        "run_id": RUN_ID,
        "split": "test",
        "selection_biased": False,
        "base": {"name": "some-base", "digest": DIGEST},
        "tuned": {"step": 30, "digest": DIGEST},
        "tasks": [
            compared("task", "task", "exact_match", 0.075, 0.775),
            compared("stories", "general", "bits_per_byte", 0.7, 1.3),
            compared("sums", "general", "token_f1", 0.5, 0.5),
        ],
        "forgetting": {
            **{"score": 0.6, "low": 0.5, "high": 0.7, "unit": "share", "n": 80, "degraded": 48},
            **{"limit": 0.05, "passed": False},
        },
        "collapse": {"distinct_share": 0.2, "top_share": 0.3, "entropy_bits": 2.5},
        "verdict": {"decision": "do_not_ship", "reasons": ["It is better.", "It forgot how to tell stories."]},
    }


def result() -> Records:
    return {
        "schema": "ftray/result/1",
        "status": "completed",
        "stopped_reason": None,
        "verdict": "do_not_ship",
        "verdict_reasons": [],
        "attempts": 2,
        "method": "lora",
        "steps": 40,
        "epochs": 2.0,
        "tokens": 24000,
        "label_tokens": 2400,
        "tokens_per_second": 812.0,
        "peak_memory_bytes": 900 * 2**20,
        "optimizer_bytes_per_rank": [2 * 2**20, 2 * 2**20],
        "seconds": {"startup": 2.0, "train": 90.0, "evaluate": 30.0, "checkpoint": 1.0, "total": 123.0},
        "adapter": {"path": "adapter", "digest": DIGEST},
        "failure": None,
        "versions": {"ftray": "9.9.9", "torch": "2.12.3"},
        "started_at": "2026-01-02T03:04:05.678Z",
        "ended_at": "2026-01-02T03:06:08.678Z",
    }


def metrics() -> list[Records]:
    lines: list[Records] = [{"step": 0, "kind": "event", "event": "started"}]
    for step in range(10, 41, 10):
        numbers = {"train/loss": 20.0 / step, "train/learning_rate": 1e-5 * step, "train/grad_norm": 3.0}
        lines.append({"step": step, "kind": "step", **numbers})
        lines.append({"step": step, "kind": "evaluation", "val/loss": 0.4, "val/accuracy": 0.8 if step == 30 else 0.7})
    return [
        {"time": f"2026-01-02T03:04:{10 + line['step']}.000Z", "attempt": 1, "epoch": 1.0, **line} for line in lines
    ]


def finished() -> Records:
    return {
        "job": job(), "plan": plan(), "audit": audit(), "selection": selection(), "evaluation": evaluation(),
        "result": result(), "metrics": metrics(), "predictions": predictions(),
    }  # fmt: skip


def failed(status: str, failure: Records | None) -> Records:
    nothing = {"verdict": "none", "adapter": None, "optimizer_bytes_per_rank": []}
    records = {**finished(), "result": {**result(), **nothing, "status": status, "failure": failure}}
    return records


Render = Callable[[Records], str]


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Write the records of a run, render it, and return the page."""

    def write_and_render(records: Records) -> str:
        run = RunDirectory(tmp_path / "run")
        shutil.rmtree(run.root, ignore_errors=True)
        run.create()
        for name, record in records.items():
            path = getattr(run, name)
            for line in record if isinstance(record, list) else []:
                append_line(path, line)
            if not isinstance(record, list):
                write_json(path, record)
        assert render_run(run) == run.report
        return run.report.read_text(encoding="utf-8")

    return write_and_render


def test_a_finished_run_shows_every_part(render: Render) -> None:
    page = render(finished())
    text = Page(page).text
    for part in (
        "Do not ship", "It is better.", "It forgot how to tell stories.",
        "7.5%", "77.5%", "72.5% to 82.5%", "+70.0 points", "p < 0.001",
        "30 fixed", "2 broken", "7 right by neither",
        "stories bits per byte 40 0.7", "+0.600", "+0.1 bits per byte lost", "\N{MINUS SIGN}5 points kept",
        "48 of 80 items got worse: a score of 60.0%", "1 check passed",
        "10 held-out rows", "selected checkpoint, step 30", "Exact match per checkpoint", "Gradient norm",
        "Selected. The highest value, 0.8.", "Its value 0.7 is worse than 0.8.",
        "Remove them.", "train row 17 and train row 3", "Accepted: two annotators",
        "learning_rate: 0.0004321", "2.12.3", RUN_ID, "2 min 03 s", "900.0 MiB", "2026-01-02 03:06:08 UTC",
        "2.0 MiB, 2.0 MiB", "completed, 2 attempts", "started",
    ):  # fmt: skip
        assert part in text, part
    assert page.count("<svg") == 6  # scores, bits per byte, loss, accuracy, learning rate, gradient norm


def spiked() -> Records:
    """Return a finished run whose loss has a spike."""
    records = finished()
    time = {"time": "2026-01-02T03:04:33.000Z", "attempt": 1, "epoch": 1.0}
    return {**records, "metrics": [*records["metrics"], {**time, **run_records.spike(33, 17)}]}


def test_findings_stand_after_the_verdict_with_what_to_change(render: Render, tmp_path: Path) -> None:
    page = render(spiked())
    assert page.index('class="verdict') < page.index('id="findings"') < page.index('id="comparison"')
    text = Page(page).text
    for part in (
        "The loss has spikes", "train row 17", "General ability was forgotten", "stories 0.7 to 1.3 bits per byte",
        "ftray train JOB --set train.max_grad_norm=0.3", "the loss jumped",
    ):  # fmt: skip
        assert part in text, part
    written = json.loads((tmp_path / "run/diagnosis.json").read_text(encoding="utf-8"))
    assert written["schema"] == "ftray/diagnosis/1"
    assert [finding["kind"] for finding in written["findings"]] == ["loss_spike", "forgetting"]


def test_a_run_without_findings_has_no_such_section(render: Render, tmp_path: Path) -> None:
    records = finished()
    records["evaluation"] |= {"tasks": records["evaluation"]["tasks"][:1], "forgetting": None}
    assert 'id="findings"' not in render(records)
    assert json.loads((tmp_path / "run/diagnosis.json").read_text(encoding="utf-8"))["findings"] == []


def test_the_example_rows_mix_what_was_fixed_missed_and_broken(render: Render) -> None:
    table = render(finished()).split('<table class="rows">')[1].split("</table>")[0]
    outcomes = re.findall(r'class="chip \w+">([^<]+)<', table)
    assert outcomes == ["fixed"] * 4 + ["still wrong"] * 4 + ["broken"] * 2
    for part in ("What is 38?", "answer 38", "before 38", "after 38"):
        assert part in table


def test_it_loads_nothing_runs_nothing_and_links_lead_somewhere(render: Render) -> None:
    check_page(render(finished()))


def test_a_real_run_has_every_part(real_run: RunDirectory) -> None:
    page = real_run.report.read_text(encoding="utf-8")
    text = Page(page).text
    for part in (
        "talk: all instructions followed", "answers in the declared format", "The job declares what an answer is",
        "Texts that cost over 10% more bits per byte", "12 of 12", "talk the worst 6 of 12 items that got worse",
        "not followed: lacks 'red'", "Where they leave it", "train row 31", "checks passed", "distinct pairs",
    ):  # fmt: skip
        assert part.casefold() in text.casefold(), part
    answers = page.split('id="answers"')[1].split("</section>")[0]
    assert ("<figure>" in answers) != ("Every tuned answer keeps to it" in answers)
    assert page.index("<h2>Data") < page.index("format_drift") < page.index("checks passed") < page.index("truncation")


def test_whatever_a_user_wrote_is_escaped(render: Render) -> None:
    records = json.loads(json.dumps(finished()).replace("answer 38", json.dumps(HOSTILE)[1:-1]))
    records["job"]["job"]["name"] = HOSTILE
    records["job"]["job"]["model"] = HOSTILE
    records["audit"]["checks"][0]["fix"] = HOSTILE
    records["audit"]["datasets"][0]["path"] = HOSTILE
    records["evaluation"]["verdict"]["reasons"] = [HOSTILE]
    records["evaluation"]["tasks"][1]["name"] = HOSTILE
    for line in records["predictions"]:
        line["prompt"] = line["base"] = line["tuned"] = HOSTILE
    lost = {"base_correct": None, "tuned_correct": None, "base_score": 0.5, "tuned_score": 1.5, "expected": HOSTILE}
    records["predictions"].append({**records["predictions"][0], "task": HOSTILE, **lost})
    records["evaluation"] |= {"format": {"kind": "pattern", "declared": True, "description": HOSTILE}}
    records["audit"]["checks"] += [
        run_records.check("label_balance", "pass", count=0, facts={"labels": {HOSTILE: 3}, "entropy": 1.0}),
        run_records.check("personal_data", "warn", count=1, facts={"kinds": {HOSTILE: 1}}),
        run_records.check(
            "label_noise",
            "warn",
            count=1,
            facts={"worst": [{"row": 1, "given": HOSTILE, "suggested": HOSTILE, "probability": 0.9}]},
        ),
    ]
    records["metrics"][0]["event"] = HOSTILE
    page = render(records)
    assert "<script" not in page
    assert html.escape(HOSTILE, quote=False).split("'")[0] in page
    assert "script" not in Page(page).tags
    assert "{{ 7 * 7 }}" in Page(page).text


def test_the_same_records_give_the_same_bytes(render: Render) -> None:
    assert render(finished()) == render(finished())


@pytest.mark.parametrize("kind", FAILURE_KINDS)
def test_a_failed_run_says_what_happened(render: Render, kind: str) -> None:
    failure = {"kind": kind, "message": "step 23 <went> wrong", "given": [["train", 17]]}
    page = render(failed("failed", failure))
    text = Page(page).text
    for part in ("The run failed", "step 23 <went> wrong", '[["train", 17]]', "reached step 40 of 40", "Loss", "70.0%"):
        assert part in text, part
    assert "Do not ship" not in text  # an evaluation that lies there is an earlier try's
    assert "Why checkpoint" not in text


def test_an_interrupted_run_says_how_to_go_on(render: Render) -> None:
    text = Page(render(failed("interrupted", None))).text
    assert "Interrupted" in text
    assert "The same command goes on from its last checkpoint." in text


def test_a_run_that_left_only_its_job_still_has_a_report(render: Render) -> None:
    page = render({"job": job()})
    assert "Not finished" in Page(page).text
    assert "ended before its first step" in page
    assert "<svg" not in page


def test_a_folder_without_a_job_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"job\.json") as caught:
        render_run(RunDirectory(tmp_path))
    assert caught.value.kind == "not_a_run"


def test_a_run_without_test_data_probes_or_intervals(render: Render) -> None:
    records = finished()
    task = compared("task", "task", "nll", 2.5, 1.25)
    task["base"]["low"] = task["base"]["high"] = task["p_value"] = None
    records["job"]["job"]["evaluate"]["task"]["metric"] = "nll"
    records["evaluation"] |= {"tasks": [task], "split": "validation", "selection_biased": True}
    records["evaluation"] |= {"forgetting": None, "collapse": None}
    records["evaluation"]["verdict"] = {"decision": "inconclusive", "reasons": ["There is no test split."]}
    records["selection"]["metric"] = "nll"
    for line in records["predictions"]:
        line |= {"base_correct": None, "tuned_correct": None, "base_score": 2.0, "tuned_score": 1.5, "base": ""}
    text = Page(render(records)).text
    lower = "Negative log-likelihood: lower is better"
    for part in ("Inconclusive", "There was no test data", "not measured", lower, "no interval"):
        assert part in text, part
    assert "better row" in text
    assert "negative log-likelihood 1.5" in text
    assert "What was forgotten" not in text


def test_smoke_early_stopping_and_unmeasured_numbers_are_said(render: Render) -> None:
    records = finished()
    records["job"]["smoke"] = True
    records["result"] |= {"status": "early_stopped", "stopped_reason": "Nothing improves any more."}
    for end in ("value", "low", "high"):
        records["evaluation"]["tasks"][1]["tuned"][end] = None
    records["metrics"][2]["val/loss"] = None
    text = Page(render(records)).text
    for part in ("A smoke run", "Training stopped early. Nothing improves any more."):
        assert part in text, part


def test_curves_take_the_selections_values_when_the_metric_has_changed_since(render: Render) -> None:
    changed = finished()
    changed["selection"]["candidates"][0]["value"] = 0.25
    drawn = render(changed).split('id="value-figure_1"')[1].split("</svg>")[0]
    usual = render(finished()).split('id="value-figure_1"')[1].split("</svg>")[0]
    assert drawn.count("<use") < usual.count("<use")


def test_instruction_probes_stand_with_the_general_ones(render: Render) -> None:
    records = finished()
    form = compared("format", "format", "format_valid", 0.1, 0.9)
    rules = compared("rules", "instruction", "instructions", 0.6, 0.5)
    rules |= {"paired": {"both": 18, "only_base": 6, "only_tuned": 2, "neither": 14}}
    records["evaluation"]["tasks"] += [form, rules]
    text = Page(render(records)).text
    assert "48 of 80, beyond a limit" in text
    assert "rules all instructions followed 40 60.0%" in text
    assert "6 forgotten 5% forgotten, all such probes together lost" in text
    assert "Answers in the declared format to their end" in text.split("What was forgotten")[0]
    assert "format" not in text.split("What was forgotten")[1].split("held-out rows, before")[0]
