"""A job is resolved with nothing left implicit, and its run id is a digest of what changes its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ftray.job import LoadedJob, evaluate_digest, identity, load_job, run_directory, run_id_of
from ftray.model.base import identify

JOB = """\
name: tiny
model: base
data:
  train: {path: train.jsonl, prompt: "{q}", completion: "{a}"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the smallest job; the model is never opened, so its files hold nothing."""
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)
    made = tmp_path / "job"
    (made / "base").mkdir(parents=True)
    (made / "base" / "config.json").write_text("{}")
    (made / "base" / "model.safetensors").write_bytes(b"weights")
    (made / "job.yaml").write_text(JOB)
    for name in ("train", "other"):
        (made / f"{name}.jsonl").write_text(json.dumps({"q": name, "a": "b"}) + "\n")
    return made


def load(folder: Path, *sets: str, **how: object) -> LoadedJob:
    return load_job(folder / "job.yaml", sets=sets, **how)  # type: ignore[arg-type]


def run_id(folder: Path, *sets: str, **how: object) -> str:
    identify.cache_clear()
    return run_id_of(load(folder, *sets, **how))


# Resolution


def test_the_smallest_job_has_the_contracts_defaults(folder: Path) -> None:
    job = load(folder).job
    assert (job.seed, job.method.kind, job.method.rank, job.method.alpha) == (0, "lora", 16, 32)
    assert (job.train.learning_rate, job.train.epochs, job.train.batch_size) == (1e-4, 2, 16)
    assert (job.train.schedule, job.train.warmup, job.train.max_grad_norm) == ("cosine", 0.03, 1)
    assert (job.compute.workers, job.compute.max_failures, job.tracking) == (1, 3, ["tensorboard"])
    assert (job.data.validation, job.data.test, job.evaluate.task.metric) == (0.1, None, "exact_match")
    assert job.train.early_stopping is not None


def test_full_fine_tuning_has_a_learning_rate_of_its_own(folder: Path) -> None:
    assert load(folder, "method.kind=full").job.train.learning_rate == 2e-5
    assert load(folder, "method.kind=full", "train.learning_rate=3e-4").job.train.learning_rate == 3e-4


def test_a_preset_fills_in_what_the_job_leaves_open(folder: Path) -> None:
    job = load(folder, "preset=code", "method.rank=4").job
    assert (job.method.rank, job.method.alpha, job.train.epochs) == (4, 128, 3)


def test_a_presets_ranks_and_rates_are_not_for_full_fine_tuning(folder: Path) -> None:
    job = load(folder, "preset=code", "method.kind=full").job
    assert (job.train.learning_rate, job.train.epochs) == (2e-5, 3)
    assert job.method.model_fields_set == {"kind"}


def test_paths_are_relative_to_the_job_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_job(Path("job/job.yaml"), sets=["storage=there"])
    assert loaded.job.model == str(folder / "base")
    assert loaded.storage == folder / "there"
    source = loaded.job.data.train
    assert not isinstance(source, list)
    assert source.path == str(folder / "train.jsonl")


def test_storage_is_taken_from_the_flag_then_the_environment_then_the_job(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(folder).storage == folder / "runs"
    assert load(folder, "storage=/a/b").storage == Path("/a/b")
    monkeypatch.setenv("FTRAY_STORAGE", "env")
    assert load(folder, "storage=/a/b").storage == tmp_path / "env"
    assert load(folder, "storage=/a/b", storage="flag").storage == tmp_path / "flag"
    assert load(folder, storage="./runs").storage == tmp_path / "runs"


def test_a_run_folder_has_the_jobs_name_and_the_start_of_its_id(folder: Path) -> None:
    loaded = load(folder)
    assert run_directory(loaded, "0123456789abcdef" * 4).root == folder / "runs" / "tiny-0123456789ab"


# Identity


def test_a_run_id_is_a_sha256(folder: Path) -> None:
    assert len(run_id(folder)) == 64
    assert int(run_id(folder), 16) >= 0
    assert run_id(folder) == run_id(folder)


@pytest.mark.parametrize(
    "setting",
    [
        "name=other", "storage=/elsewhere", "tracking=[]", "compute.workers=4", "compute.deepspeed.stage=3",
        "compute.max_failures=9", "evaluate.task.metric=token_f1", "evaluate.max_forgetting=0.5",
        "audit.accept=[{check: overlap_exact, reason: known and wanted}]", "train.log_every=1",
        "train.evaluate_every=3", "train.checkpoint_every=3",
    ],
)  # fmt: skip
def test_what_does_not_change_the_weights_does_not_change_the_run(folder: Path, setting: str) -> None:
    assert run_id(folder, setting) == run_id(folder)


@pytest.mark.parametrize(
    "setting",
    [
        "seed=1", "method.rank=8", "method.kind=full", "method.dropout=0.1", "train.learning_rate=2e-4",
        "train.epochs=3", "train.max_steps=7", "train.batch_size=8", "train.warmup=5", "train.label_smoothing=0.1",
        "train.early_stopping=null", "data.validation=0.2", "data.train.path=other.jsonl", "data.loss_on=last_turn",
        "data.max_length=64", "data.train.limit=3", "data.test={path: other.jsonl}", "preset=code",
    ],
)  # fmt: skip
def test_what_changes_the_weights_changes_the_run(folder: Path, setting: str) -> None:
    assert run_id(folder, setting) != run_id(folder)


def test_a_learning_rate_that_is_written_out_is_the_default(folder: Path) -> None:
    assert run_id(folder, "train.learning_rate=1e-4") == run_id(folder)


def test_smoke_and_fresh_runs_are_runs_of_their_own(folder: Path) -> None:
    ids = [
        run_id(folder),
        run_id(folder, smoke=True),
        run_id(folder, attempt_salt="1"),
        run_id(folder, attempt_salt="2"),
    ]
    assert len(set(ids)) == 4


def test_the_same_content_elsewhere_is_the_same_run(folder: Path, tmp_path: Path) -> None:
    before = run_id(folder)
    shutil.move(folder, tmp_path / "moved")
    (tmp_path / "moved" / "train.jsonl").rename(tmp_path / "moved" / "renamed.jsonl")
    assert run_id(tmp_path / "moved", "data.train.path=renamed.jsonl") == before


def test_other_rows_or_weights_are_another_run(folder: Path) -> None:
    before = run_id(folder)
    (folder / "train.jsonl").write_text(json.dumps({"q": "train", "a": "c"}) + "\n")
    changed = run_id(folder)
    (folder / "base" / "model.safetensors").write_bytes(b"Weights")
    assert len({before, changed, run_id(folder)}) == 3


def test_a_template_file_counts_by_its_content(folder: Path) -> None:
    (folder / "chat.jinja").write_text("{{ messages }}")
    (folder / "same.jinja").write_text("{{ messages }}")
    before = run_id(folder, "data.template=chat.jinja")
    assert run_id(folder, "data.template=same.jinja") == before
    (folder / "chat.jinja").write_text("{{ messages }}!")
    assert run_id(folder, "data.template=chat.jinja") != before


def test_every_source_of_a_list_counts(folder: Path) -> None:
    both = "data.train=[{path: train.jsonl}, {path: other.jsonl}]"
    before = run_id(folder, both)
    assert "train.jsonl" not in json.dumps(identity(load(folder, both)))
    (folder / "other.jsonl").write_text(json.dumps({"q": "new", "a": "b"}) + "\n")
    assert run_id(folder, both) != before


def test_a_job_is_judged_by_what_its_probes_hold_wherever_they_lie(folder: Path) -> None:
    (folder / "cats.txt").write_text("The cat sat down.")
    (folder / "same.txt").write_text("The cat sat down.")
    probe = "evaluate.general=[{name: cats, path: %s}]"
    before = evaluate_digest(load(folder, probe % "cats.txt"))
    assert evaluate_digest(load(folder, probe % "same.txt")) == before
    (folder / "cats.txt").write_text("The cat stood up.")
    assert evaluate_digest(load(folder, probe % "cats.txt")) != before
    assert evaluate_digest(load(folder, probe % "same.txt", "evaluate.max_forgetting=0.5")) != before
