from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from ftray.errors import InputError
from ftray.job import LoadedJob, evaluate_digest, identity, load_job
from ftray.submit.arrival import settle
from ftray.submit.parcel import MOST_BYTES, ParcelFile, Reach, own_modules, pack, parse_mapping, require_small
from ftray.submit.staging import JOB_FILE, MANIFEST, stage, staged

ROWS = '{"question": "What?", "colour": "red"}\n'


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder


def rewritten(job: Path, **changes: Any) -> Path:
    content = yaml.safe_load(job.read_text()) | changes
    job.write_text(yaml.safe_dump(content))
    return job


def full_job(job: Path) -> Path:
    """Return a job that names every kind of file there is."""
    folder = job.parent
    (folder / "other").mkdir()
    (folder / "other" / "train.jsonl").write_text(ROWS * 3)
    (folder / "cats.txt").write_text("The cat sat down.\n")
    (folder / "chat.jinja").write_text("{{ messages }}")
    (folder / "grading.py").write_text("def close(prediction, expected):\n    return 1.0\n")
    (folder / "keys.json").write_text("{}")
    (folder / "asks").mkdir()
    (folder / "asks" / "rows.jsonl").write_text(ROWS)
    (folder / "asks" / "task.yaml").write_text("task: t\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n")
    columns = {"prompt": "{question}", "completion": "{colour}"}
    data = {
        "train": [{"path": "train.jsonl", **columns}, {"path": "other/train.jsonl", **columns}],
        "test": {"path": "test.jsonl", **columns},
        "replay": {"path": "cats.txt", "fraction": 0.2},
        "template": "chat.jinja",
    }
    probes = [{"name": "cats", "path": "cats.txt"}, {"name": "asked", "lm_eval": "asks/task.yaml"}]
    evaluate = {"task": {"metric": "grading:close"}, "general": probes}
    return rewritten(
        job, data=data, evaluate=evaluate, preset="support", sweep={"trials": 3}, serve={"keys_file": "keys.json"}
    )


def settled(loaded: LoadedJob, reach: Reach, tmp_path: Path) -> LoadedJob:
    """Return the job as the cluster reads it."""
    stage(pack(loaded, reach), tmp_path / "staged")
    return load_job(settle(tmp_path / "staged" / JOB_FILE), storage=str(reach.storage))


def test_what_arrives_is_the_same_run(job: Path, storage: Path, tmp_path: Path) -> None:
    loaded = load_job(full_job(job), storage=str(storage))
    there = settled(loaded, Reach(storage=storage), tmp_path)
    assert identity(there) == identity(loaded)
    assert evaluate_digest(there) == evaluate_digest(loaded), "a finished run would be judged again"
    assert there.job.sweep == loaded.job.sweep
    assert there.base.parent == storage / "shipped"
    assert Path(there.job.model).name == "base"
    assert (there.base / "grading.py").is_file()
    assert "keys" not in (tmp_path / "staged" / JOB_FILE).read_text()
    named = [source.path for source in there.job.data.train] + [there.job.data.template, there.job.model]  # type: ignore[union-attr]
    assert all(Path(path).is_relative_to(storage / "shipped") for path in named)
    (task,) = there.job.evaluate.lm_eval_probes
    assert (Path(task.lm_eval).parent / "rows.jsonl").read_text() == ROWS


def test_the_same_files_arrive_once(job: Path, storage: Path, tmp_path: Path) -> None:
    loaded = load_job(job, storage=str(storage))
    first = settled(loaded, Reach(storage=storage), tmp_path / "1")
    other = load_job(job, sets=["compute.workers=2"], storage=str(storage))
    second = settled(other, Reach(storage=storage), tmp_path / "2")
    assert first.base == second.base
    assert [path.name for path in (storage / "shipped").iterdir()] == [first.base.name]
    assert len(list(first.base.glob("job-*.yaml"))) == 2


def test_a_file_that_changed_on_its_way_is_refused(job: Path, storage: Path, tmp_path: Path) -> None:
    stage(pack(load_job(job, storage=str(storage)), Reach(storage=storage)), tmp_path / "staged")
    moved = tmp_path / "staged" / "data" / "train.jsonl"
    moved.unlink()
    moved.write_text(ROWS)
    with pytest.raises(Exception, match=r"train\.jsonl is not what was submitted"):
        settle(tmp_path / "staged" / JOB_FILE)


def test_the_job_file_says_what_was_asked_and_no_more(job: Path, storage: Path, tmp_path: Path) -> None:
    """A setting that is given and has no effect is refused: defaults must not be given."""
    stage(pack(load_job(job, storage=str(storage)), Reach(storage=storage)), tmp_path / "staged")
    asked = json.loads((tmp_path / "staged" / JOB_FILE).read_text())
    assert set(asked) == {"name", "model", "storage", "data", "train", "evaluate", "compute"}
    assert asked["compute"] == {"workers": 0}
    assert asked["model"] == "model/base"
    assert asked["data"]["train"]["path"] == "data/train.jsonl"
    manifest = json.loads((tmp_path / "staged" / MANIFEST).read_text())
    assert {"data/train.jsonl", "data/test.jsonl", "model/base/config.json"} <= set(manifest["files"])


def test_ftray_itself_travels(job: Path, storage: Path) -> None:
    parcel = pack(load_job(job, storage=str(storage)), Reach(storage=storage))
    with staged(parcel, ships_ftray=True) as folders:
        assert folders.module is not None
        assert (folders.module / "report" / "run.css").is_file()
        assert (folders.module / "cli" / "__init__.py").is_file()
        assert not list(folders.module.rglob("__pycache__"))
    assert not folders.working_dir.exists()
    with staged(parcel, ships_ftray=False) as folders:
        assert folders.module is None


def test_what_lies_in_the_storage_stays_there(job: Path, storage: Path) -> None:
    (storage / "data").mkdir()
    (job.parent / "train.jsonl").rename(storage / "data" / "train.jsonl")
    text = job.read_text().replace("path: train.jsonl", f"path: {storage}/data/train.jsonl")
    job.write_text(text)
    parcel = pack(load_job(job, storage=str(storage)), Reach(storage=storage))
    assert parcel.job.data.train.path == str(storage / "data" / "train.jsonl")  # type: ignore[union-attr]
    assert "train.jsonl" not in {file.source.name for file in parcel.files}


def test_what_the_cluster_has_elsewhere_is_named_there(job: Path, storage: Path, base: Path) -> None:
    mapped = [parse_mapping(f"{base.parent}=/models"), parse_mapping(str(job.parent))]
    parcel = pack(load_job(job, storage=str(storage)), Reach(storage=storage, mapped=mapped))
    assert parcel.job.model == "/models/base"
    assert parcel.job.data.train.path == str(job.parent.resolve() / "train.jsonl")  # type: ignore[union-attr]
    assert parcel.files == []


@pytest.mark.parametrize("text", ["/nowhere/at/all", "{here}=relative/place", "="])
def test_a_mapping_that_says_nothing_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        parse_mapping(text.replace("{here}", str(tmp_path)))
    assert caught.value.kind == "bad_value"


def test_too_much_is_refused_with_the_largest_files_and_the_way_out() -> None:
    files = [
        ParcelFile(source=Path(f"/d/{name}"), target=PurePosixPath(name), num_bytes=size)
        for name, size in (("small", 10), ("large", MOST_BYTES))
    ]
    require_small(files[:1])
    with pytest.raises(InputError) as caught:
        require_small(files)
    assert caught.value.kind == "too_large"
    assert caught.value.given[0] == "/d/large (256.0 MiB)"
    assert "--on-cluster" in caught.value.hint


def test_a_path_that_is_not_here_is_refused(job: Path, storage: Path) -> None:
    text = job.read_text().replace("path: test.jsonl", "path: /mnt/nowhere/test.jsonl")
    job.write_text(text)
    with pytest.raises(InputError) as caught:
        pack(load_job(job, storage=str(storage)), Reach(storage=storage))
    assert (caught.value.kind, caught.value.path) == ("unreachable", "data.test.path")


def test_a_task_that_includes_others_does_not_travel(job: Path, storage: Path) -> None:
    (job.parent / "task.yaml").write_text("include: other.yaml\n")
    rewritten(job, evaluate={"general": [{"name": "asked", "lm_eval": "task.yaml"}]})
    with pytest.raises(InputError, match="includes other files"):
        pack(load_job(job, storage=str(storage)), Reach(storage=storage))


def test_names_of_the_hub_stay_names(job: Path, storage: Path) -> None:
    (job.parent / "base").unlink()
    rewritten(job, model="someone/base")
    parcel = pack(load_job(job, storage=str(storage)), Reach(storage=storage))
    assert parcel.job.model == "someone/base"


def test_own_modules_are_those_of_metrics_and_searchers(job: Path) -> None:
    changes = {"evaluate": {"task": {"metric": "grading.close:score"}}, "sweep": {"searcher": "walks:Random"}}
    loaded = load_job(rewritten(job, **changes))
    assert own_modules(loaded.job) == {"grading.close", "walks"}
