"""The image: what it copies is there, what it installs is pinned, and it does not run as root."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from string import Template

import pytest
from cluster_files import CLUSTER
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMAGE = CLUSTER / "image"
REPOSITORY = CLUSTER.parent
INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
"""All that this file needs; ADD fetches from addresses and unpacks."""


@dataclass(frozen=True)
class Instruction:
    name: str
    rest: str


def instructions() -> list[Instruction]:
    """Read the Dockerfile as BuildKit does: comments away, continued lines joined."""
    lines = (IMAGE / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n", "", text)
    parsed = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        assert name in INSTRUCTIONS, f"{name} is no instruction of this file"
        assert rest, f"{name} without an argument"
        parsed.append(Instruction(name, re.sub(r"\s+", " ", rest)))
    return parsed


def pins() -> dict[str, str]:
    lines = (IMAGE / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


def rest_of(name: str) -> list[str]:
    return [one.rest for one in instructions() if one.name == name]


def test_the_base_image_is_one_version() -> None:
    arguments = dict(rest.partition("=")[::2] for rest in rest_of("ARG"))
    assert rest_of("FROM") == ["${PYTHON_IMAGE}"]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", arguments["PYTHON_IMAGE"])
    assert arguments["VARIANT"] == "cpu"
    assert arguments["TORCH_INDEX_URL"] == "", "which index holds CPU wheels is said by whoever builds"


def test_it_does_not_run_as_root() -> None:
    parsed = instructions()
    users = [index for index, one in enumerate(parsed) if one.name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", parsed[users[-1]].rest), "by number, for runAsNonRoot"
    assert {one.name for one in parsed[users[-1] :]} <= {"USER", "CMD"}


def test_what_is_copied_is_there_and_sent() -> None:
    lines = (IMAGE / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "nothing is sent but what is named"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {source for rest in rest_of("COPY") for source in rest.split(" ")[:-1]}
    assert copied == sent
    for source in copied:
        assert (REPOSITORY / source).exists(), source


def test_what_the_package_is_built_from_is_copied() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    copied = {source for rest in rest_of("COPY") for source in rest.split(" ")[:-1]}
    assert {project["readme"], *project["license-files"], "pyproject.toml", "ftray"} <= copied


def test_the_pins_are_the_direct_dependencies_and_what_is_tested_with() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', " ".join(rest_of("RUN")))
    assert set(extras.split(",")) == {"postgres", "s3", "otel"}
    wanted = [
        *project["dependencies"],
        *(one for extra in extras.split(",") for one in project["optional-dependencies"][extra]),
    ]
    requirements = [Requirement(text) for text in wanted]
    assert set(pins()) == {canonicalize_name(requirement.name) for requirement in requirements}
    for requirement in requirements:
        pinned = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement} forbids {pinned}"
    assert pins()["ray"] == version("ray"), "head, workers and this machine must have the same Ray"


def test_every_installation_is_pinned_and_leaves_no_cache() -> None:
    installs = [rest for rest in rest_of("RUN") if "pip install" in rest]
    assert len(installs) == 2
    for rest in installs:
        assert "--constraint constraints.txt" in rest
        assert "--no-cache-dir" in rest
    (packages,) = (rest for rest in rest_of("RUN") if "apt-get" in rest)
    # KubeRay's probes and `ray up` call these inside the container.
    assert {"bash", "grep", "wget", "rsync"} <= set(packages.split(" "))
    assert packages.endswith("rm -rf /var/lib/apt/lists/*")


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_an_image_of_the_wrong_variant_is_not_built(variant: str) -> None:
    import torch

    (check,) = (rest for rest in rest_of("RUN") if rest.startswith("python -c "))
    code = Template(check.removeprefix('python -c "').removesuffix('"')).substitute(VARIANT=variant)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    built = "cuda" if torch.version.cuda else "cpu"
    assert done.returncode == (0 if built == variant else 1), done.stderr
    assert ("TORCH_INDEX_URL" in done.stderr) == (built != variant)


def test_manifests_and_readme_name_the_images_that_are_built() -> None:
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    built = set(re.findall(r"-t (ftray:[\w.-]+)", readme))
    assert built == {"ftray:0.1.0-cpu", "ftray:0.1.0-cuda"}
    files: list[Path] = sorted((CLUSTER / "kuberay").glob("*.yaml"))
    used = {image for file in files for image in re.findall(r"image: (ftray:\S+)", file.read_text(encoding="utf-8"))}
    assert used == built
    from ftray import __version__

    assert {image.removeprefix("ftray:").rsplit("-", 1)[0] for image in built} == {__version__}
