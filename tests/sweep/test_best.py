"""Training without a verdict leaves checkpoints; the best that is there becomes a folder that opens as it should."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trial_world import load_world

from ftray.artifacts import RunDirectory, digest_file
from ftray.campaign import TrialDirectory
from ftray.errors import RunError
from ftray.finetune import finetune
from ftray.job import LoadedJob, run_directory, run_id_of
from ftray.preflight import check
from ftray.sweep.best import best_checkpoint, export_best
from ftray.sweep.folders import evaluate_base, evaluate_folders
from ftray.tracking import current_lines
from ftray.work import WorkOrder, build_tasks, work_without_verdict

# PEFT asks transformers by a name that it will drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
RECIPE = {"evaluate_every": 4, "checkpoint_every": 4, "early_stopping": None}
METHODS = {"full": {"kind": "full"}, "lora": {"kind": "lora", "rank": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


def train_trial(loaded: LoadedJob, root: Path) -> tuple[TrialDirectory, dict[str, Any]]:
    """Do in this process what a trial's workers do."""
    plan = check(loaded, run_id="r", run=RunDirectory(root)).plan
    RunDirectory(root).create()
    outcome = work_without_verdict(
        WorkOrder(loaded=loaded, plan=plan, run=root, run_id="r"), told=1, display=lambda line: None
    )
    return TrialDirectory(root), outcome


@pytest.fixture(scope="module", params=METHODS)
def trained(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    method = METHODS[request.param]
    loaded = load_world(folder, method=method, train={**RECIPE, "learning_rate": 1e-2}, compute={"workers": 0})
    trial, outcome = train_trial(loaded, tmp_path_factory.mktemp("trial"))
    return loaded, trial, outcome


def copy_of(trial: TrialDirectory, to: Path) -> TrialDirectory:
    shutil.copytree(trial.root, to, dirs_exist_ok=True)
    return TrialDirectory(to)


def values(trial: TrialDirectory) -> dict[int, float]:
    lines = current_lines(trial.metrics)
    return {line["step"]: line["val/accuracy"] for line in lines if line["kind"] == "evaluation"}


def test_training_without_a_verdict_is_the_training_of_a_run(trained: Any, tmp_path: Path) -> None:
    loaded, trial, outcome = trained
    job = loaded.job.model_copy(update={"storage": str(tmp_path)})
    run = finetune(replace(loaded, job=job), display=lambda line: None, on_plan=lambda prepared: None)
    assert (outcome["steps"], outcome["tokens"]) == (run["steps"], run["tokens"])
    assert outcome["data_digests"] == run["data_digests"]
    (weights,) = [one.name for one in (trial.checkpoints / "step-00000012").glob("*model.safetensors")]
    digests = [
        digest_file(root / "checkpoints" / "step-00000012" / weights) for root in (trial.root, Path(run["path"]))
    ]
    assert digests[0] == digests[1]
    assert not (trial.root / "evaluation.json").exists()
    assert not trial.adapter.exists()


def test_the_best_checkpoint_is_the_one_with_the_best_value_that_exists(trained: Any, tmp_path: Path) -> None:
    _, trial, _ = trained
    mine, known = copy_of(trial, tmp_path), values(trial)
    seen = []
    while (best := best_checkpoint(mine, run_id="r", higher_is_better=True)) is not None:
        selection, chosen = best
        assert (chosen.step, selection.value) == (selection.step, max(known.values()))
        seen.append(selection.step)
        del known[selection.step]
        shutil.rmtree(chosen.folder)
    assert sorted(seen) == [4, 8, 12]


def test_a_damaged_checkpoint_is_an_error_that_names_it(trained: Any, tmp_path: Path) -> None:
    _, trial, _ = trained
    mine = copy_of(trial, tmp_path)
    best = best_checkpoint(mine, run_id="r", higher_is_better=True)
    assert best is not None
    (weights,) = best[1].weight_files
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RunError, match=best[1].folder.name):
        best_checkpoint(mine, run_id="r", higher_is_better=True)


def test_the_exported_folder_answers_as_its_checkpoint_did(trained: Any, tmp_path: Path) -> None:
    loaded, trial, _ = trained
    mine = copy_of(trial, tmp_path)
    selection = export_best(mine, job=loaded.job, run_id="r", higher_is_better=True)
    assert selection is not None
    assert not list(mine.adapter.glob("optimizer*"))
    is_adapter = loaded.job.method.kind == "lora"
    assert (mine.adapter / "adapter_config.json").exists() == is_adapter
    assert (mine.adapter / "tokenizer.json").exists() != is_adapter
    again = export_best(mine, job=loaded.job, run_id="r", higher_is_better=True)
    assert again == selection

    prepared = check(loaded, run_id=run_id_of(loaded), run=run_directory(loaded, run_id_of(loaded)))
    validation, final = build_tasks(loaded.job, prepared.datasets)
    how = {
        "model": loaded.job.model, "precision": "fp32", "are_adapters": is_adapter,
        "tokenization": prepared.datasets.tokenization,
    }  # fmt: skip
    answers = evaluate_folders({"best": mine.adapter}, [validation, *final.tasks], **how)["best"]
    rows = answers[validation.name]
    assert [row.row for row in rows] == [row.row for row in validation.rows]
    assert sum(bool(row.correct) for row in rows) / len(rows) == pytest.approx(selection.value)
    base = evaluate_base([validation], **how)[validation.name]
    assert [row.prediction for row in base] != [row.prediction for row in rows]
