"""A tuned model on disk with its base: a finished run's, or any PEFT adapter. Loaded strictly, as a user would."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftray.artifacts import RunDirectory, read_json
from ftray.errors import InputError
from ftray.finish import digest_folder
from ftray.job import Job, LoadedJob
from ftray.model.base import identify, load_model, own_precision
from ftray.model.lora import CONFIG_FILE, WEIGHTS_FILE, disk_name, load_adapter_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A tuned model on disk, and what is known of how it was made."""

    folder: Path
    model: str
    """Its base."""
    is_adapter: bool
    precision: str
    digest: str
    step: int | None = None
    loaded: LoadedJob | None = None
    run: RunDirectory | None = None
    run_id: str | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.run.root.name if self.run else str(self.folder)


def subject_of_run(run: RunDirectory) -> Subject:
    """Return a finished run's model. Raises InputError when there is none, or when it is not what the run wrote."""
    record = read_json(run.job)
    result = read_json(run.result) if run.result.exists() else None
    if result is None or not result["adapter"] or not run.adapter.is_dir():
        status = result["status"] if result else "not finished"
        raise InputError(
            f"the run {run.root.name} has no model to evaluate: it is {status}",
            kind="unfinished_run",
            given=str(run.root),
            allowed="a run whose status is completed or early_stopped",
            hint="Run its `ftray train` command again: it goes on from the last checkpoint.",
        )
    digest = digest_folder(run.adapter)
    if digest != result["adapter"]["digest"]:
        raise InputError(
            f"the files in {run.adapter} are not those that the run wrote",
            kind="changed_model",
            given=digest,
            allowed=result["adapter"]["digest"],
            hint="Restore them; or evaluate the folder for itself: ftray evaluate RUN/adapter --data FILE.",
            file=str(run.adapter),
        )
    job = Job.model_validate_json(json.dumps(record["job"]))
    loaded = LoadedJob(job=job, base=Path(record["base_folder"]), smoke=record["smoke"])
    return Subject(
        folder=run.adapter,
        model=job.model,
        is_adapter=job.method.kind == "lora",
        precision=read_json(run.plan)["precision"],
        digest=digest,
        step=result["selected"]["step"],
        loaded=loaded,
        run=run,
        run_id=record["run_id"],
    )


def subject_of_adapter(folder: Path, *, model: str | None) -> Subject:
    """Return a PEFT adapter; its base is the one it names, unless `model` says otherwise."""
    if not (folder / WEIGHTS_FILE).is_file():
        raise InputError(
            f"{folder} has no {WEIGHTS_FILE}",
            kind="missing_model",
            given=sorted(path.name for path in folder.iterdir()),
            allowed=f"a PEFT folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
            hint="Save the adapter with PEFT as safetensors: model.save_pretrained(FOLDER).",
            file=str(folder),
        )
    base = model or read_json(folder / CONFIG_FILE).get("base_model_name_or_path")
    if not base:
        raise InputError(
            f"{folder / CONFIG_FILE} does not name a base model",
            kind="missing_model",
            allowed="a local folder or a Hugging Face id",
            hint="Say what the adapter belongs to: --model MODEL.",
        )
    try:
        identify(base)
    except InputError as error:
        raise InputError(
            f"the base of {folder}: {error.message}",
            kind=error.kind,
            given=base,
            allowed=error.allowed,
            hint="Say where the adapter's base is: --model MODEL.",
            file=str(folder / CONFIG_FILE),
        ) from error
    return Subject(folder=folder, model=base, is_adapter=True, precision=own_precision(), digest=digest_folder(folder))


def load_tuned(subject: Subject) -> Any:
    """Return base and adapter. Every weight must find its place: PEFT itself would pass over the others."""
    from peft import PeftConfig, get_peft_model
    from safetensors.torch import load_file

    base = load_model(subject.model, precision=subject.precision)
    config = PeftConfig.from_pretrained(str(subject.folder))
    config.inference_mode = False
    try:
        model: Any = get_peft_model(base, config)
    except ValueError as error:
        raise _mismatch(subject, str(error).splitlines()[0]) from error
    tensors = load_file(subject.folder / WEIGHTS_FILE)
    places = {disk_name(name): weight for name, weight in model.named_parameters()}
    wrong = [name for name, tensor in tensors.items() if name in places and places[name].shape != tensor.shape]
    if wrong:
        raise _mismatch(subject, f"{wrong[0]} is {list(tensors[wrong[0]].shape)}, not {list(places[wrong[0]].shape)}")
    load_adapter_weights(model, tensors)
    model.eval()
    return model


def _mismatch(subject: Subject, why: str) -> InputError:
    return InputError(
        f"the adapter {subject.folder} does not fit the model {subject.model}: {why}",
        kind="adapter_mismatch",
        given=str(subject.folder),
        allowed="the base that the adapter was trained on",
        hint="Say which base it belongs to: --model MODEL.",
    )
