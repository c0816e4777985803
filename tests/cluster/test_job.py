"""The job that the manifests run: valid, the quickstart's, and small enough for the nodes they ask for."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from cluster_files import Manifest, ftray_arguments, manifests

from ftray.job import LoadedJob, load_job
from ftray.quickstart.run import job_text
from ftray.quickstart.task import TaskFiles

STORAGE = Path("/storage/runs")
"""What --storage of every entrypoint says."""


@pytest.fixture(scope="module")
def text() -> str:
    (config,) = manifests("ConfigMap")
    assert list(config.document["data"]) == ["job.yaml"]
    return str(config.document["data"]["job.yaml"])


@pytest.fixture
def loaded(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedJob:
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return load_job(file, storage=str(STORAGE))


def test_the_job_is_a_job_for_training_sweep_and_endpoint(loaded: LoadedJob) -> None:
    assert loaded.storage == STORAGE
    assert loaded.job.sweep is not None
    assert loaded.job.sweep.trials > 1


def test_it_trains_on_what_the_quickstart_leaves(text: str) -> None:
    folder = STORAGE / "quickstart"
    names = {
        "train": "train.jsonl", "test": "test.jsonl", "replay": "replay.jsonl", "probe": "probe.jsonl",
        "stories": "stories.txt",
    }  # fmt: skip
    assert set(names) == {field.name for field in fields(TaskFiles)}
    files = TaskFiles(**{name: folder / "data" / file for name, file in names.items()})
    theirs, ours = yaml.safe_load(job_text(folder / "base", files)), yaml.safe_load(text)
    for section in ("model", "data", "evaluate", "method"):
        assert ours[section] == theirs[section]
    # The same run would only be printed: it has been trained by the quickstart.
    assert ours["train"] != theirs["train"]
    assert ours["sweep"] != theirs["sweep"]


@pytest.mark.parametrize("manifest", manifests("RayJob"), ids=lambda one: one.name)
def test_its_workers_fit_on_the_nodes_that_are_there_at_the_start(manifest: Manifest, loaded: LoadedJob) -> None:
    compute = loaded.job.compute
    assert isinstance(compute.workers, int)
    room = 0
    for group in manifest.cluster["workerGroupSpecs"]:
        cpus = float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        room += group["minReplicas"] * int(cpus / compute.cpus_per_worker)
    assert compute.workers <= room


@pytest.mark.parametrize("manifest", manifests("RayJob"), ids=lambda one: one.name)
def test_the_entrypoint_reads_what_is_mounted(manifest: Manifest) -> None:
    arguments = ftray_arguments(manifest.document["spec"]["entrypoint"].split())
    assert arguments == [manifest.name.removeprefix("ftray-"), "/jobs/job.yaml", "--storage", str(STORAGE)]
    for pod in manifest.pods:
        require_job_mounted(pod["spec"])


def require_job_mounted(pod: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    places = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
    assert places["/jobs"]["configMap"] == {"name": manifests("ConfigMap")[0].name}
    assert "persistentVolumeClaim" in places["/storage"]


@pytest.mark.parametrize("manifest", manifests("RayService"), ids=lambda one: one.name)
def test_the_serve_section_is_reached_and_has_its_keys_and_its_store(manifest: Manifest, loaded: LoadedJob) -> None:
    section = loaded.job.serve
    store = urlsplit(section.store)
    assert store.password is None, "a password does not belong into a ConfigMap"
    assert store.hostname in {one.name for one in manifests("Service")}
    assert section.replicas == sum(group["replicas"] for group in manifest.cluster["workerGroupSpecs"])
    for pod in manifest.pods:
        require_job_mounted(pod["spec"])
        (keys,) = (volume for volume in pod["spec"]["volumes"] if "secret" in volume)
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert section.keys_file == f"{mounts[keys['name']]}/keys.json"
        assert any(variable["name"] == "PGPASSWORD" for variable in pod["spec"]["containers"][0]["env"])
