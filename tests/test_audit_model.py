"""What a model says of data: rows that do not fit it, and answers that surprise it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ftray.audit_model import ModelLook
from ftray.cli import app
from ftray.data.conversations import Message
from ftray.quickstart.pretrain import tiny_base


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("look") / "model"
    tiny_base(folder, seed=0)
    return str(folder)


def test_rows_that_do_not_fit_are_counted_by_dataset(model, make_example):
    look = ModelLook(model)
    look.see("test", [make_example("q" * 2000, "a", row=3, dataset="test"), make_example("q", "a", row=4)])
    look.see("train", [make_example("q", "a " * 900, row=7)])
    assert {name: [one.row for one in rows] for name, rows in look.dropped.items()} == {"test": [3], "train": [7]}
    assert {one.reason for rows in look.dropped.values() for one in rows} == {"overlong"}


def test_surprise_is_bits_for_each_byte_of_an_answer(model, make_example):
    look = ModelLook(model)
    look.see("train", [make_example(f"question {row}", f"answer {row}", row=row) for row in range(10)])
    surprise = look.surprise()
    assert sorted(surprise) == [("train", row) for row in range(10)]
    # A model with random weights gives every token of its vocabulary about the same probability.
    assert all(1 < bits < 20 for bits in surprise.values())


def test_the_command_ranks_free_answers(model, tmp_path: Path) -> None:
    rows = [{"prompt": f"tell me of {n}", "completion": f"of {n} there is {n * 31} to tell"} for n in range(150)]
    rows[17]["completion"] = "\u4e16\u754c"
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    answers = [CliRunner().invoke(app, ["audit", str(file), "--json", *more]) for more in ([], ["--model", model])]
    without, looked = ({check["name"]: check for check in json.loads(answer.stdout)["checks"]} for answer in answers)
    assert (without["truncation"]["status"], looked["truncation"]["status"]) == ("skipped", "pass")
    assert (without["label_noise"]["status"], looked["label_noise"]["rows"]) == ("skipped", 150)


def test_a_declared_format_is_kept_to_the_end(tmp_path: Path) -> None:
    rows = [{"prompt": f"as json {n}", "completion": json.dumps({"n": n})} for n in range(200)]
    rows[5]["completion"] += " That is it."
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for declared in ("json", r'\{"n": \d+\}'):
        answer = CliRunner().invoke(app, ["audit", str(file), "--json", "--answers", declared])
        (drift,) = [one for one in json.loads(answer.stdout)["checks"] if one["name"] == "format_drift"]
        assert (drift["status"], drift["count"], drift["examples"][0]["row"]) == ("fail", 1, 5)
    answer = CliRunner().invoke(app, ["audit", str(file), "--answers", "("])
    assert answer.exit_code == 2
    assert "does not compile" in " ".join(answer.stderr.split())


def test_a_tool_call_is_no_answer_in_words(model, make_example):
    call = Message(role="assistant", content="", tool_calls=({"function": {"name": "f", "arguments": {"x": 1}}},))
    rows = [make_example(f"question {row}", f"answer {row}", row=row) for row in range(4)]
    rows[2] = dataclasses.replace(rows[2], messages=(*rows[2].messages[:-1], call))
    look = ModelLook(model)
    look.see("train", rows)
    assert sorted(look.surprise()) == [("train", 0), ("train", 1), ("train", 3)]


def test_rows_of_several_training_files_are_told_apart(model, tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{"prompt": f"{name} tell {n}", "completion": f"{name} {n} is {n * 31}"} for n in range(40)]
        if name == "b":
            rows[3]["prompt"] = "long " * 900
            rows[5]["completion"] = "\u4e16\u754c" * 8
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = [str(tmp_path / f"{name}.jsonl") for name in ("a", "b")]
    answer = CliRunner().invoke(app, ["audit", *files, "--json", "--model", model])
    report = json.loads(answer.stdout)
    names = [one["name"] for one in report["datasets"]]
    checks = {check["name"]: check for check in report["checks"]}
    long, noise = checks["truncation"], checks["label_noise"]
    assert (long["count"], long["rows"]) == (1, 80)
    assert [(one["dataset"], one["row"]) for one in long["examples"]] == [(names[1], 3)]
    # All rows that fit, not as many as there are row numbers.
    assert noise["rows"] == 79
