"""What of a job travels to the cluster, and where each of its paths points there. Decides; copies nothing.

A path is left as it is below the storage folder, mapped where --on-cluster says so, and shipped otherwise: beside the
job file, so that it is relative to it, as in every job. Names of models and datasets of the hub stay names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ftray.data.config import Source
from ftray.errors import InputError
from ftray.evaluate.config import TASK_FILES, LmEvalProbe, Probe
from ftray.job import Job, LoadedJob
from ftray.model.base import IDENTITY_SUFFIXES

MOST_BYTES = 256 * 2**20
"""Half of what Ray takes as a working directory: the head node keeps it in memory."""
TEMPLATE_SUFFIXES = (".jinja", ".j2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Which of this machine's paths the cluster reaches."""

    storage: Path | None
    """None where it is a store, of which each machine has a working copy of its own."""
    mapped: Sequence[tuple[Path, PurePosixPath]] = ()
    """Folders or files here, and where they lie on the cluster."""

    def on_cluster(self, path: Path) -> str | None:
        """Return the path on the cluster, None where the cluster has none."""
        for here, there in self.mapped:
            if path.is_relative_to(here):
                return str(there / path.relative_to(here))
        for storage in (self.storage, self.storage.resolve()) if self.storage else ():
            if path.is_relative_to(storage):
                assert self.storage is not None, "there is one to look into"
                return str(self.storage / path.relative_to(storage))
        return None


def parse_mapping(text: str) -> tuple[Path, PurePosixPath]:
    """Return what --on-cluster PATH[=CLUSTER_PATH] says. Raises InputError `bad_value`."""
    here, separator, there = text.partition("=")
    place = Path(here).expanduser().absolute()
    target = PurePosixPath(there if separator else str(place))
    if not here or not target.is_absolute() or not place.exists():
        raise InputError(
            f"--on-cluster {text}: {'there is no such path here' if not place.exists() else 'it is not absolute'}",
            kind="bad_value",
            given=text,
            allowed="PATH, where it is the same on the cluster, or PATH=CLUSTER_PATH",
            hint="Both name the same content: what is here makes the run's id, and the cluster compares.",
        )
    return place.resolve(), target


@dataclass(frozen=True, slots=True, kw_only=True)
class ParcelFile:
    """One file that travels."""

    source: Path
    target: PurePosixPath
    num_bytes: int


@dataclass(slots=True)
class Parcel:
    """The files that travel, and the job whose paths point at them."""

    job: Job
    files: list[ParcelFile] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


def pack(loaded: LoadedJob, reach: Reach) -> Parcel:
    """Return what has to travel. Raises InputError `too_large` or `unreachable`."""
    packer = _Packer(reach)
    job = relocate(loaded.job, packer.place)
    packer.add_modules(loaded)
    parcel = Parcel(job, packer.files)
    require_small(parcel.files)
    return parcel


def require_small(files: Sequence[ParcelFile], most: int = MOST_BYTES) -> None:
    """Raise InputError `too_large` for more than may travel, naming the largest and the way out."""
    total = sum(file.num_bytes for file in files)
    if total <= most:
        return
    largest = sorted(files, key=lambda file: -file.num_bytes)[:3]
    raise InputError(
        f"the job's files have {mebibytes(total)} in all; at most {mebibytes(most)} travel with a job",
        kind="too_large",
        given=[f"{file.source} ({mebibytes(file.num_bytes)})" for file in largest],
        allowed=f"{mebibytes(most)} in all; anything that the cluster reaches by itself",
        hint="Copy the large ones into the storage folder and name them there, or, where they lie on the cluster "
        "already, say where: --on-cluster PATH=CLUSTER_PATH. A model's Hugging Face id needs no copy.",
    )


def mebibytes(count: int) -> str:
    """Return a size as people read it."""
    return f"{count / 2**20:,.1f} MiB"


def relocate(job: Job, place: Callable[[str, str], str]) -> Job:
    """Return the job with every path of it replaced by what `place(path, key)` returns.

    What the job does not set stays unset: a setting that is given and has no effect is refused.
    """

    def moved(value: Any, key: str) -> Any:
        if isinstance(value, list):
            return [moved(one, f"{key}.{index}") for index, one in enumerate(value)]
        return value.model_copy(update={"path": place(value.path, f"{key}.path")}) if _has_file(value) else value

    given = [name for name in SOURCES if name in job.data.model_fields_set]
    data: dict[str, Any] = {name: moved(getattr(job.data, name), f"data.{name}") for name in given}
    if job.data.replay is not None and job.data.replay.path is not None:
        path = place(job.data.replay.path, "data.replay.path")
        data["replay"] = job.data.replay.model_copy(update={"path": path})
    if job.data.template.endswith(TEMPLATE_SUFFIXES):
        data["template"] = place(job.data.template, "data.template")
    changes: dict[str, Any] = {"model": place(job.model, "model"), "data": job.data.model_copy(update=data)}
    if job.evaluate.general:
        general = [_moved_probe(probe, f"evaluate.general.{probe.name}", place) for probe in job.evaluate.general]
        changes["evaluate"] = job.evaluate.model_copy(update={"general": general})
    return job.model_copy(update=changes)


SOURCES = ("train", "validation", "test")


def _has_file(value: Any) -> bool:
    return isinstance(value, Source)


def _moved_probe(probe: Probe | LmEvalProbe, key: str, place: Callable[[str, str], str]) -> Probe | LmEvalProbe:
    if isinstance(probe, Probe):
        return probe.model_copy(update={"path": place(probe.path, f"{key}.path")})
    if probe.lm_eval.endswith(TASK_FILES):
        return probe.model_copy(update={"lm_eval": place(probe.lm_eval, f"{key}.lm_eval")})
    return probe


class _Packer:
    """Finds each path its place, and notes what travels there."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._places: dict[Path, str] = {}
        self._taken: set[PurePosixPath] = set()
        self.files: list[ParcelFile] = []

    def place(self, text: str, key: str) -> str:
        """Return the path on the cluster of what the job names `text`."""
        path = Path(text)
        if not path.is_absolute():
            return text  # a name of the hub
        there = self._reach.on_cluster(path)
        if there is not None:
            return there
        if path not in self._places:
            self._places[path] = str(self._ship(path, key))
        return self._places[path]

    def _ship(self, path: Path, key: str) -> PurePosixPath:
        if key == "model":
            return self._ship_model(path)
        if not path.is_file():
            raise _unreachable(path, key)
        if key.endswith(".lm_eval"):
            return self._ship_task(path, key)
        return self._add(path, self._free(PurePosixPath("data"), path.name))

    def _ship_model(self, folder: Path) -> PurePosixPath:
        if not folder.is_dir():
            raise _unreachable(folder, "model")
        target = self._free(PurePosixPath("model"), folder.name)
        for file in sorted(folder.iterdir()):
            # What its identity is made of, and nothing else that lies there.
            if file.is_file() and file.suffix in IDENTITY_SUFFIXES:
                self._add(file, target / file.name)
        return target

    def _ship_task(self, file: Path, key: str) -> PurePosixPath:
        """Take a task file of lm-eval, and the rows it names, into a folder of their own."""
        text = file.read_text(encoding="utf-8")
        if "include:" in text or "!function" in text:
            raise InputError(
                f"{file} includes other files, which do not travel with it",
                kind="unreachable",
                given=str(file),
                allowed="a task file that names only its data_files",
                hint="Put the task's folder into the storage folder, or say where the cluster has it: --on-cluster.",
                path=key,
            )
        target = self._free(PurePosixPath("tasks"), file.stem)
        for name in _data_files(yaml.safe_load(text)):
            if not Path(name).is_absolute() and ".." not in Path(name).parts and (file.parent / name).is_file():
                self._add(file.parent / name, target / name)
        return self._add(file, target / file.name)

    def add_modules(self, loaded: LoadedJob) -> None:
        """Take the user's own modules that lie beside the job file: they are imported from there."""
        for module in sorted(own_modules(loaded.job)):
            top = module.split(".")[0]
            for file in (loaded.base / f"{top}.py", *sorted((loaded.base / top).rglob("*.py"))):
                if file.is_file():
                    self._add(file, PurePosixPath(file.relative_to(loaded.base).as_posix()))

    def _free(self, folder: PurePosixPath, name: str) -> PurePosixPath:
        """Return a place for `name` that nothing has yet, its name kept."""
        places = [folder / name, *(folder / str(number) / name for number in range(2, len(self._taken) + 3))]
        free = next(place for place in places if place not in self._taken)
        self._taken.add(free)
        return free

    def _add(self, source: Path, target: PurePosixPath) -> PurePosixPath:
        self.files.append(ParcelFile(source=source, target=target, num_bytes=source.stat().st_size))
        return target


def own_modules(job: Job) -> set[str]:
    """Return the modules of the metrics and searchers that a job names as module:function."""
    metrics = [job.evaluate.task.metric, *(probe.metric for probe in job.evaluate.probes.values())]
    named = [*metrics, *([job.sweep.searcher] if job.sweep else [])]
    return {name.partition(":")[0] for name in named if name and ":" in name}


def _data_files(task: Any) -> Iterator[str]:
    """Yield the files that a task of lm-eval names."""
    settings = task.get("dataset_kwargs") if isinstance(task, dict) else None
    yield from _strings(settings.get("data_files") if isinstance(settings, dict) else None)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


def _unreachable(path: Path, key: str) -> InputError:
    return InputError(
        f"there is no {'folder' if key == 'model' else 'file'} {path} on this machine",
        kind="unreachable",
        given=str(path),
        allowed="what is here and travels with the job, or is here and on the cluster",
        hint="The run's id is made of its content, so it must be readable where the job is submitted: mount the "
        "storage here, or have a copy and say where the cluster has it: --on-cluster PATH=CLUSTER_PATH.",
        path=key,
    )
