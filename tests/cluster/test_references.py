"""What manifests name is there: in the folder, or in the README's commands that make it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from cluster_files import README, SCHEMA_FILES, Manifest, code_blocks, commands, manifests

SECRET_NAMES = re.compile(r"TOKEN|PASSWORD|SECRET|KEY|AUTH")


def named(kind: str) -> set[str]:
    return {one.name for one in manifests(kind)}


def secrets_to_make() -> dict[str, set[str]]:
    """Return the keys of each secret that the README's commands make."""
    made: dict[str, set[str]] = {}
    for block in code_blocks(README.read_text(encoding="utf-8")):
        for words in commands(block):
            if words[:4] == ["kubectl", "create", "secret", "generic"]:
                options = [word for word in words[5:] if word.startswith(("--from-literal=", "--from-file="))]
                made[words[4]] = {option.split("=", 2)[1] for option in options}
    return made


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a document."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


@pytest.mark.parametrize("manifest", manifests(), ids=lambda one: one.id)
def test_what_a_manifest_names_is_there(manifest: Manifest) -> None:
    secrets = secrets_to_make()
    for node in nodes(manifest.document):
        if "claimName" in node:
            assert node["claimName"] in named("PersistentVolumeClaim")
        if isinstance(node.get("configMap"), dict):
            assert node["configMap"]["name"] in named("ConfigMap")
        if isinstance(node.get("secret"), dict):
            assert node["secret"]["secretName"] in secrets
        for reference in (node.get("secretKeyRef"), node.get("credentials")):
            if reference is not None:
                assert reference["key"] in secrets[reference["name"]]
        if "redisAddress" in node:
            address = urlsplit(node["redisAddress"])
            assert address.hostname in named("Service")
            assert address.port in ports_of(str(address.hostname))


def ports_of(service: str) -> list[int]:
    return [
        port["port"] for one in manifests("Service") if one.name == service for port in one.document["spec"]["ports"]
    ]


@pytest.mark.parametrize("manifest", manifests("Service"), ids=lambda one: one.id)
def test_a_service_reaches_a_pod(manifest: Manifest) -> None:
    spec = manifest.document["spec"]
    (pod,) = (
        pod
        for one in manifests("StatefulSet")
        for pod in one.pods
        if spec["selector"].items() <= pod["metadata"]["labels"].items()
    )
    open_ports = {port["name"]: port["containerPort"] for one in pod["spec"]["containers"] for port in one["ports"]}
    for port in spec["ports"]:
        assert open_ports[port["targetPort"]] == port["port"]


@pytest.mark.parametrize("manifest", manifests("StatefulSet"), ids=lambda one: one.id)
def test_a_stateful_set_selects_its_own_pods(manifest: Manifest) -> None:
    spec = manifest.document["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert spec["serviceName"] in named("Service")


@pytest.mark.parametrize("manifest", manifests(), ids=lambda one: one.id)
def test_secrets_come_by_name_and_mounts_from_volumes(manifest: Manifest) -> None:
    for pod in [pod["spec"] for pod in manifest.pods]:
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in manifest.document["spec"].get("volumeClaimTemplates", [])}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            for variable in container.get("env", []):
                if SECRET_NAMES.search(variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"]
                    assert "value" not in variable


@pytest.mark.parametrize("manifest", manifests(*SCHEMA_FILES), ids=lambda one: one.id)
def test_all_nodes_of_a_cluster_share_image_version_and_storage(manifest: Manifest) -> None:
    assert manifest.cluster["rayVersion"] == version("ray")
    containers = [pod["spec"]["containers"][0] for pod in manifest.pods]
    releases = {container["image"].rsplit("-", 1)[0] for container in containers}
    assert len(releases) == 1
    for container in containers:
        assert {"name": "storage", "mountPath": "/storage"} in container["volumeMounts"]
        assert {"name": "FTRAY_STORAGE", "value": "/storage/runs"} in container["env"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        assert container["image"].endswith("-cuda" if gpus else "-cpu")


def test_prometheus_finds_the_pods_and_their_ports() -> None:
    (monitor,) = manifests("PodMonitor")
    spec = monitor.document["spec"]
    # Labels of ray.io are the operator's.
    labels = {key: value for key, value in spec["selector"]["matchLabels"].items() if not key.startswith("ray.io/")}
    assert labels
    pods = [pod for one in manifests(*SCHEMA_FILES) for pod in one.pods]
    for pod in pods:
        assert labels.items() <= pod["metadata"]["labels"].items()
        assert "metrics" in {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    somewhere = {port["name"] for pod in pods for port in pod["spec"]["containers"][0]["ports"]}
    assert {one["port"] for one in spec["podMetricsEndpoints"]} <= somewhere


def test_prometheus_finds_the_endpoint() -> None:
    (service,), (monitor,) = manifests("RayService"), manifests("ServiceMonitor")
    # As KubeRay labels the service of a RayService that answers.
    assert monitor.document["spec"]["selector"]["matchLabels"] == {
        "ray.io/originated-from-cr-name": service.name,
        "ray.io/serve": f"{service.name}-serve",
    }
    (endpoint,) = monitor.document["spec"]["endpoints"]
    assert endpoint["path"] == "/metrics"
    ports = {port["name"]: port["containerPort"] for port in service.pods[0]["spec"]["containers"][0]["ports"]}
    assert endpoint["port"] in ports


def test_the_readme_names_only_files_and_objects_that_are_there() -> None:
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (README.parent / target).exists(), target
    here = {one.name for one in manifests()}
    for block in code_blocks(text):
        for words in commands(block):
            for word in words:
                if word.startswith("cluster/"):
                    assert (README.parent.parent / word).exists(), word
                kind, _, name = word.partition("/")
                if name and kind in ("job", "pod"):
                    assert name in here, word


def test_the_readme_forwards_to_services_that_the_operator_makes() -> None:
    made = {f"{one.name}-head-svc" for one in manifests("RayCluster")}
    made |= {f"{one.name}-serve-svc" for one in manifests("RayService")}
    asked = re.findall(r"service/([\w-]+) \d+:", README.read_text(encoding="utf-8"))
    assert asked
    assert set(asked) <= made


def test_yaml_says_nothing_twice() -> None:
    for manifest in manifests():
        for document in yaml.compose_all(manifest.file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader):
            require_unique_keys(document, manifest.file.name)


def require_unique_keys(node: yaml.Node | None, where: str) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"{where}: a key of {keys} stands there twice"
        for _, value in node.value:
            require_unique_keys(value, where)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            require_unique_keys(value, where)
