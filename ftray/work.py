"""What one worker does, alone or as a rank of many: data, model, engine, loop, choice, evaluation, files.

`finetune.finetune` runs it in this process (workers: 0) or through Ray Train; a replaced worker runs it again and goes
on from the newest whole checkpoint.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftray.artifacts import RunDirectory, digest_of, read_json
from ftray.attempt import publishing, resume, share_checkpoints, sole_worker, tracking
from ftray.data.conversations import REPLAY
from ftray.errors import InputError
from ftray.evaluate.config import LOWER_IS_BETTER
from ftray.evaluate.expected_format import expected_format
from ftray.evaluate.lm_eval import build_lm_eval_task
from ftray.evaluate.tasks import Role, Task, build_task
from ftray.finish import PROBE_EXAMPLES, FinalTasks, MadeWith, conclude
from ftray.job import Job, LoadedJob
from ftray.model.base import load_model, load_tokenizer, longest_example, own_device, recompute_activations
from ftray.model.forward import layout_for
from ftray.model.lora import attach_lora
from ftray.observe import log
from ftray.observe.spans import root, span
from ftray.prepare import Datasets, GateSettings, prepare
from ftray.registry.probing import fingerprint_of_folder, prefixes
from ftray.registry.record import trained_record
from ftray.sampling import Precision, sampling_of
from ftray.storage.lease import Lease
from ftray.storage.mirror import Mirror
from ftray.storage.publisher import Publisher
from ftray.train.checkpoint import CheckpointWriter
from ftray.train.engine import Engine, OptimizerSettings, TorchEngine
from ftray.train.health import require_group
from ftray.train.loop import Clock, Report, Validation, train
from ftray.train.memory import keep_freed_memory
from ftray.train.plan import Plan
from ftray.train.state import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """Everything a worker needs to know; crosses process borders."""

    loaded: LoadedJob
    plan: Plan
    run: Path
    run_id: str
    sampling_precision: Precision | None = None
    """What replay texts were sampled in by the process that started the run, whose machine may be another."""

    @property
    def directory(self) -> RunDirectory:
        """The run's folder on the machine that asks."""
        return RunDirectory(self.loaded.place.here(self.run))

    @property
    def mirror(self) -> Mirror:
        """What keeps that folder and the store the same."""
        return self.loaded.place.mirror(self.run)


def prepare_data(
    loaded: LoadedJob,
    *,
    audits: bool = True,
    may_stand_in: bool = False,
    sampling_precision: Precision | None = None,
) -> Datasets:
    """Return the job's rows; their tokenization has its tokenizer.

    `audits`: whether the dataset gate is asked, once for all processes of a run. `may_stand_in`: whether replay texts
    that are still to be sampled may be stood in for. `sampling_precision`: as in `sampling_of`.
    """
    job = loaded.job
    if loaded.place.holds(loaded.base):
        # What travelled with a submitted job is in its storage.
        loaded.place.mirror(loaded.base).fetch()
    require_probe_names([probe.name for probe in job.evaluate.general])
    if str(loaded.base) not in sys.path:
        # A metric of the user's own (module:function) lies beside the job file.
        sys.path.append(str(loaded.base))
    tokenizer = load_tokenizer(job.model)
    sampling = sampling_of(loaded, tokenizer, precision=sampling_precision)
    if sampling is not None:
        file = sampling.texts.file
        loaded.place.mirror(file.parent).fetch(lambda name: name == file.name)
    gate = GateSettings(accepted={one.check: one.reason for one in job.audit.accept}, format=job.evaluate.format)
    return prepare(
        job.data,
        probes=job.evaluate.probes,
        tokenizer=tokenizer,
        model_length=longest_example(job.model, tokenizer),
        base=loaded.base,
        seed=job.seed,
        smoke=loaded.smoke,
        gate=gate if audits else None,
        sampled=sampling.texts if sampling else None,
        may_stand_in=may_stand_in,
    )


def require_probe_names(names: list[str]) -> None:
    """Raise InputError for probes that would hide each other or another dataset in the records."""
    taken = {"train", "validation", "test", "task", "format", REPLAY}
    for name in names:
        if name in taken:
            raise InputError(
                f"the probe name {name!r} is taken",
                kind="bad_name",
                given=names,
                allowed=f"names that differ from each other and from {', '.join(sorted(taken - set(names)))}",
                hint="Rename the probe in evaluate.general.",
                path="evaluate.general",
            )
        taken.add(name)


def build_tasks(job: Job, datasets: Datasets) -> tuple[Task, FinalTasks]:
    """Return the validation task, and the tasks of the final comparison. Raises InputError where metrics do not fit."""
    tokenization = datasets.tokenization
    metric = job.evaluate.task
    format = expected_format(job.evaluate, datasets.training_answers)
    validation = build_task(
        datasets.validation, name="validation", role="task", metric=metric, tokenization=tokenization
    )
    held_out = datasets.test if datasets.test is not None else datasets.validation
    final = [build_task(held_out, name="task", role="task", metric=metric, tokenization=tokenization, format=format)]
    for name, probe in job.evaluate.probes.items():
        role: Role = "instruction" if probe.metric == "instructions" else "general"
        final.append(build_task(datasets.probes[name], name=name, role=role, metric=probe, tokenization=tokenization))
    for other in job.evaluate.lm_eval_probes:
        length = longest_example(job.model, tokenization.tokenizer)
        final.append(build_lm_eval_task(other, tokenizer=tokenization.tokenizer, max_length=length))
    return validation, FinalTasks(
        tasks=final,
        split="test" if datasets.test is not None else "validation",
        training_answers=datasets.training_answers,
    )


def build_model(job: Job, plan: Plan) -> nn.Module:
    """Return the model that is trained: fp32 weights, except that a frozen base takes the run's precision."""
    base = load_model(job.model, precision=plan.precision if job.method.kind == "lora" else "fp32")
    if plan.activation_checkpointing:
        recompute_activations(base)
    if job.method.kind == "full":
        return base
    return attach_lora(base, job.method, base_name=job.model, seed=plan.seed)


def build_engine(model: nn.Module, plan: Plan) -> Engine:
    """Return the engine the plan names."""
    settings = OptimizerSettings(
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        label_smoothing=plan.label_smoothing,
        precision=plan.precision,
    )
    if plan.engine == "torch":
        device = own_device()
        return TorchEngine(model, settings, device=device)
    from ftray.train.deepspeed import DeepSpeedEngine

    if plan.gpus_per_worker:
        import ray.train.torch

        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)
        return DeepSpeedEngine(model, settings, plan, device=device)
    return DeepSpeedEngine(model, settings, plan, device=torch.device("cpu"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a rank holds before its first step."""

    order: WorkOrder
    datasets: Datasets
    final: FinalTasks
    engine: Engine
    validation: Validation


def work(
    order: WorkOrder,
    *,
    told: int,
    display: Report,
    datasets: Datasets | None = None,
    lease: Lease | None = None,
) -> dict[str, Any]:
    """Do the whole run on this rank; return what result.json says about it (the same on every rank).

    `told`: how many workers Ray speaks of. `datasets`: the job's rows, where this process has read them already.
    `lease`: what this process holds on the run already.
    """
    with working(order):
        ready = make_ready(order, told=told, datasets=datasets)
        with attempting(ready, display, lease=lease) as attempt:
            training, run = attempt.training, order.directory
            clock = train_from(training, ready, attempt.report)
            share_checkpoints(order.mirror, attempt.publisher, ready.engine)
            made_with = MadeWith(tokenization=ready.datasets.tokenization, data_digests=ready.datasets.digests)
            with span("compare", tasks=len(ready.final.tasks), split=ready.final.split):
                evaluation = conclude(
                    order.loaded.job,
                    run,
                    training,
                    ready.engine,
                    ready.validation,
                    ready.final,
                    run_id=order.run_id,
                    made_with=made_with,
                )
            clock.evaluate += clock.lap()
    return {**evaluation, **describe(training, ready.engine, clock), "data_digests": ready.datasets.digests}


def work_without_verdict(order: WorkOrder, *, told: int, display: Report) -> dict[str, Any]:
    """Train, with checkpoints and their values on the validation rows, and leave it there: nobody is asked test rows.

    What a trial of a campaign does. Returns the part of `work` that comes of it.
    """
    with working(order):
        ready = make_ready(order, told=told)
        with attempting(ready, display) as attempt:
            training = attempt.training
            clock = train_from(training, ready, attempt.report)
    return {**describe(training, ready.engine, clock), "data_digests": ready.datasets.digests}


@contextmanager
def working(order: WorkOrder) -> Iterator[None]:
    """Let spans and log lines of this process name the run."""
    log.bind(job=order.loaded.job.name, run=order.run_id[:12])
    began = time.monotonic()
    with root("worker", job=order.loaded.job.name, run=order.run_id[:12]):
        try:
            yield
        except Exception as error:
            log.say(
                f"failed: {error}", level="error", event="failed", error=type(error).__name__,
                seconds=time.monotonic() - began,
            )  # fmt: skip
            raise
        log.say("has done its work", event="done", seconds=time.monotonic() - began)


def make_ready(order: WorkOrder, *, told: int, datasets: Datasets | None = None) -> Ready:
    """Read the data, build model and engine, and see that the other workers are there; as `work` says."""
    with span("load", model=order.loaded.job.model):
        return _make_ready(order, told=told, datasets=datasets)


def _make_ready(order: WorkOrder, *, told: int, datasets: Datasets | None) -> Ready:
    began = time.monotonic()
    keep_freed_memory()
    reset_memory_peak()
    if order.plan.engine == "deepspeed":
        torch.set_num_threads(max(1, int(order.plan.cpus_per_worker)))
    job, plan = order.loaded.job, order.plan
    datasets = datasets or prepare_data(order.loaded, audits=False, sampling_precision=order.sampling_precision)
    assert not datasets.awaits_sampling, "stand-ins for texts are counted, never trained on"
    validation_task, final = build_tasks(job, datasets)
    engine = build_engine(build_model(job, plan), plan)
    require_group(engine.group, least=max(1, plan.min_workers), most=max(1, plan.workers), told=told)
    validation = Validation(
        task=validation_task,
        tokenizer=datasets.tokenization.tokenizer,
        stop_token_ids=datasets.tokenization.stop_token_ids,
        layout=layout_for(engine.model),
    )
    seconds = time.monotonic() - began
    log.say("data, model and engine are ready", event="loaded", worker=engine.group.rank, seconds=seconds)
    return Ready(order=order, datasets=datasets, final=final, engine=engine, validation=validation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A training that goes on, where it reports to, and who publishes what it writes."""

    training: Training
    report: Report
    publisher: Publisher


@contextmanager
def attempting(ready: Ready, display: Report, *, lease: Lease | None = None) -> Iterator[Attempt]:
    """Give the training as its newest whole checkpoint left it; no other process trains it."""
    order, engine = ready.order, ready.engine
    job, run, mirror = order.loaded.job, order.directory, order.mirror
    with (
        sole_worker(run, engine, mirror, lease) as kept,
        publishing(mirror, engine, kept) as publisher,
        tracking(job, run, engine, publisher.watching(display), run_id=order.run_id) as report,
    ):
        training = Training(
            order.plan,
            ready.datasets.train,
            metric=digest_of(job.evaluate.task.model_dump()),
            higher_is_better=job.evaluate.task.metric not in LOWER_IS_BETTER,
        )
        resume(training, engine, run, run_id=order.run_id, report=report)
        yield Attempt(training=training, report=report, publisher=publisher)


def train_from(training: Training, ready: Ready, report: Report) -> Clock:
    """Train to the end."""
    order = ready.order
    folder = order.directory.checkpoints
    checkpoints = CheckpointWriter(folder, run_id=order.run_id, keep=order.plan.keep_checkpoints)
    with span("train", steps=training.plan.total_steps, engine=order.plan.engine, workers=ready.engine.group.size):
        return train(training, ready.engine, ready.validation, checkpoints, report)


def describe(training: Training, engine: Engine, clock: Clock) -> dict[str, Any]:
    """Return what was done and what it took. Collective."""
    progress = training.progress
    return {
        "status": "early_stopped" if progress.stopped else "completed",
        "stopped_reason": progress.stopped,
        "steps": progress.step,
        "epochs": training.epoch,
        "tokens": progress.tokens,
        "label_tokens": progress.label_tokens,
        "seconds": {"train": clock.train, "evaluate": clock.evaluate, "checkpoint": clock.checkpoint},
        "tokens_per_second": clock.tokens / clock.train if clock.train and clock.tokens else 0.0,
        "peak_memory_bytes": max(engine.group.gather(peak_memory_bytes())),
        "optimizer_bytes_per_rank": engine.group.gather(engine.optimizer_bytes()),
        "workers_seen": engine.group.size,
    }


def describe_adapter(loaded: LoadedJob, run: RunDirectory, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the registry's record of a run that ended before runs wrote one: its adapter is asked anew."""
    job = loaded.job
    datasets = prepare_data(loaded, audits=False)
    fingerprint = fingerprint_of_folder(
        run.adapter,
        job.model,
        kind="adapter" if job.method.kind == "lora" else "model",
        probes=prefixes(datasets.train[:PROBE_EXAMPLES]),
        precision=read_json(run.plan)["precision"],
        must_prove=False,
    )
    return trained_record(
        job,
        run.adapter,
        made_by={"run_id": result["run_id"]},
        tokenization=datasets.tokenization,
        data_digests=datasets.digests,
        evaluation=read_json(run.evaluation),
        fingerprint=fingerprint,
        card=(run.adapter / "README.md").read_text(encoding="utf-8"),
    )


def reset_memory_peak() -> None:
    """Start measuring the peak memory of this process anew (GPU only; the host's peak is the process's)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_ray_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Entry of a Ray Train worker."""
    return work(payload["order"], told=payload["told"], display=lambda line: None)
