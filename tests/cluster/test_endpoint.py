"""What the RayService deploys: Serve's own schema takes it, and ftray builds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_files import manifests
from pydantic import BaseModel

from ftray.errors import InputError

# Ray Serve declares its own settings in a way that pydantic no longer wants.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

(SERVICE,) = manifests("RayService")
CONFIG: dict[str, Any] = yaml.safe_load(SERVICE.document["spec"]["serveConfigV2"])


def unknown(section: dict[str, Any], model: type[BaseModel]) -> set[str]:
    return set(section) - set(model.model_fields)


def test_serve_takes_the_configuration_and_drops_nothing_of_it() -> None:
    from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    # Serve ignores what it does not know, so that newer files work with older versions.
    assert not unknown(CONFIG, ServeDeploySchema)
    assert not unknown(CONFIG["http_options"], HTTPOptionsSchema)
    for application in CONFIG["applications"]:
        assert not unknown(application, ServeApplicationSchema)
    assert ServeDeploySchema.model_validate(CONFIG).http_options.host == "0.0.0.0"


def test_requests_may_take_as_long_as_the_endpoint_allows() -> None:
    from ftray.endpoint import ServeConfig
    from ftray.serve.handles import LOAD_SECONDS

    assert CONFIG["http_options"]["request_timeout_s"] > max(ServeConfig().deadline_seconds, LOAD_SECONDS)


def test_ports_are_the_ones_that_are_open() -> None:
    for pod in SERVICE.pods:
        ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        assert ports["serve"] == CONFIG["http_options"]["port"]


def test_the_readiness_probe_asks_what_is_served() -> None:
    (worker,) = SERVICE.cluster["workerGroupSpecs"]
    probe = worker["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
    assert probe[:2] == ["bash", "-c"]
    assert f"http://localhost:{CONFIG['http_options']['port']}/-/healthz" in probe[2]
    assert "\n" not in probe[2].strip()


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, str]:
    """Return the deployed application's arguments, their folders replaced by this test's, with a small base there."""
    import torch
    from families import FAMILIES
    from transformers import AutoModelForCausalLM

    (config,) = manifests("ConfigMap")
    text = config.document["data"]["job.yaml"].replace("/storage/", f"{tmp_path}/storage/")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "job.yaml").write_text(text.replace("/keys/", f"{tmp_path}/keys/"), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        AutoModelForCausalLM.from_config(FAMILIES["llama"]).save_pretrained(tmp_path / "storage/runs/quickstart/base")
    (application,) = CONFIG["applications"]
    return {name: f"{tmp_path}{value}" for name, value in application["args"].items()}


def test_ftray_builds_it(arguments: dict[str, str]) -> None:
    from ray import serve
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve._private.utils import import_attr

    from ftray.serve.app import NAME

    (application,) = CONFIG["applications"]
    assert application["name"] == NAME, "the dashboard asks for this name"
    build = import_attr(application["import_path"])
    built = call_user_app_builder_with_args_if_necessary(build, arguments)
    assert isinstance(built, serve.Application)


def test_an_argument_that_has_drifted_is_found(arguments: dict[str, str]) -> None:
    from ftray.serve.app import build

    with pytest.raises(InputError) as raised:
        build({**arguments, "jobb": "x"})
    assert set(arguments) <= set(raised.value.allowed)
