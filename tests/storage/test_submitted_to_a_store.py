"""Jobs submitted to a cluster whose storage is a store: what travels is put there, and found there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_world import KEYS, Store, names, on_machine
from submit_world import LiveRay, make_job, running_ray

from ftray.job import load_job
from ftray.quickstart.pretrain import tiny_base
from ftray.storage.place import Place
from ftray.submit.arrival import settle
from ftray.submit.parcel import Reach, pack
from ftray.submit.request import Request
from ftray.submit.staging import JOB_FILE, stage
from ftray.submit.submit import entrypoint, metadata
from ftray.work import prepare_data


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_base(folder, seed=0)
    return folder


def request_of(job: Path, url: str) -> Request:
    loaded = load_job(job, storage=url)
    return Request(loaded=loaded, kind="train", reach=Reach(storage=None))


def test_the_command_names_the_store(url: str, tmp_path: Path, base: Path) -> None:
    request = request_of(make_job(tmp_path / "job", base), url)
    identity = request.identity()
    assert f"--storage {url} " in entrypoint(request, identity, python="python")
    kept = metadata(request, identity)
    assert kept["storage"] == url
    assert kept["path"] == f"{url}/boxes-{identity[:12]}"
    assert request.finished_record(identity) is None
    assert pack(request.loaded, request.reach).job.storage == url


def test_what_travelled_is_in_the_store_and_fetched_where_it_is_needed(url: str, tmp_path: Path, base: Path) -> None:
    request = request_of(make_job(tmp_path / "job", base), url)
    stage(pack(request.loaded, request.reach), tmp_path / "arrived")
    kept = settle(tmp_path / "arrived" / JOB_FILE)
    place = Place(url)
    shipped = {name for name in names(url) if name.startswith("shipped/")}
    start = place.name(kept.parent)
    assert shipped >= {f"{start}/{kept.name}", f"{start}/data/train.jsonl", f"{start}/model/base/model.safetensors"}
    assert settle(tmp_path / "arrived" / JOB_FILE) == kept
    loaded = load_job(kept, storage=url)
    assert Request(loaded=loaded, kind="train", reach=Reach(storage=None)).identity() == request.identity()
    # The node of a worker has the same path and nothing there.
    shutil.rmtree(kept.parent)
    assert len(prepare_data(loaded, audits=False).train) > 0
    assert kept.is_file()


@pytest.fixture(scope="module")
def cluster(store: Store) -> Iterator[LiveRay]:
    with running_ray() as ray:
        yield ray


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_on_a_cluster_with_secret_keys(
    cluster: LiveRay, store: Store, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, job = store.new_url(), make_job(tmp_path / "job", base)
    secrets = [word for name in KEYS for word in ("--secret", name)]
    words = ["submit", str(job), "--storage", url, "--env", "AWS_ENDPOINT_URL", "--wait", "--json", *secrets]
    with on_machine(tmp_path / "here"):
        words += ["--env", f"FTRAY_CACHE={tmp_path / 'there'}"]
        answer = cluster.ftray(*words)
        assert answer.exit_code == 0, answer.stderr
        assert answer.document["ended"] == "succeeded"
        assert answer.document["result"]["status"] == "completed"
        name = answer.document["path"].rpartition("/")[2]
        assert answer.document["path"] == f"{url}/{name}"
        assert f"{name}/result.json" in names(url)
        again = cluster.ftray(*words)
        assert (again.document["state"], again.document["result"]["reused"]) == ("finished", True)
        status = cluster.ftray("status", answer.document["submission_id"], "--json")
        assert (status.document["step"], status.document["status"]) == (4, "completed")
        assert status.document["path"] == f"{url}/{name}"
        shown = json.dumps(status.document) + cluster.get("/api/jobs/")
        assert not [key for key in KEYS.values() if key in shown]
    assert (tmp_path / "there").is_dir()
