"""A campaign with a trainer for each trial, on one machine, whose storage is a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store_world import Store, names, on_machine
from sweep_world import write_job, write_world

from ftray.campaign import Ledger, SweepDirectory, TrialResult
from ftray.errors import InputError
from ftray.job import load_job
from ftray.storage.place import Place
from ftray.sweep.run import TUNE_SETTINGS, require_one_node, sweep

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def cluster(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    settings = {**TUNE_SETTINGS, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "RAY_AUTH_MODE": "disabled"}
    with pytest.MonkeyPatch.context() as patch, on_machine(tmp_path_factory.mktemp("machine")):
        for name, value in settings.items():
            patch.setenv(name, value)
        node = {"num_cpus": 2, "object_store_memory": 150 * 2**20}
        started = Cluster(initialize_head=True, connect=True, head_node_args=node)
        yield started
        import ray

        ray.shutdown()
        started.shutdown()


class Watch:
    """Watches a campaign."""

    def say(self, text: str) -> None: ...
    def remember(self, trial: Any) -> None: ...

    def on_plan(self, plan: dict[str, Any]) -> None: ...
    def on_result(self, trial_id: str, config: Any, result: Any) -> None: ...
    def on_end(self, trial: TrialResult) -> None: ...


def test_a_campaign_of_trainers_is_in_the_store(store: Store, tmp_path: Path, cluster: Any) -> None:
    write_world(tmp_path)
    url = store.new_url()
    space = {"space": {"rank": [2, 4]}, "workers": 1, "scheduler": "none", "mode": "trainers"}
    file = write_job(tmp_path, "sweep.yaml", sweep=space, storage=url, compute={"workers": 1})
    record = sweep(load_job(file), display=Watch())
    assert (record["status"], record["mode"]) == ("completed", "trainers")
    directory = SweepDirectory(Path(record["path"]))
    for result in Ledger(directory.ledger).results():
        assert result.best is not None
        start = f"{directory.root.name}/trials/{result.trial_id}"
        assert names(url) >= {
            f"{start}/trial.json", f"{start}/metrics.jsonl", f"{start}/adapter/adapter_model.safetensors",
            f"{start}/checkpoints/step-{result.best.step:08d}/manifest.json",
        }  # fmt: skip
    with on_machine(tmp_path / "other"):
        assert sweep(load_job(file), display=Watch())["reused"] is True
    # Trials on several nodes would be followed through a folder that these do not share.
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    with pytest.raises(InputError, match="share no folder") as refused:
        require_one_node(Place(url))
    assert refused.value.path == "storage"
    require_one_node(Place(str(tmp_path)))
