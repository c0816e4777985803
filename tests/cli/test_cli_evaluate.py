from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
Command = Callable[..., Any]
TEMPLATES = ("--prompt", "{question}", "--completion", "{colour}")


def task(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record["tasks"][0][key] for key in ("metric", "n", "base", "tuned", "paired")}


def test_a_run_evaluated_again_says_the_same(trained: Any, ftray: Command) -> None:
    before = json.loads((trained.run / "evaluation.json").read_text())
    answer = ftray("evaluate", "boxes", "--storage", trained.storage, "--json")
    assert answer.exit_code == 0, answer.stderr
    assert answer.document == json.loads((trained.run / "evaluation.json").read_text())
    assert task(answer.document) == task(before)
    assert answer.document["verdict"]["decision"] == before["verdict"]["decision"]
    assert answer.document["tuned"] == before["tuned"]


def test_new_data_is_read_like_the_runs_rows_and_written_apart(trained: Any, ftray: Command, tmp_path: Path) -> None:
    rows = [{"question": f"What colour is crate {i}?", "colour": "red"} for i in range(6)]
    file = tmp_path / "New rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = (trained.run / "evaluation.json").read_text()
    answer = ftray("evaluate", str(trained.run), "--data", str(file), "--gate", "--json")
    assert answer.exit_code == 3, answer.stderr
    assert answer.document["tasks"][0]["n"] == 6
    assert answer.document["seen_in_training"] == 0
    assert (trained.run / "evaluation.json").read_text() == before
    written = trained.run / "evaluations" / "new-rows"
    assert json.loads((written / "evaluation.json").read_text()) == answer.document
    assert len((written / "predictions.jsonl").read_text().splitlines()) == 6


def test_rows_that_training_has_seen_cannot_ship_a_model(trained: Any, ftray: Command, tmp_path: Path) -> None:
    data = str(trained.folder / "train.jsonl")
    answer = ftray("evaluate", str(trained.run), "--data", data, "--output", str(tmp_path), "--json")
    assert answer.document["seen_in_training"] == 80
    assert answer.document["verdict"]["decision"] != "ship"


def test_an_adapter_is_evaluated_on_data_alone(trained: Any, ftray: Command, tmp_path: Path) -> None:
    adapter, data = str(trained.run / "adapter"), str(trained.folder / "test.jsonl")
    answer = ftray(
        "evaluate", adapter, "--data", data, *TEMPLATES, "--max-new-tokens", "4", "--output", str(tmp_path), "--json"
    )
    assert answer.exit_code == 0, answer.stderr
    assert answer.document["run_id"] is None
    own = json.loads((trained.run / "evaluation.json").read_text())
    assert task(answer.document) == task(own)
    text = ftray("evaluate", adapter, "--data", data, *TEMPLATES, "--output", str(tmp_path)).stdout
    assert "exact_match" in text
    assert str(tmp_path) in text


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["nothing"], "missing_run"),
        (["{run}", "--prompt", "{question}"], "usage"),
        (["{run}", "--model", "other"], "usage"),
        (["{run}/adapter"], "missing_data"),
        (["{run}", "--data", "nowhere.jsonl"], "missing_file"),
        (["{run}", "--data", "{folder}/test.jsonl", "--metric", "no_such_metric"], "unknown_metric"),
        (["{run}/adapter", "--data", "{folder}/test.jsonl", "--model", "./nowhere"], "missing_model"),
    ],
)
def test_bad_requests(words: list[str], kind: str, trained: Any, ftray: Command) -> None:
    filled = [word.replace("{run}", str(trained.run)).replace("{folder}", str(trained.folder)) for word in words]
    answer = ftray("evaluate", *filled, "--storage", trained.storage, "--json")
    assert answer.exit_code == 2, answer.stderr
    assert answer.document["kind"] == kind
    assert answer.document["hint"]


@pytest.fixture
def copied(trained: Any, tmp_path: Path) -> Path:
    run = tmp_path / trained.run.name
    shutil.copytree(trained.run, run)
    return run


def test_an_adapter_that_was_changed_is_refused(copied: Path, ftray: Command) -> None:
    config = copied / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 32', '"lora_alpha": 64'))
    assert ftray("evaluate", str(copied), "--json").document["kind"] == "changed_model"


def test_weights_that_do_not_fit_are_refused(copied: Path, trained: Any, ftray: Command) -> None:
    config = copied / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 16', '"r": 8'))
    data = str(trained.folder / "test.jsonl")
    answer = ftray("evaluate", str(copied / "adapter"), "--data", data, *TEMPLATES, "--json")
    assert answer.document["kind"] == "adapter_mismatch", answer.stderr


def test_data_that_has_changed_is_refused(job_folder: Path, ftray: Command) -> None:
    assert ftray("train", "job.yaml", "--set", "train.max_steps=1", "--quiet").exit_code == 0
    with (job_folder / "test.jsonl").open("a") as file:
        file.write('{"question": "What colour is box 99?", "colour": "red"}\n')
    answer = ftray("evaluate", "boxes", "--json")
    assert answer.document["kind"] == "changed_data"
    assert list(answer.document["given"]) == ["test"]


def test_report_says_where_it_is(trained: Any, ftray: Command) -> None:
    answer = ftray("report", "boxes", "--storage", trained.storage, "--json")
    assert answer.exit_code == 0, answer.stderr
    assert Path(answer.document["report"]).read_text().lstrip().lower().startswith("<!doctype html")
    assert json.loads(Path(answer.document["diagnosis"]).read_text())["schema"] == "ftray/diagnosis/1"


def with_format(job_folder: Path, format: str) -> str:
    """Write a job whose answers have a format, with a probe of instructions whose rows have no answers."""
    rules = [{"ask": f"Name {n}.", "instructions": [{"kind": "characters", "max": n}]} for n in range(1, 5)]
    (job_folder / "rules.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rules))
    probe = '[{name: rules, path: rules.jsonl, prompt: "{ask}", completion: "", metric: instructions}, '
    job = (job_folder / "job.yaml").read_text().replace("general: [", f"format: {format}\n  general: {probe}")
    (job_folder / "formed.yaml").write_text(job)
    return str(job_folder / "formed.yaml")


def test_format_and_instructions_are_part_of_the_evaluation(job_folder: Path, ftray: Command) -> None:
    result = ftray("train", with_format(job_folder, "{pattern: '[a-z]{3,5}'}"), "--json")
    assert result.exit_code == 0, result.stderr
    run = Path(result.document["path"])
    record = json.loads((run / "evaluation.json").read_text())
    roles = {task["name"]: task["role"] for task in record["tasks"]}
    assert roles == {"task": "task", "format": "format", "rules": "instruction", "cats": "general"}
    assert (record["tasks"][1]["n"], record["tasks"][2]["n"]) == (16, 4)
    assert record["format"]["declared"] is True
    assert 1 <= len(record["prefix_validity"]) <= 4
    assert set(record["forgetting"]["parts"]) == {"right_or_wrong", "likelihood"}
    assert record["forgetting"]["n"] == 4 + 8
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [line["tuned"] for line in lines[:16]] == [line["tuned"] for line in lines[16:32]]
    assert {line["task"] for line in lines} == set(roles)
    assert {line["expected"] for line in lines if line["task"] == "rules"} == {
        f"at most {n} characters" for n in range(1, 5)
    }
    assert any("keep the format to their end" in reason for reason in record["verdict"]["reasons"])
    said = ftray("evaluate", str(run)).stdout
    assert "of 4 general items forgotten (" in said
    assert "of 8 general texts cost over a tenth more bits (" in said
    again = ftray("evaluate", str(run), "--json")
    assert again.exit_code == 0, again.stderr
    assert again.document == record
    texts = ftray("evaluate", str(run), "--data", str(job_folder / "test.jsonl"), "--metric", "choice", "--json")
    assert texts.exit_code == 0, texts.stderr
    assert [task["name"] for task in texts.document["tasks"]] == ["task"]


@pytest.mark.parametrize(
    ("format", "kind", "path"),
    [
        ("{pattern: '[a-z'}", "bad_pattern", "evaluate.format.pattern"),
        ("{pattern: '[a-z]+', json: true}", "bad_format", "evaluate.format"),
        ("json", "metric_mismatch", "evaluate.format"),
        ("{labels: []}", "bad_format", "evaluate.format.labels"),
        ("{xml: true}", "unknown_key", "evaluate.format.xml"),
    ],
)
def test_a_format_that_cannot_be_is_refused(
    job_folder: Path, ftray: Command, format: str, kind: str, path: str
) -> None:
    answer = ftray("check", with_format(job_folder, format), "--json")
    assert answer.exit_code == 2
    assert (answer.document["kind"], answer.document["path"]) == (kind, path)
