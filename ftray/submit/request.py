"""What is asked for with `ftray submit`, checked before a cluster is asked anything."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ftray.artifacts import RunDirectory, digest_of
from ftray.campaign import SweepDirectory
from ftray.errors import InputError
from ftray.job import Job, LoadedJob, evaluate_digest, run_directory, run_id_of
from ftray.jobfile import VARIABLE, apply_sets, read_yaml
from ftray.storage.mirror import is_brief
from ftray.storage.place import is_url
from ftray.submit.client import EntrypointResources
from ftray.submit.parcel import Reach
from ftray.submit.submission import Kind

NAME = re.compile(r"^[A-Za-z_]\w*$")
LABEL = re.compile(r"^[A-Za-z0-9]([\w./-]{0,61}[A-Za-z0-9])?$")
RESERVED = ("FTRAY_SECRET", "RAY_", "PYTHONPATH")
"""Beginnings of variables that a submission sets itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A job for a cluster."""

    loaded: LoadedJob
    kind: Kind
    reach: Reach
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    gate: bool = False
    forced_mode: str | None = None
    ships_ftray: bool = True
    python: str | None = None
    """Python of the cluster's nodes; None: `python`, or this process's where the head node is this machine."""
    resources: EntrypointResources | None = None
    """None: what the command needs for itself."""

    @property
    def job(self) -> Job:
        return self.loaded.job

    def identity(self) -> str:
        """Return the declared id of the run or campaign: what is here decides it."""
        if self.kind == "train":
            return run_id_of(self.loaded)
        from ftray.sweep.prepare import sweep_id_of

        return sweep_id_of(self.loaded)

    def folder(self, identity: str) -> Path:
        """Return the run's or the campaign's folder."""
        if self.kind == "train":
            return run_directory(self.loaded, identity).root
        return self.loaded.storage / f"{self.job.name}-sweep-{identity[:12]}"

    def finished_record(self, identity: str) -> Mapping[str, object] | None:
        """Return result.json or sweep.json of work that is finished and was judged as the job says."""
        folder = self.folder(identity)
        self.loaded.place.mirror(folder).fetch(is_brief, as_reader=True)
        if self.kind == "train":
            from ftray.run_records import finished_result

            return finished_result(RunDirectory(folder), self.loaded)
        from ftray.sweep.run import finished_record

        return finished_record(SweepDirectory(folder), self.loaded)

    def judged(self) -> str:
        """Return the digest of what decides how the work is judged, and, for a campaign, when it is over."""
        evaluate = evaluate_digest(self.loaded)
        if self.kind == "train" or self.job.sweep is None:
            return evaluate
        ends = self.job.sweep.model_dump(mode="json", include={"finalists", "budget"})
        return digest_of({"evaluate": evaluate, "ends": ends})

    def entrypoint_resources(self) -> EntrypointResources:
        """Return what is reserved for the command: with workers: 0 it does the training itself."""
        if self.resources is not None:
            return self.resources
        compute = self.job.compute
        if self.kind == "train" and compute.workers == 0:
            return EntrypointResources(cpus=compute.cpus_per_worker, gpus=compute.gpus_per_worker)
        return EntrypointResources()


def require_shared_storage(
    file: Path, *, sets: Sequence[str], flag: str | None, environment: Mapping[str, str]
) -> None:
    """Raise InputError `relative_storage` for a storage folder that means another place on every machine."""
    content, lines = read_yaml(file)
    apply_sets(content, sets)
    given = flag or environment.get("FTRAY_STORAGE") or content.get("storage", "./runs")
    text = VARIABLE.sub(lambda match: environment.get(match.group(1), match.group(2) or ""), str(given))
    if Path(text).is_absolute() or is_url(text):
        return
    is_in_job = not flag and not environment.get("FTRAY_STORAGE")
    raise InputError(
        f"the storage {given!r} is relative: it would be another folder on every node",
        kind="relative_storage",
        given=given,
        allowed="the absolute path of a folder that all nodes of the cluster share, or a URL",
        hint="Name the shared folder: --storage /mnt/shared/runs, FTRAY_STORAGE, or the job's `storage`.",
        path="storage",
        file=str(file) if is_in_job else None,
        line=lines.get("storage") if is_in_job else None,
    )


def parse_environment(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of --env NAME[=VALUE]; without a value it is taken from here."""
    chosen = {}
    for text in given:
        name, separator, value = text.partition("=")
        _require_name(name, f"--env {text}")
        if not separator and name not in environment:
            raise _unset(name, f"--env {name}")
        chosen[name] = value if separator else environment[name]
    return chosen


def parse_secrets(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values of --secret NAME, from here: a value on a command line is no secret."""
    chosen = {}
    for name in given:
        if "=" in name:
            stem = name.partition("=")[0]
            raise InputError(
                f"--secret {stem}=... has its value on the command line, where others can read it",
                kind="bad_value",
                given=f"{stem}=...",
                allowed="the name of an environment variable",
                hint=f"export {stem}, then --secret {stem}.",
            )
        _require_name(name, f"--secret {name}")
        if name not in environment:
            raise _unset(name, f"--secret {name}")
        chosen[name] = environment[name]
    return chosen


def parse_labels(given: Sequence[str]) -> dict[str, str]:
    """Return the labels of --label KEY=VALUE."""
    labels = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator or not LABEL.match(key):
            raise InputError(
                f"--label {text} is not KEY=VALUE",
                kind="bad_value",
                given=text,
                allowed="a key of letters, digits, `_`, `-`, `.` and `/`, then =, then any text",
                hint="For example --label team=search.",
            )
        labels[key] = value
    return labels


def require_apart(environment: Mapping[str, str], secrets: Mapping[str, str]) -> None:
    """Raise InputError `bad_value` for a variable that would be shown and hidden."""
    both = sorted(set(environment) & set(secrets))
    if both:
        raise InputError(
            f"{both[0]} is given with --env, which is shown, and with --secret",
            kind="bad_value",
            given=both,
            allowed="one of them",
            hint=f"Leave out --env {both[0]}.",
        )


def _require_name(name: str, given: str) -> None:
    if not NAME.match(name) or name.startswith(RESERVED):
        raise InputError(
            f"{given}: {name!r} cannot be set for a job",
            kind="bad_value",
            given=given,
            allowed=f"the name of an environment variable that does not begin with {', '.join(RESERVED)}",
            hint="Ray and ftray set those themselves.",
        )


def _unset(name: str, given: str) -> InputError:
    return InputError(
        f"{given}: the environment variable {name} is not set here",
        kind="unset_variable",
        given=given,
        allowed=f"export {name}=...",
        hint="Only its name is given on the command line; its value is taken from this environment.",
    )
