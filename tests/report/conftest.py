"""One real run for the tests of this folder: the command line on a tiny base, with a format and probes of each kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ftray.artifacts import RunDirectory
from ftray.cli import app
from ftray.quickstart.pretrain import tiny_base

COLOURS = ("red", "blue", "green", "grey")
JOB = """\
name: boxes
model: base
data:
  train: {path: train.jsonl, prompt: "{question}", completion: "{colour}"}
  test: {path: test.jsonl, prompt: "{question}", completion: "{colour}"}
train: {learning_rate: 5.0e-3, max_steps: 10, batch_size: 8, log_every: 5, evaluate_every: 5}
evaluate:
  task: {max_new_tokens: 4}
  format: {pattern: "[^0-9]*"}
  general:
    - {name: cats, path: cats.txt}
    - {name: words, path: test.jsonl, prompt: "{question}", completion: "{colour}", metric: token_f1, max_new_tokens: 4}
    - name: talk
      path: talk.jsonl
      prompt: "{question}"
      completion: ""
      metric: instructions
      instructions: [{kind: characters, min: 1}, {kind: lacks, words: [red, blue, gre, green, grey]}]
      max_new_tokens: 8
audit: {accept: [{check: format_drift, reason: two rows with a number stand there on purpose}]}
compute: {workers: 0}
"""
ODD_ROWS = (7, 31)
"""Training rows whose answer leaves the declared format after its first word."""


def write_questions(path: Path, numbers: range) -> None:
    rows = [{"question": f"What colour is box {i}?", "colour": COLOURS[i % 4]} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Return a finished run."""
    folder = tmp_path_factory.mktemp("real")
    tiny_base(folder / "base")
    for name, numbers in (("train", range(80)), ("test", range(80, 96)), ("talk", range(96, 108))):
        write_questions(folder / f"{name}.jsonl", numbers)
    rows = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for row in ODD_ROWS:
        rows[row] = json.dumps({"question": f"What colour is box {row}?", "colour": f"red, and {row} more"})
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    cats = "".join(f"The cat number {i} sat down.\n" for i in range(8))
    (folder / "cats.txt").write_text(cats, encoding="utf-8")
    job = folder / "job.yaml"
    job.write_text(JOB, encoding="utf-8")
    result = CliRunner().invoke(app, ["train", str(job), "--json", "--storage", str(folder / "runs")])
    assert result.exit_code == 0, result.stdout
    return RunDirectory(Path(json.loads(result.stdout)["path"]))
