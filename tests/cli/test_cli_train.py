from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftray.artifacts import digest_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
Command = Callable[..., Any]


def test_train_leaves_a_run_and_prints_its_result(trained: Any) -> None:
    result = trained.answer.document
    assert trained.answer.exit_code == 0, trained.answer.stderr
    assert result["status"] in ("completed", "early_stopped")
    assert not result["reused"]
    assert json.loads((trained.run / "result.json").read_text()) == result
    for name in ("job.json", "audit.json", "plan.json", "metrics.jsonl", "evaluation.json", "adapter"):
        assert (trained.run / name).exists()


def test_progress_goes_to_stderr_line_by_line(trained: Any) -> None:
    lines = trained.answer.stderr.splitlines()
    assert any(line.startswith("step 5/10  loss ") and "gradient norm" in line for line in lines)
    assert any(line.startswith("step 5/10  validation loss ") and "exact_match" in line for line in lines)


def test_quiet_says_nothing(trained: Any) -> None:
    assert (trained.quietly.exit_code, trained.quietly.stdout, trained.quietly.stderr) == (0, "", "")


def test_the_same_job_again_is_the_same_run(trained: Any, ftray: Command) -> None:
    answer = ftray("train", trained.job, "--json")
    assert answer.exit_code == 0
    assert answer.document == {**trained.answer.document, "reused": True}


def test_the_summary_tells_verdict_numbers_and_places(trained: Any, ftray: Command) -> None:
    text = ftray("train", trained.job).stdout
    result = trained.answer.document
    assert text.split()[0] == f"{trained.run.name}:"
    for said in (*result["verdict_reasons"], "exact_match", "cats", result["adapter"]["path"], "report.html", "next"):
        assert said in text


def test_gate_exits_3_unless_the_verdict_is_ship(trained: Any, ftray: Command) -> None:
    assert trained.answer.document["verdict"] != "ship"
    assert ftray("train", trained.job, "--gate", "--quiet").exit_code == 3


def test_fresh_makes_another_run_that_its_attempt_names(job_folder: Path, ftray: Command) -> None:
    words = ("--set", "train.max_steps=1", "--set", "evaluate.general=[]")
    fresh = ftray("train", "job.yaml", *words, "--fresh", "--json")
    assert fresh.exit_code == 0, fresh.stderr
    salt = json.loads((Path(fresh.document["path"]) / "job.json").read_text())["attempt_salt"]
    again = ftray("train", "job.yaml", *words, "--attempt", salt, "--json")
    assert again.document["reused"]
    assert again.document["run_id"] == fresh.document["run_id"]


@pytest.fixture
def training(job_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A long training in a process of its own."""
    words = ["train", "job.yaml", "--set", "train.max_steps=5000", "--set", "train.evaluate_every=10", "--json"]
    words += ["--set", "train.early_stopping=null"]
    command = [sys.executable, "-m", "ftray", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_sigterm_is_an_interruption(training: subprocess.Popen[str], job_folder: Path, ftray: Command) -> None:
    deadline = time.monotonic() + 120
    while not list(job_folder.glob("runs/*/checkpoints/*/manifest.json")):
        assert time.monotonic() < deadline
        assert training.poll() is None, training.communicate()
        time.sleep(0.05)
    listed = ftray("runs", "--json").document["runs"]
    training.send_signal(signal.SIGTERM)
    stdout, stderr = training.communicate(timeout=60)
    assert training.returncode == 130, stderr
    assert json.loads(stdout)["status"] == "interrupted"
    assert [run["status"] for run in listed] == ["running"]
    assert [run["status"] for run in ftray("runs", "--json").document["runs"]] == ["interrupted"]


def test_memory_that_runs_out_is_a_failed_run_with_a_hint(
    job_folder: Path, ftray: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from ftray.train.engine import TorchEngine

    with monkeypatch.context() as patched:
        # A real allocation that no machine can serve, where a forward pass would allocate.
        patched.setattr(TorchEngine, "accumulate", lambda *args, **kwargs: [torch.empty(2**58)])
        answer = ftray("train", "job.yaml", "--json")
    assert answer.exit_code == 1, answer.stderr
    assert answer.document["status"] == "failed"
    assert answer.document["failure"]["kind"] == "oom"
    assert "micro_batch_size" in answer.document["failure"]["message"]
    again = ftray("train", "job.yaml", "--json")
    assert (again.exit_code, again.document["status"]) == (0, "completed")


def test_a_failed_run_exits_1_with_its_result(job_folder: Path, ftray: Command) -> None:
    answer = ftray("train", "job.yaml", "--set", "train.learning_rate=1.0e+38", "--json")
    assert answer.exit_code == 1, answer.stderr
    assert answer.document["status"] == "failed"
    assert answer.document["failure"]["kind"] == "nonfinite"
    diagnosis = json.loads((Path(answer.document["path"]) / "diagnosis.json").read_text())
    assert [finding["kind"] for finding in diagnosis["findings"]] == ["lr_too_high"]
    # Submitted again it fails again, and says in the terminal what to change.
    assert (
        "--set train.learning_rate=0.0003" in ftray("train", "job.yaml", "--set", "train.learning_rate=1.0e+38").stdout
    )
    assert "failed" in ftray("runs").stdout


def bad_yaml(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / "job.yaml").read_text()
        assert old in text
        (folder / "job.yaml").write_text(text.replace(old, new))

    return change


def bad_rows(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "train.jsonl").write_text(text)

    return change


def without_template(folder: Path) -> None:
    source = (folder / "base").resolve()
    (folder / "base").unlink()
    (folder / "base").mkdir()
    for file in source.iterdir():
        if file.name == "chat_template.jinja":
            continue
        text = file.read_bytes()
        if file.name == "tokenizer_config.json":
            config = json.loads(text)
            config.pop("chat_template", None)
            text = json.dumps(config).encode()
        (folder / "base" / file.name).write_bytes(text)


MIXED = (
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    '{"instruction": "a", "input": "", "output": "b"}\n'
)
BAD = {
    "unknown_key": (bad_yaml("learning_rate", "lerning_rate"), "unknown_key", ["lerning_rate", "`learning_rate`"]),
    "wrong_type": (bad_yaml("batch_size: 8", "batch_size: many"), "bad_value", ["train.batch_size", "many"]),
    "rank_0": (bad_yaml("compute:", "method: {rank: 0}\ncompute:"), "bad_value", ["method.rank", "0"]),
    "missing_data": (bad_yaml("train.jsonl", "nothing.jsonl"), "missing_file", ["nothing.jsonl"]),
    "unset_variable": (bad_yaml("cats.txt", '"${FTRAY_NOWHERE}/cats.txt"'), "unset_variable", ["FTRAY_NOWHERE"]),
    "empty_dataset": (bad_rows(""), "empty_dataset", ["train"]),
    "not_json": (bad_rows('{"question": "a", "colour": "b"}\nnot json\n'), "not_json", ["train.jsonl"]),
    "missing_column": (bad_yaml('train.jsonl, prompt: "{question}"', 'train.jsonl, prompt: "{ask}"'), "missing_column",
                       ["ask", "question"]),
    "mixed_formats": (bad_rows(MIXED), "mixed_formats", ["train.jsonl"]),
    "missing_model": (bad_yaml("model: base", "model: ./nowhere"), "missing_model", ["nowhere"]),
    "no_chat_template": (without_template, "no_chat_template", ["template"]),
    "empty_split": (bad_yaml("data:\n", "data:\n  validation: 0.0001\n"), "empty_split", ["0.0001"]),
    "too_many_workers": (bad_yaml("workers: 0", "workers: 999"), "too_few_resources", ["999", "compute.workers"]),
    "missing_job": (lambda folder: (folder / "job.yaml").unlink(), "missing_file", ["job.yaml"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_starts_nothing_and_says_what_to_change(case: str, job_folder: Path, ftray: Command) -> None:
    change, kind, said = BAD[case]
    change(job_folder)
    if case == "mixed_formats":
        bad_yaml(', prompt: "{question}", completion: "{colour}"}\n  test', "}\n  test")(job_folder)
    answer = ftray("train", "job.yaml", "--json")
    assert answer.exit_code == 2, answer.stderr
    error = answer.document
    assert error["schema"] == "ftray/error/1"
    assert error["kind"] == kind
    assert error["hint"]
    assert error["given"] is not None or error["allowed"] is not None
    assert all(word in answer.stderr for word in said), answer.stderr
    assert "Traceback" not in answer.stderr
    assert len(answer.stderr.splitlines()) < 25
    assert not (job_folder / "runs").exists()
    assert "ray" not in sys.modules or case != "too_many_workers" or not sys.modules["ray"].is_initialized()


def test_a_bad_row_is_named_by_file_and_line(job_folder: Path, ftray: Command) -> None:
    BAD["not_json"][0](job_folder)
    error = ftray("train", "job.yaml", "--json").document
    assert error["file"].endswith("train.jsonl")
    assert error["line"] == 2


def test_an_unknown_key_is_named_by_file_and_line(job_folder: Path, ftray: Command) -> None:
    BAD["unknown_key"][0](job_folder)
    answer = ftray("train", "job.yaml", "--json")
    assert answer.document["line"] == 7
    assert "job.yaml:7 (train.lerning_rate)" in answer.stderr


def test_a_storage_that_cannot_be_made_is_bad_input(job_folder: Path, ftray: Command) -> None:
    (job_folder / "runs").write_text("a file stands where the storage should go")
    answer = ftray("train", "job.yaml", "--json")
    assert answer.exit_code == 2
    assert answer.document["kind"] == "storage"
    assert "--storage" in answer.document["hint"]


def test_a_read_only_storage_is_bad_input(job_folder: Path, ftray: Command) -> None:
    answer = ftray("train", "job.yaml", "--storage", "/sys/ftray-runs", "--json")
    assert answer.exit_code == 2
    assert answer.document["kind"] == "storage"
    assert "/sys/ftray-runs" in answer.document["message"]


def test_the_checkpoints_of_another_job_are_left_alone(job_folder: Path, ftray: Command) -> None:
    assert ftray("train", "job.yaml", "--set", "train.max_steps=1", "--quiet").exit_code == 0
    (run,) = (job_folder / "runs").glob("boxes-*")
    (run / "result.json").unlink()
    (manifest,) = run.glob("checkpoints/*/manifest.json")
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**record, "run_id": digest_of("another job")}))
    before = sorted(path.name for path in run.glob("checkpoints/*"))
    answer = ftray("train", "job.yaml", "--set", "train.max_steps=1", "--json")
    assert answer.exit_code == 2
    assert answer.document["kind"] == "foreign_checkpoint"
    assert sorted(path.name for path in run.glob("checkpoints/*")) == before


def test_a_run_that_is_worked_on_is_locked(job_folder: Path, ftray: Command) -> None:
    from ftray.artifacts import run_lock
    from ftray.job import load_job, run_directory, run_id_of

    loaded = load_job(job_folder / "job.yaml")
    run = run_directory(loaded, run_id_of(loaded))
    run.create()
    with run_lock(run.root / ".driver.lock"):
        answer = ftray("train", "job.yaml", "--json")
    assert answer.exit_code == 2
    assert answer.document["kind"] == "run_locked"
    assert f"process {os.getpid()}" in answer.document["message"]


def test_check_says_what_would_happen_and_makes_nothing(job_folder: Path, ftray: Command) -> None:
    answer = ftray("check", "job.yaml", "--json")
    assert answer.exit_code == 0, answer.stderr
    assert answer.document["schema"] == "ftray/check/1"
    assert not (job_folder / "runs").exists()
    assert "steps" in ftray("check", "job.yaml").stdout
