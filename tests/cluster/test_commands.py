"""Every command in cluster/ is parsed by the command line it is for: ftray's own, and Ray's."""

from __future__ import annotations

import shlex
from typing import Any

import click
import pytest
import typer
import yaml
from cluster_files import CLUSTER, README, code_blocks, commands, ftray_arguments, manifests, require_command
from typer.exceptions import TyperException

from ftray.cli import app


def shells() -> list[tuple[str, str]]:
    """Return all shell text of the folder with its place."""
    found = [("README.md", block) for block in code_blocks(README.read_text(encoding="utf-8"))]
    for manifest in manifests():
        spec = manifest.document.get("spec", {})
        if "entrypoint" in spec:
            found.append((manifest.file.name, spec["entrypoint"]))
        for pod in manifest.pods:
            for container in pod["spec"]["containers"]:
                if "command" in container:
                    found.append((manifest.file.name, script_of(container["command"])))
    for file in sorted((CLUSTER / "ray_up").glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for key in content:
            if key.endswith("_commands"):
                found += [(file.name, line) for line in content[key]]
    return found


def script_of(command: list[str]) -> str:
    """Return a container's command as a shell would be told it."""
    return command[2] if command[1:2] == ["-c"] else shlex.join(command)


SIMPLE = [(place, words) for place, shell in shells() for words in commands(shell)]
FTRAY = [(place, arguments) for place, words in SIMPLE if (arguments := ftray_arguments(words)) is not None]
RAY = [(place, words[1:]) for place, words in SIMPLE if words[0] == "ray" or words[0].endswith("/bin/ray")]


def named(case: Any) -> str:
    return case if isinstance(case, str) else shlex.join(case)


@pytest.fixture(scope="module")
def ftray_command() -> Any:
    return typer.main.get_command(app)


@pytest.mark.parametrize(("place", "arguments"), FTRAY, ids=named)
def test_ftray_takes_it(place: str, arguments: list[str], ftray_command: Any) -> None:
    require_command(ftray_command, "ftray", arguments, ends=typer.Exit)


@pytest.mark.parametrize(("place", "arguments"), RAY, ids=named)
def test_ray_takes_it(place: str, arguments: list[str]) -> None:
    from ray.scripts.scripts import cli

    require_command(cli, "ray", arguments, ends=click.exceptions.Exit)


def test_every_place_with_commands_was_looked_at() -> None:
    places = {place for place, _ in FTRAY}
    assert places >= {"README.md", "quickstart.yaml", "rayjob-train.yaml", "rayjob-sweep.yaml"}
    assert {place for place, _ in RAY} >= {"README.md", "aws.yaml", "on_premise.yaml"}
    assert len(FTRAY) >= 8


@pytest.mark.parametrize(
    "line",
    [
        "python -m ftray trian job.yaml",
        "python -m ftray train",
        "FTRAY_STORAGE=/x ftray train job.yaml --storrage /storage/runs",
        "kubectl exec shell -- ftray runs one two",
        "ftray experiment reprot x",
    ],
)
def test_a_command_that_has_drifted_is_found(line: str, ftray_command: Any) -> None:
    (arguments,) = filter(None, map(ftray_arguments, commands(line)))
    with pytest.raises(TyperException):
        require_command(ftray_command, "ftray", arguments, ends=typer.Exit)


def test_an_option_that_ray_does_not_have_is_found() -> None:
    from ray.scripts.scripts import cli

    with pytest.raises(click.UsageError):
        require_command(cli, "ray", ["start", "--haed"], ends=click.exceptions.Exit)


def test_commands_are_told_apart() -> None:
    shell = 'A=1 B="x y" ftray runs # look\nls | wc -l && python -m ftray \\\n  train j.yaml > log; export C=2\n'
    assert commands(shell) == [
        ["ftray", "runs"],
        ["ls"],
        ["wc", "-l"],
        ["python", "-m", "ftray", "train", "j.yaml"],
        ["log"],
    ]
    assert ftray_arguments(["docker", "build", "-t", "ftray:0.1.0-cpu", "."]) is None
    assert ftray_arguments(["~/ftray/bin/ftray", "runs"]) == ["runs"]
