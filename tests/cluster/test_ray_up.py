"""The cluster launcher's files against Ray's own schema, as `ray up` reads them, and then some: it lets much pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from cluster_files import CLUSTER
from ray.autoscaler._private.util import prepare_config, validate_config

FILES = sorted((CLUSTER / "ray_up").glob("*.yaml"))
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))


def read(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def test_there_is_a_cloud_and_an_on_premise_example() -> None:
    assert [read(file)["provider"]["type"] for file in FILES] == ["aws", "local"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_ray_takes_it(file: Path) -> None:
    content = read(file)
    jsonschema.validate(content, SCHEMA)
    validate_config(prepare_config(content))
    # Of a provider Ray takes any key.
    assert set(content["provider"]) <= set(SCHEMA["properties"]["provider"]["properties"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
@pytest.mark.parametrize("path", [("head_start_ray_commands",), ("auth", "ssh_user")])
def test_a_misspelt_field_is_found(file: Path, path: tuple[str, ...]) -> None:
    content = read(file)
    section = content
    for key in path[:-1]:
        section = section[key]
    section[f"{path[-1]}x"] = section.pop(path[-1])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_node_has_the_token_and_the_shared_folder(file: Path) -> None:
    content = read(file)
    text = file.read_text(encoding="utf-8")
    assert any(target.endswith("/.ray/auth_token") for target in content["file_mounts"])
    starts = [*content["head_start_ray_commands"], *content["worker_start_ray_commands"]]
    environment = content.get("docker", {}).get("run_options") or [line for line in starts if "ray start" in line]
    for line in environment if "docker" not in content else [" ".join(environment)]:
        assert "RAY_AUTH_MODE=token" in line
        assert "FTRAY_STORAGE=/storage/runs" in line
    # The Jobs API runs what it is given: it stays on loopback.
    assert text.count("--dashboard-host") == text.count("--dashboard-host=127.0.0.1") == 1


def test_aws_starts_no_more_machines_than_it_says() -> None:
    (content,) = (read(file) for file in FILES if read(file)["provider"]["type"] == "aws")
    groups = content["available_node_types"]
    assert sum(group["max_workers"] for group in groups.values()) == content["max_workers"]
    assert groups[content["head_node_type"]]["resources"]["CPU"] == 0
    assert content["setup_commands"] == []


def test_the_on_premise_nodes_install_what_the_image_installs() -> None:
    (content,) = (read(file) for file in FILES if read(file)["provider"]["type"] == "local")
    for source in content["file_mounts"].values():
        assert source.startswith("~/") or source == "dist" or (CLUSTER.parent / source).is_dir()
    constraints = next(target for target, source in content["file_mounts"].items() if source == "cluster/image")
    (install,) = (line for line in content["setup_commands"] if "pip install" in line)
    assert f"--constraint {constraints}/constraints.txt" in install
