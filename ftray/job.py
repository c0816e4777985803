"""The whole job: its schema, its loading, its identity.

A job is declared in YAML, loaded once with nothing left implicit, and identified by a digest of what changes its
weights, so that the same job submitted twice is one run that resumes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field

from ftray.artifacts import RunDirectory, digest_file, digest_of
from ftray.config import Config
from ftray.data.config import DataConfig, Source
from ftray.endpoint import ServeConfig
from ftray.evaluate.config import TASK_FILES, EvaluateConfig, LmEvalProbe
from ftray.jobfile import apply_sets, expand_path, read_yaml, resolve_path, validate
from ftray.model.config import MethodConfig
from ftray.presets import PRESETS, PresetName
from ftray.space import SweepConfig
from ftray.storage.place import Place, open_place
from ftray.tracking import TrackerName
from ftray.train.config import ComputeConfig, TrainConfig

CADENCE = ("log_every", "evaluate_every", "checkpoint_every")
"""Settings of `train` that do not change the weights of a step."""
DEFAULT_LEARNING_RATE = {"lora": 1e-4, "full": 2e-5}


class Acceptance(Config):
    """A failed check of the dataset gate that this job accepts."""

    check: Annotated[str, Field(min_length=1)]
    """Name of the check, as audit.json spells it."""
    reason: Annotated[str, Field(min_length=8)]
    """Why it is acceptable here; recorded in audit.json."""


class AuditConfig(Config):
    """What the dataset gate lets pass."""

    accept: list[Acceptance] = []
    """Checks that may fail, each with a reason."""


class Job(Config):
    """One fine-tuning job."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{1,63}$")]
    """Names the run folder and, later, the adapter."""
    model: Annotated[str, Field(min_length=1)]
    """Base model: a local folder or a Hugging Face id."""
    seed: int = 0
    """Decides data order, adapter initialisation, dropout and the validation split."""
    storage: Annotated[str, Field(min_length=1)] = "./runs"
    """Where run folders go: a folder, or a URL such as s3://bucket/prefix. FTRAY_STORAGE and --storage are stronger."""
    preset: PresetName | None = None
    """Defaults of a kind of task; explicit fields win."""
    data: DataConfig
    """Where examples come from and how they become tokens."""
    method: MethodConfig = MethodConfig()
    """What is trained."""
    train: TrainConfig = TrainConfig()
    """The recipe."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How base and tuned are compared."""
    audit: AuditConfig = AuditConfig()
    """What the dataset gate lets pass."""
    compute: ComputeConfig = ComputeConfig()
    """Where the run happens."""
    sweep: SweepConfig | None = None
    """What `ftray sweep` searches; nothing to the other commands."""
    serve: ServeConfig = ServeConfig()
    """What `ftray serve` starts; nothing to the other commands."""
    tracking: list[TrackerName] = ["tensorboard"]
    """Dashboards that mirror metrics.jsonl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedJob:
    """A job with every default filled in, its folder for relative paths, and how it was asked for."""

    job: Job
    base: Path
    smoke: bool = False
    attempt_salt: str | None = None

    @property
    def place(self) -> Place:
        """Where its runs are kept."""
        return Place(self.job.storage)

    @property
    def storage(self) -> Path:
        """The folder of its runs: of a URL, this machine's working copy."""
        return self.place.folder


def load_job(
    file: Path,
    *,
    sets: Sequence[str] = (),
    storage: str | None = None,
    smoke: bool = False,
    attempt_salt: str | None = None,
) -> LoadedJob:
    """Read, check and resolve a job file. Raises InputError for anything that is wrong with it."""
    content, lines = read_yaml(file)
    apply_sets(content, sets)
    base = file.resolve().parent
    _expand(content, base=base, file=str(file), lines=lines)
    job = cast("Job", validate(Job, _with_preset(content), file=str(file), lines=lines))
    return LoadedJob(job=resolve(job, base, storage), base=base, smoke=smoke, attempt_salt=attempt_salt)


def _with_preset(content: dict[str, Any]) -> dict[str, Any]:
    """Fill in a preset's values where the job says nothing."""
    preset = PRESETS.get(content.get("preset", ""), {}) if isinstance(content.get("preset"), str) else {}
    method = content.get("method")
    if isinstance(method, dict) and method.get("kind") == "full":
        # A preset's ranks and rates are LoRA's; what is left of it holds for full fine-tuning, too.
        preset = {
            section: {key: value for key, value in values.items() if key != "learning_rate"}
            for section, values in preset.items()
            if section != "method"
        }
    filled = dict(content)
    for section, values in preset.items():
        given = content.get(section, {})
        if isinstance(given, dict):
            filled[section] = {**values, **given}
    return filled


def _expand(content: dict[str, Any], *, base: Path, file: str, lines: dict[str, int]) -> None:
    """Expand variables in path strings and make local paths absolute, in place."""

    def expand(section: Any, key: str, path: str) -> None:
        if isinstance(section, dict) and isinstance(section.get(key), str):
            text = expand_path(section[key], base=base, path=path, file=file, line=lines.get(path))
            section[key] = resolve_path(text, base)

    expand(content, "model", "model")
    expand(content, "storage", "storage")
    data = content.get("data")
    if isinstance(data, dict):
        if str(data.get("template", "")).endswith((".jinja", ".j2")):
            expand(data, "template", "data.template")
        for name in ("train", "validation", "test"):
            value = data.get(name)
            for index, source in enumerate(value if isinstance(value, list) else [value]):
                expand(source, "path", f"data.{name}.{index}.path" if isinstance(value, list) else f"data.{name}.path")
        expand(data.get("replay"), "path", "data.replay.path")
    expand(content.get("serve"), "keys_file", "serve.keys_file")
    evaluate = content.get("evaluate")
    if isinstance(evaluate, dict) and isinstance(evaluate.get("general"), list):
        for index, probe in enumerate(evaluate["general"]):
            expand(probe, "path", f"evaluate.general.{index}.path")
            if isinstance(probe, dict) and str(probe.get("lm_eval")).endswith(TASK_FILES):
                expand(probe, "lm_eval", f"evaluate.general.{index}.lm_eval")


def resolve(job: Job, base: Path, storage: str | None) -> Job:
    """Return the job with nothing implicit left: learning rate, ZeRO stage, storage."""
    learning_rate = job.train.learning_rate or DEFAULT_LEARNING_RATE[job.method.kind]
    stronger = storage or os.environ.get("FTRAY_STORAGE")
    # A job's own folder is relative to the job file, as all of its paths are.
    place = open_place(stronger) if stronger else open_place(job.storage, base=base)
    resolved = {"train": job.train.model_copy(update={"learning_rate": learning_rate}), "storage": place.spelling}
    return job.model_copy(update=resolved)


def identity(loaded: LoadedJob) -> dict[str, Any]:
    """Return what changes the weights: what the run id is a digest of.

    Paths are replaced by the digest of what they hold; compute, evaluation, tracking and storage are not in it.
    """
    from ftray.data.readers import source_digest
    from ftray.model.base import identify

    job = loaded.job
    data = job.data.model_dump(mode="json")
    for name in ("train", "validation", "test"):
        value = getattr(job.data, name)
        if isinstance(value, Source):
            data[name]["path"] = source_digest(value, loaded.base)
        elif isinstance(value, list):
            for record, source in zip(data[name], value, strict=True):
                record["path"] = source_digest(source, loaded.base)
    if job.data.replay is None:
        # A job without it is the run that it was before there was such a key.
        del data["replay"]
    elif (source := job.data.replay.source) is not None:
        data["replay"]["path"] = source_digest(source, loaded.base)
    template = Path(job.data.template)
    if template.suffix in (".jinja", ".j2") and template.is_file():
        data["template"] = digest_of(template.read_text(encoding="utf-8"))
    recipe = {key: value for key, value in job.train.model_dump(mode="json").items() if key not in CADENCE}
    what: dict[str, Any] = {
        "model": identify(job.model).digest,
        "data": data,
        "method": job.method.model_dump(mode="json"),
        "train": recipe,
        "seed": job.seed,
        "smoke": loaded.smoke,
        "effective_batch": job.train.batch_size,
    }
    if loaded.attempt_salt:
        what["attempt"] = loaded.attempt_salt
    return what


def run_id_of(loaded: LoadedJob) -> str:
    """Return the run id: the SHA-256 of the canonical JSON of the declared identity."""
    return digest_of(identity(loaded))


def evaluate_digest(loaded: LoadedJob) -> str:
    """Return the digest of how the job is judged: of what its probes hold, wherever their files lie.

    On a cluster they lie elsewhere than where the job was submitted. Raises InputError for one that is not there.
    """
    from ftray.data.readers import source_digest

    evaluate = loaded.job.evaluate.model_dump(mode="json")
    for record, probe in zip(evaluate["general"], loaded.job.evaluate.general, strict=True):
        if not isinstance(probe, LmEvalProbe):
            record["path"] = source_digest(probe, loaded.base)
        elif probe.lm_eval.endswith(TASK_FILES) and Path(probe.lm_eval).is_file():
            record["lm_eval"] = digest_file(Path(probe.lm_eval))
    return digest_of(evaluate)


def run_directory(loaded: LoadedJob, run_id: str) -> RunDirectory:
    """Return the run's folder."""
    return RunDirectory(loaded.storage / f"{loaded.job.name}-{run_id[:12]}")
