"""What a run's end says in the terminal about its findings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ftray.artifacts import RunDirectory, write_json
from ftray.summary import show_result
from ftray.summary import shown as spell

FINDING = {
    "kind": "loss_spike",
    "severity": "warn",
    "symptom": "The loss of 2 steps stood far out.",
    "evidence": {},
    "cause": "Broken rows.",
    "fix": "Look at train row 17.",
    "set": ["train.max_grad_norm=0.3", "data.replay={sample_base: 300, fraction: 0.25}"],
    "explains": [],
}


def shown(run: RunDirectory, **result: Any) -> list[str]:
    file = io.StringIO()
    failure = {"kind": "node", "message": "a worker was lost", "given": None}
    given = {"status": "failed", "failure": failure, "path": str(run.root), **result}
    show_result(given, Console(file=file, width=40), command="ftray train job.yaml")
    return file.getvalue().splitlines()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_a_finding_is_one_line_with_what_to_do_and_settings_a_shell_takes(run: RunDirectory) -> None:
    write_json(run.diagnosis, {"schema": "ftray/diagnosis/1", "findings": [FINDING]})
    (line,) = [line for line in shown(run) if line.strip().startswith("loss spike")]
    assert line.strip().removeprefix("loss spike").strip() == (
        "The loss of 2 steps stood far out. Look at train row 17. Or in short: --set train.max_grad_norm=0.3 "
        "--set 'data.replay={sample_base: 300, fraction: 0.25}'"
    )


def test_without_findings_or_without_a_diagnosis_nothing_is_said(run: RunDirectory) -> None:
    before = shown(run)
    write_json(run.diagnosis, {"schema": "ftray/diagnosis/1", "findings": []})
    assert shown(run) == before


def test_an_earlier_diagnosis_says_nothing_of_an_interrupted_run(run: RunDirectory) -> None:
    write_json(run.diagnosis, {"schema": "ftray/diagnosis/1", "findings": [FINDING]})
    assert not any("spike" in line for line in shown(run, status="interrupted", failure=None))


def test_what_lm_eval_measures_is_written_as_a_share() -> None:
    assert spell("lm_eval:acc", 0.4312) == "43.1%"
    assert spell("bits_per_byte", 0.4312) == "0.4312"
