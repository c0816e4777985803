"""Replay from the job file to the records: mixed in after the split, counted, the same rows everywhere, refused."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from ftray.artifacts import RunDirectory, read_json, read_lines
from ftray.check import check_job, render_check
from ftray.cli import app
from ftray.data.conversations import examples_digest
from ftray.errors import InputError
from ftray.finetune import finetune
from ftray.job import LoadedJob, load_job, run_id_of
from ftray.prepare import Datasets
from ftray.quickstart.pretrain import tiny_base
from ftray.reevaluation import own_questions
from ftray.subject import subject_of_run
from ftray.work import prepare_data

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FROM_FILE = 'data.replay={"path": "general.txt", "fraction": 0.25}'
SAMPLED = 'data.replay={"sample_base": 20, "fraction": 0.25}'
RECIPE = ("train.max_steps=4", "train.batch_size=8", "data.max_length=64", "tracking=[]")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a job with general rows beside the task's."""
    place = tmp_path_factory.mktemp("replay")
    tiny_base(place / "model", seed=0)
    write_rows(place / "train.jsonl", range(120))
    write_rows(place / "test.jsonl", range(1000, 1016))
    (place / "stories.txt").write_text("Once there was a fox.\nIt ran away.\n")
    (place / "general.txt").write_text("".join(f"The cat number {n} sat down.\n" for n in range(60)))
    job = {
        "name": "rehearsed",
        "model": "model",
        "data": {"train": {"path": "train.jsonl"}, "validation": 0.1, "test": {"path": "test.jsonl"}},
        "evaluate": {"task": {"max_new_tokens": 4}, "general": [{"name": "stories", "path": "stories.txt"}]},
        "compute": {"workers": 0},
        "storage": "runs",
    }
    (place / "job.yaml").write_text(yaml.safe_dump(job))
    return place


@pytest.fixture
def folder(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return Path(shutil.copytree(world, tmp_path / "job"))


def write_rows(path: Path, numbers: range) -> None:
    rows = [{"prompt": f"number {n}?", "completion": ("odd", "even")[n % 2]} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(folder: Path, *sets: str, **how: Any) -> LoadedJob:
    return load_job(folder / "job.yaml", sets=sets, **how)


def digests(datasets: Datasets, dataset: str) -> Counter[str]:
    return Counter(row.digest for row in datasets.train if row.dataset == dataset)


def run(loaded: LoadedJob) -> dict[str, Any]:
    return finetune(loaded, display=lambda line: None, on_plan=lambda prepared: None)


# Rows


def test_replay_joins_after_the_split_and_leaves_the_task_alone(folder: Path) -> None:
    plain, mixed = prepare_data(load(folder)), prepare_data(load(folder, FROM_FILE))
    assert examples_digest(plain.validation) == examples_digest(mixed.validation)
    assert digests(plain, "train") == digests(mixed, "train")
    assert mixed.num_task_rows == len(plain.train)
    assert digests(mixed, "replay").total() == round(len(plain.train) / 3)
    assert plain.audit.checks == mixed.audit.checks
    assert mixed.digests.keys() == {*plain.digests, "replay"}


def test_the_order_of_the_file_does_not_matter(folder: Path) -> None:
    before = digests(prepare_data(load(folder, FROM_FILE)), "replay")
    lines = (folder / "general.txt").read_text().splitlines()
    (folder / "general.txt").write_text("\n".join(reversed(lines)) + "\n")
    assert digests(prepare_data(load(folder, FROM_FILE)), "replay") == before


def test_a_smoke_run_rehearses_a_tenth(folder: Path) -> None:
    whole, smoke = prepare_data(load(folder, FROM_FILE)), prepare_data(load(folder, FROM_FILE, smoke=True))
    assert smoke.replay is not None
    assert smoke.replay.available == 6
    assert len(smoke.train) <= len(whole.train) / 9
    assert abs(smoke.replay.share - 0.25) < 0.05


def test_conversations_and_columns_can_be_rehearsed(folder: Path) -> None:
    (folder / "general.jsonl").write_text(
        "".join(json.dumps({"q": f"question {n}", "a": "answer", "kind": n % 2}) + "\n" for n in range(20))
    )
    replay = {
        "path": "general.jsonl", "fraction": 0.1, "prompt": "{q}", "completion": "{a}", "system": "Be brief.",
        "where": {"kind": [1]}, "limit": 5,
    }  # fmt: skip
    found = prepare_data(load(folder, f"data.replay={json.dumps(replay)}")).replay
    assert found is not None
    assert (found.available, found.distinct) == (5, 5)
    assert all(0 < sum(row.is_label) < len(row.tokens) - 4 for row in found.rows)


# Check


def test_a_check_counts_what_would_be_sampled_and_loads_no_model(folder: Path) -> None:
    record = check_job(load(folder, SAMPLED))
    assert not (folder / "runs").exists()
    task_rows = record["rows"]["train"]
    assert record["rows"]["replay"] == round(task_rows / 3)
    assert record["plan"]["data"]["train_rows"] == task_rows + record["rows"]["replay"]
    replay = record["replay"]
    assert (replay["is_sampled"], replay["available"], replay["distinct"]) == (False, 20, 20)
    assert replay["tokens"] == 256 * replay["rows"]
    assert record["tokens"]["longest"] == 256
    out = io.StringIO()
    render_check(record, Console(file=out, width=120))
    assert "20 texts sampled from the base: 2" in out.getvalue()
    assert "sampled when the run starts" in out.getvalue()


def test_the_command_line_shows_replay(folder: Path) -> None:
    words = ["check", str(folder / "job.yaml"), "--set", FROM_FILE]
    text = CliRunner().invoke(app, words).stdout
    record = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    count = record["rows"]["replay"]
    assert count == record["replay"]["rows"] == round(record["rows"]["train"] / 3)
    assert f"{count} rows ({count} distinct of 60)" in text
    assert len(text.splitlines()) <= 24


# Identity


def test_what_is_rehearsed_is_part_of_the_run(folder: Path) -> None:
    settings = [
        (), (FROM_FILE,), (FROM_FILE, "data.replay.fraction=0.5"), (SAMPLED,), (SAMPLED, "data.replay.sample_base=21"),
        ("data.replay=null",),
    ]  # fmt: skip
    ids = [run_id_of(load(folder, *one)) for one in settings]
    assert ids[0] == ids[-1]
    assert len(set(ids)) == len(ids) - 1
    (folder / "renamed.txt").write_bytes((folder / "general.txt").read_bytes())
    assert run_id_of(load(folder, FROM_FILE, "data.replay.path=renamed.txt")) == ids[1]
    (folder / "renamed.txt").write_text("Something else.\n")
    assert run_id_of(load(folder, FROM_FILE, "data.replay.path=renamed.txt")) not in ids


def test_a_path_expands_variables_and_is_relative_to_the_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENERAL", "general")
    loaded = load(folder, 'data.replay={"path": "./${GENERAL}.txt", "fraction": 0.25}')
    assert loaded.job.data.replay is not None
    assert loaded.job.data.replay.path == str(folder / "general.txt")


# Refusals


@pytest.mark.parametrize(
    ("replay", "kind"),
    [
        ({"fraction": 0.2}, "bad_value"),
        ({"fraction": 0.2, "path": "general.txt", "sample_base": 3}, "bad_value"),
        ({"fraction": 0.2, "sample_base": 3, "limit": 3}, "no_effect"),
        ({"fraction": 0.0, "sample_base": 3}, "bad_value"),
        ({"fraction": 1.0, "sample_base": 3}, "bad_value"),
        ({"fraction": 0.2, "sample_base": 0}, "bad_value"),
        ({"sample_base": 3}, "missing_key"),
        ({"fraction": 0.2, "sample_base": 3, "weight": 2}, "unknown_key"),
        ({"fraction": 0.2, "path": "nothing.txt"}, "missing_file"),
        ({"fraction": 0.2, "path": "empty.txt"}, "empty_dataset"),
        ({"fraction": 0.2, "path": "stories.txt"}, "probe_is_training"),
        ({"fraction": 0.2, "path": "copy.txt"}, "probe_is_training"),
    ],
)
def test_bad_settings_are_refused_with_one_message(folder: Path, replay: dict[str, Any], kind: str) -> None:
    (folder / "empty.txt").write_text("")
    shutil.copy(folder / "stories.txt", folder / "copy.txt")
    with pytest.raises(InputError) as caught:
        check_job(load(folder, f"data.replay={json.dumps(replay)}"))
    assert caught.value.kind == kind
    assert caught.value.hint
    assert "replay" in str(caught.value.to_record()) or "nothing.txt" in caught.value.message


def test_a_probe_that_is_trained_on_is_refused(folder: Path) -> None:
    both = 'data.train=[{"path": "train.jsonl"}, {"path": "stories.txt"}]'
    with pytest.raises(InputError, match=r"'stories' reads the same file as data\.train\.1") as caught:
        check_job(load(folder, both))
    assert caught.value.kind == "probe_is_training"


def test_a_file_may_hold_probe_and_training_rows_that_a_column_tells_apart(folder: Path) -> None:
    rows = [{"text": f"Story {n} of a fox.", "part": "probe" if n % 3 else "train"} for n in range(30)]
    (folder / "parts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    replay = {"path": "parts.jsonl", "format": "text", "fraction": 0.2, "where": {"part": ["train"]}}
    probe = ("evaluate.general.0.path=parts.jsonl", "evaluate.general.0.format=text")
    apart = (*probe, f"data.replay={json.dumps(replay)}")
    with pytest.raises(InputError):
        check_job(load(folder, *apart))
    assert check_job(load(folder, *apart, 'evaluate.general.0.where={"part": ["probe"]}'))["rows"]["replay"]


def test_replay_rows_that_an_evaluation_set_has_fail_the_gate(folder: Path) -> None:
    (folder / "general.txt").write_text("It ran away.\nOther words.\n")
    with pytest.raises(InputError, match="overlap_exact") as caught:
        check_job(load(folder, FROM_FILE))
    assert caught.value.kind == "audit_failed"
    assert "data.replay" in caught.value.hint


def test_a_probe_cannot_be_called_replay(folder: Path) -> None:
    with pytest.raises(InputError, match="'replay' is taken"):
        check_job(load(folder, "evaluate.general.0.name=replay"))


# Runs


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a run that samples from its base."""
    return run(load(world, SAMPLED, *RECIPE, storage=str(tmp_path_factory.mktemp("trained"))))


def test_a_run_records_what_it_rehearsed(trained: dict[str, Any]) -> None:
    root = Path(trained["path"])
    assert trained["status"] == "completed"
    assert trained["replay"]["is_sampled"]
    assert trained["replay"] == read_json(root / "job.json")["replay"]
    assert trained["data_digests"]["replay"]
    assert read_json(root / "plan.json")["data"]["train_rows"] > trained["replay"]["rows"]
    assert len(list((root.parent / "replay").glob("*.jsonl"))) == 1
    assert "20 texts sampled from the base" in (root / "report.html").read_text()


def test_the_tasks_own_loss_is_logged_beside_the_loss_of_all(trained: dict[str, Any]) -> None:
    steps = [line for line in read_lines(Path(trained["path"]) / "metrics.jsonl") if line["kind"] == "step"]
    assert all(line["train/task_loss"] != line["train/loss"] for line in steps)


def test_workers_read_the_texts_that_the_run_sampled(trained: dict[str, Any], world: Path) -> None:
    loaded = load(world, SAMPLED, *RECIPE, storage=str(Path(trained["path"]).parent))
    one, other = prepare_data(loaded), prepare_data(loaded)
    assert [row.digest for row in one.train] == [row.digest for row in other.train]
    assert one.digests == trained["data_digests"]
    with pytest.raises(InputError, match="are not there"):
        prepare_data(load(world, SAMPLED, *RECIPE, storage=str(world / "nowhere")))


def test_a_run_can_be_evaluated_again_without_the_texts(trained: dict[str, Any], tmp_path: Path) -> None:
    kept = Path(shutil.copytree(Path(trained["path"]), tmp_path / "kept"))
    assert own_questions(subject_of_run(RunDirectory(kept))).final.tasks
    record = read_json(kept / "job.json")
    record["job"]["storage"] = str(tmp_path)
    (kept / "job.json").write_text(json.dumps(record))
    assert own_questions(subject_of_run(RunDirectory(kept))).final.tasks


def test_a_run_goes_on_with_the_texts_it_began_with(folder: Path) -> None:
    loaded = load(folder, SAMPLED, *RECIPE)
    result = run(loaded)
    root = Path(result["path"])
    weights = (root / "adapter" / "adapter_model.safetensors").read_bytes()
    (file,) = (folder / "runs" / "replay").glob("*.jsonl")
    shutil.rmtree(sorted(root.glob("checkpoints/step-*"))[-1])
    (root / "result.json").unlink()
    file.unlink()
    assert run(loaded)["data_digests"] == result["data_digests"]
    assert (root / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    (root / "result.json").unlink()
    file.write_text("".join(file.read_text().splitlines(keepends=True)[::-1]))
    with pytest.raises(InputError, match="not those that this run began with") as caught:
        run(loaded)
    assert caught.value.kind == "changed_data"


@pytest.mark.slow
@pytest.mark.ray
def test_every_worker_rehearses_the_texts_that_the_driver_sampled(folder: Path) -> None:
    """Two workers whose rows differed would be refused, and their losses would not be those of one process."""
    alone = run(load(folder, SAMPLED, *RECIPE))
    sets = [word for one in (SAMPLED, *RECIPE, "compute.workers=2") for word in ("--set", one)]
    words = ["train", str(folder / "job.yaml"), *sets, "--storage", str(folder / "two"), "--json", "--quiet"]
    done = subprocess.run([sys.executable, "-m", "ftray", *words], capture_output=True, text=True, check=True)
    shared = json.loads(done.stdout)
    assert shared["status"] == "completed", shared["failure"]
    assert shared["data_digests"]["replay"] == alone["data_digests"]["replay"]
    losses = [
        [line["train/task_loss"] for line in read_lines(Path(one["path"]) / "metrics.jsonl") if line["kind"] == "step"]
        for one in (alone, shared)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
