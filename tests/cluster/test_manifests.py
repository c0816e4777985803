"""Every manifest against KubeRay's own schemas, where a field that no API server knows is an error."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_files import (
    CLUSTER,
    METADATA,
    SCHEMA_FILES,
    TEXTS,
    Manifest,
    closed,
    closed_resource,
    complaints,
    manifests,
    misspelt,
)
from jsonschema import Draft202012Validator

RAY = manifests(*SCHEMA_FILES)
OTHERS = [one for one in manifests() if one.kind not in SCHEMA_FILES]
AUTH_RAY = (2, 52)
"""The first Ray with tokens; KubeRay refuses authOptions with an older rayVersion."""
LONGEST_NAME = 47
"""Of a RayCluster, RayJob or RayService: KubeRay makes longer names of it."""


@pytest.fixture(scope="module")
def crds(shared: Path) -> dict[str, Any]:
    """Return KubeRay's schemas by kind."""
    folder = shared / "data" / "kuberay"
    return {
        kind: json.loads((folder / f"{name}.v1.openapi.json").read_text(encoding="utf-8"))
        for kind, name in SCHEMA_FILES.items()
    }


@pytest.fixture(scope="module")
def validators(crds: dict[str, Any]) -> dict[str, Draft202012Validator]:
    """Return what each kind must be: KubeRay's by its schemas, Kubernetes' own by those that these embed."""
    head = crds["RayCluster"]["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]
    pod = copy.deepcopy(head["template"])
    volumes = pod["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]
    claim = volumes["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    own: dict[str, tuple[str, dict[str, Any]]] = {
        "PersistentVolumeClaim": ("v1", {"spec": claim}),
        "Service": ("v1", {"spec": head["headService"]["properties"]["spec"]}),
        "ConfigMap": ("v1", {"data": TEXTS}),
        "Pod": ("v1", {"spec": pod["properties"]["spec"]}),
        "Job": ("batch/v1", {"spec": fields(backoffLimit=int, ttlSecondsAfterFinished=int, template=pod)}),
        "StatefulSet": (
            "apps/v1",
            {
                "spec": fields(
                    serviceName=str,
                    replicas=int,
                    selector=fields(matchLabels=TEXTS),
                    template=pod,
                    volumeClaimTemplates=several(fields(metadata=METADATA, spec=claim)),
                )
            },
        ),
        "PodMonitor": (
            "monitoring.coreos.com/v1",
            {"spec": fields(selector=fields(matchLabels=TEXTS), podMetricsEndpoints=several(SCRAPED))},
        ),
        "ServiceMonitor": (
            "monitoring.coreos.com/v1",
            {"spec": fields(selector=fields(matchLabels=TEXTS), endpoints=several(SCRAPED))},
        ),
    }
    built = {kind: closed_resource(crds[kind], kind) for kind in SCHEMA_FILES}
    for kind, (version, parts) in own.items():
        schema = fields(apiVersion=str, kind=str, metadata=METADATA, **parts)
        schema["properties"] |= {"apiVersion": {"const": version}, "kind": {"const": kind}}
        built[kind] = Draft202012Validator(closed({**schema, "required": list(schema["properties"])}))
    return built


def fields(**parts: Any) -> dict[str, Any]:
    """Return the schema of a mapping with these fields and no others."""
    plain = {str: {"type": "string"}, int: {"type": "integer"}}
    return {
        "type": "object",
        "properties": {name: part if isinstance(part, dict) else plain[part] for name, part in parts.items()},
    }


def several(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": item}


SCRAPED = fields(
    port=str,
    path=str,
    interval=str,
    relabelings=several(fields(sourceLabels=several({"type": "string"}), targetLabel=str)),
    authorization=fields(type=str, credentials=fields(name=str, key=str)),
)
"""What the Prometheus operator knows of an endpoint, as far as it is used here."""


def test_there_is_what_the_readme_lists() -> None:
    assert sorted(one.kind for one in RAY) == ["RayCluster", "RayJob", "RayJob", "RayService"]


@pytest.mark.parametrize(
    "file",
    [file for file in sorted(CLUSTER.rglob("*")) if file.suffix in (".yaml", ".json")],
    ids=lambda file: file.relative_to(CLUSTER).as_posix(),
)
def test_every_file_is_read_by_a_safe_loader(file: Path) -> None:
    documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    assert documents
    assert all(isinstance(document, dict) for document in documents)


@pytest.mark.parametrize("manifest", manifests(), ids=lambda one: one.id)
def test_every_manifest_is_what_its_schema_says(
    manifest: Manifest, validators: dict[str, Draft202012Validator]
) -> None:
    assert complaints(validators[manifest.kind], manifest.document) == []


@pytest.mark.parametrize("manifest", manifests(), ids=lambda one: one.id)
def test_every_misspelt_field_is_found(manifest: Manifest, validators: dict[str, Draft202012Validator]) -> None:
    validator = validators[manifest.kind]
    # Anchors share nodes: each place must be misspelt alone.
    document = json.loads(json.dumps(manifest.document))
    places = []
    for place, broken in misspelt(document, validator):
        places.append(place)
        assert not validator.is_valid(broken), f"{place} may be misspelt"
    assert len(places) > 5
    assert complaints(validator, document) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "enableInTreeAutoscaling"), "yes"),
        (("spec", "autoscalerOptions", "version"), "v3"),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "workerGroupSpecs", 0, "minReplicas"), "2"),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limits", "cpu"), "two"),
        (("spec", "authOptions", "mode"), "password"),
        (("status",), {}),
        (("metadata", "namespce"), "default"),
        (("apiVersion",), "ray.io/v1alpha1"),
    ],
)
def test_wrong_values_are_found(path: tuple[Any, ...], value: Any, validators: dict[str, Any]) -> None:
    (cluster,) = manifests("RayCluster")
    document = json.loads(json.dumps(cluster.document))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert len(complaints(validators["RayCluster"], document)) == 1


@pytest.mark.parametrize("manifest", RAY, ids=lambda one: one.id)
def test_what_the_operator_asks_beyond_its_schema(manifest: Manifest) -> None:
    cluster, spec = manifest.cluster, manifest.document["spec"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest.name)
    assert len(manifest.name) <= LONGEST_NAME
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(int(part) for part in cluster["rayVersion"].split(".")[:2]) >= AUTH_RAY
    names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
    assert len(set(names)) == len(names)
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    if cluster.get("autoscalerOptions", {}).get("version") == "v2":
        assert {template["spec"]["restartPolicy"] for template in manifest.pods} == {"Never"}
    if manifest.kind == "RayJob":
        assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")
        assert spec["shutdownAfterJobFinishes"], "ttlSecondsAfterFinished is refused without it"
        assert spec["ttlSecondsAfterFinished"] >= 0
        assert spec["activeDeadlineSeconds"] > 0
        assert spec["backoffLimit"] >= 0


@pytest.mark.parametrize("manifest", RAY, ids=lambda one: one.id)
def test_the_head_computes_nothing_and_ray_is_told_only_what_it_knows(manifest: Manifest) -> None:
    from ray.scripts.scripts import start

    options = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    assert manifest.cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in manifest.groups:
        assert set(group["rayStartParams"]) <= options


@pytest.mark.parametrize(
    ("manifest", "pod"),
    [(one, pod["spec"]) for one in manifests() for pod in one.pods],
    ids=lambda value: value.id if isinstance(value, Manifest) else "",
)
def test_no_pod_is_root_or_without_limits(manifest: Manifest, pod: dict[str, Any]) -> None:
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
        if manifest.kind in SCHEMA_FILES:
            # Ray counts the limits as what a node has: less than that must not be what it was promised.
            assert container["resources"]["limits"] == container["resources"]["requests"]
        # An image without a version is another one tomorrow.
        assert re.search(r":[\w.-]*\d[\w.-]*$", container["image"]), container["image"]
