from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray import __version__
from ftray.cli import app
from ftray.cli.complaint import error_lines
from ftray.cli.streams import chatter_on_stderr
from ftray.errors import InputError

HEAVY = ("torch", "transformers", "ray", "datasets", "peft", "deepspeed", "pydantic", "numpy")
COMMANDS = (
    "audit", "quickstart", "init", "doctor", "schema", "check", "train", "sweep", "evaluate", "serve", "runs", "report",
    "submit", "status", "logs", "stop",
)  # fmt: skip


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, ftray.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command(ftray: Callable[..., Any]) -> None:
    answer = ftray("--help")
    assert answer.exit_code == 0
    assert all(name in answer.stdout for name in COMMANDS)
    assert ftray().stdout == answer.stdout


def test_version(ftray: Callable[..., Any]) -> None:
    assert ftray("--version").stdout == f"ftray {__version__}\n"


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ftray", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ftray {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "job.yaml"], "Did you mean 'train'?"),
        (["train"], "JOB"),
        (["train", "--lernrate", "1"], "--lernrate"),
        (["evaluate", "x", "--limit", "many", "--data", "y"], "--limit"),
    ],
)
def test_usage_errors_exit_2_with_a_document(words: list[str], said: str, ftray: Callable[..., Any]) -> None:
    answer = ftray(*words, "--json")
    assert answer.exit_code == 2
    assert answer.document["kind"] == "usage"
    assert said in answer.document["message"]
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_every_command_takes_json_storage_and_quiet() -> None:
    groups = {group.name: group.typer_instance.registered_commands for group in app.registered_groups}
    assert set(groups) == {"adapters", "experiment", "keys"}
    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names == set(COMMANDS)
    for command in [*app.registered_commands, *(one for commands in groups.values() for one in commands or ())]:
        assert command.callback is not None
        assert {"json", "storage", "quiet"} <= command.callback.__annotations__.keys()


def test_a_bug_says_that_it_is_one(ftray: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(storage: Path) -> list[Any]:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("ftray.runs.list_runs", broken)
    answer = ftray("runs", "--json")
    assert answer.exit_code == 1
    assert answer.document["kind"] == "internal"
    assert "bug in ftray" in answer.stderr
    assert "Traceback" in answer.stderr


def test_ctrl_c_exits_130(ftray: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(storage: Path) -> list[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr("ftray.runs.list_runs", stopped)
    answer = ftray("runs", "--json")
    assert answer.exit_code == 130
    assert answer.document["kind"] == "interrupted"


def test_chatter_of_native_code_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with chatter_on_stderr():
        os.write(1, b"native\n")
        print("python")
        subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    print("document")
    captured = capfd.readouterr()
    assert captured.out == "document\n"
    assert sorted(captured.err.split()) == ["child", "native", "python"]


def test_a_long_value_is_cut_to_one_screen() -> None:
    error = InputError("no", kind="bad_value", given=list(range(1000)), allowed={"most": 3}, file="job.yaml", line=4)
    lines = error_lines(error)
    assert len(lines["given"]) < 500
    assert lines["allowed"] == "most: 3"
    assert lines["where"] == "job.yaml:4"


def test_schema_is_one_document(ftray: Callable[..., Any]) -> None:
    answer = ftray("schema", "--json")
    assert answer.document["properties"]["name"]["pattern"]
    assert json.loads(ftray("schema").stdout) == answer.document


def test_init_writes_a_job_and_says_what_it_guessed(job_folder: Path, ftray: Callable[..., Any]) -> None:
    answer = ftray("init", "train.jsonl", "--model", "base", "--output", "new.yaml", "--json")
    assert answer.exit_code == 0, answer.stderr
    assert answer.document["notes"]
    assert Path(answer.document["job"]) == job_folder / "new.yaml"
    again = ftray("init", "train.jsonl", "--output", "new.yaml", "--json")
    assert again.exit_code == 2
