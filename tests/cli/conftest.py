"""A small base, a job folder around it, and the command line run in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ftray.cli import app
from ftray.quickstart.pretrain import tiny_base

COLOURS = ("red", "blue", "green", "grey")
JOB = """\
name: boxes
model: base
storage: runs
data:
  train: {path: train.jsonl, prompt: "{question}", completion: "{colour}"}
  test: {path: test.jsonl, prompt: "{question}", completion: "{colour}"}
train: {learning_rate: 5.0e-3, max_steps: 10, batch_size: 8, log_every: 5, evaluate_every: 5}
evaluate:
  task: {max_new_tokens: 4}
  general: [{name: cats, path: cats.txt}]
compute: {workers: 0}
"""


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)


Command = Callable[..., Answer]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    tiny_base(folder)
    return folder


def write_rows(path: Path, numbers: range) -> None:
    rows = [{"question": f"What colour is box {i}?", "colour": COLOURS[i % 4]} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_job_folder(folder: Path, base: Path) -> Path:
    write_rows(folder / "train.jsonl", range(80))
    write_rows(folder / "test.jsonl", range(80, 96))
    cats = "".join(f"The cat number {i} sat down.\n" for i in range(8))
    (folder / "cats.txt").write_text(cats, encoding="utf-8")
    (folder / "job.yaml").write_text(JOB, encoding="utf-8")
    (folder / "base").symlink_to(base)
    return folder


@pytest.fixture
def job_folder(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job that could run, as the working directory."""
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    return make_job_folder(tmp_path, base)


def run(*words: str) -> Answer:
    result = CliRunner().invoke(app, list(words))
    return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def ftray() -> Command:
    return run


@dataclass(frozen=True)
class Trained:
    """A job folder with one finished run."""

    folder: Path
    job: str
    storage: str
    answer: Answer
    quietly: Answer

    @property
    def run(self) -> Path:
        return Path(self.answer.document["path"])


@pytest.fixture(scope="session")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = make_job_folder(tmp_path_factory.mktemp("trained"), base)
    job, storage = str(folder / "job.yaml"), str(folder / "runs")
    before = os.environ.pop("FTRAY_STORAGE", None)
    answer = run("train", job, "--json")
    yield Trained(folder, job, storage, answer, run("train", job, "--quiet"))
    if before is not None:
        os.environ["FTRAY_STORAGE"] = before
