"""A cluster of a head without CPUs whose autoscaler adds nodes when a job asks for them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from submit_world import Answer, LiveRay, free_port, make_job, running_ray, until

from ftray.artifacts import read_json
from ftray.quickstart.pretrain import tiny_base

pytestmark = [pytest.mark.ray, pytest.mark.slow]
MOST_NODES = 2
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
HEAD = "f" * 51 + "00000"
"""The node id that Ray's provider of nodes on this machine expects of a head."""


def growing(gcs: str) -> dict[str, Any]:
    """Return an autoscaler's configuration: nodes of one CPU, none at first, each a raylet of this machine."""
    return {
        "cluster_name": "growing",
        "max_workers": MOST_NODES,
        "provider": {
            # Ray's wheel lacks the defaults that the provider would have under its own name.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD,
            "launch_multiple": True,
            "gcs_address": gcs,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": MOST_NODES,
            },
        },
        "idle_timeout_minutes": 0.3,
        # What Ray's own providers have as defaults.
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{f"{when}_commands": [] for when in COMMANDS},
        "file_mounts_sync_continuously": False,
        "upscaling_speed": 1.0,
    }


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRay]:
    port = free_port()
    config = tmp_path_factory.mktemp("growing") / "autoscaling.yaml"
    config.write_text(yaml.safe_dump(growing(f"127.0.0.1:{port}")))
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    words = [f"--autoscaling-config={config}"]
    with running_ray(cpus=0, gcs=port, more=words, environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    tiny_base(folder / "base")
    return make_job(folder / "job", folder / "base", compute={"workers": MOST_NODES})


def on_the_cluster(ray: LiveRay, *words: str, **more: str) -> Answer:
    """Run a command that joins the cluster."""
    environment = ray.environment(RAY_ADDRESS=ray.gcs, RAY_AUTH_MODE="token", **more)
    command = [sys.executable, "-m", "ftray", *words, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def cpus(ray: LiveRay) -> float:
    """Return how many CPUs are up."""
    nodes = json.loads(ray.get("/api/v0/nodes?detail=true"))["data"]["result"]["result"]
    return sum(float(node["resources_total"].get("CPU", 0)) for node in nodes if node["state"] == "ALIVE")


def test_nodes_that_a_job_needs_are_asked_for_and_waited_for(ray: LiveRay, job: Path, tmp_path: Path) -> None:
    assert cpus(ray) == 0
    waiting = ("--env", "FTRAY_WAIT_FOR_NODES=90")
    answer = ray.ftray("submit", str(job), "--storage", str(tmp_path), *waiting, "--wait")
    assert answer.exit_code == 0, answer.stderr
    assert "nodes for 0 of 2 workers: waiting up to 90 s" in answer.stderr
    (run,) = tmp_path.glob("*/result.json")
    result = read_json(run)
    assert (result["status"], result["workers_seen"], result["steps"]) == ("completed", MOST_NODES, 4)
    # Nothing holds them any longer.
    until(lambda: cpus(ray) == 0, "nodes that nobody uses are given back", 120)


def test_more_than_it_grows_to_is_refused_after_the_wait(ray: LiveRay, job: Path, tmp_path: Path) -> None:
    more = MOST_NODES + 1
    words = ("train", str(job), "--set", f"compute.workers={more}", "--storage", str(tmp_path / "runs"))
    answer = on_the_cluster(ray, *words, FTRAY_WAIT_FOR_NODES="5")
    error = answer.document
    assert (answer.exit_code, error["kind"]) == (2, "too_few_resources"), answer.stderr
    assert f"{more} workers need {more} CPUs" in error["message"]
    assert "after 5 s the Ray cluster has" in error["message"]
    assert not (tmp_path / "runs").exists()


def test_without_waiting_it_is_said_how_to(ray: LiveRay, job: Path, tmp_path: Path) -> None:
    words = ("train", str(job), "--set", "compute.workers=9", "--storage", str(tmp_path / "runs"))
    answer = on_the_cluster(ray, *words)
    error = answer.document
    assert (answer.exit_code, error["kind"]) == (2, "too_few_resources"), answer.stderr
    assert "FTRAY_WAIT_FOR_NODES=SECONDS waits for them" in error["hint"]
    assert not (tmp_path / "runs").exists()


def test_another_token_is_not_let_in(ray: LiveRay, job: Path, tmp_path: Path) -> None:
    words = ("train", str(job), "--storage", str(tmp_path / "runs"))
    answer = on_the_cluster(ray, *words, RAY_AUTH_TOKEN="0" * 64)
    error = answer.document
    assert (answer.exit_code, error["kind"]) == (2, "bad_token"), answer.stderr
    assert not (tmp_path / "runs").exists()
