"""What one worker does, alone or as a rank of many: data, model, engine, loop, choice, evaluation, files.

`finetune.finetune` runs it in this process (workers: 0) or through Ray Train; a replaced worker runs it again and goes
on from the newest whole checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftray.artifacts import RunDirectory, digest_of, write_json
from ftray.data.prepare import Datasets, prepare
from ftray.errors import InputError, RunError
from ftray.evaluate.config import LOWER_IS_BETTER
from ftray.evaluate.tasks import Task, build_task
from ftray.finish import (
    FinalTasks,
    choose,
    evaluate_both,
    export,
    model_card,
    require_difference,
    reset_memory_peak,
    write_evaluation,
)
from ftray.job import Job, LoadedJob
from ftray.model.base import load_config, load_model, load_tokenizer
from ftray.model.forward import layout_for
from ftray.model.lora import attach_lora
from ftray.tracking import Tracker, next_attempt, open_mirrors
from ftray.train.checkpoint import CheckpointWriter, find_checkpoints, load_checkpoint, newest_whole
from ftray.train.engine import Engine, OptimizerSettings, TorchEngine
from ftray.train.health import require_group
from ftray.train.loop import Clock, Report, Validation, train
from ftray.train.memory import keep_freed_memory
from ftray.train.plan import Plan
from ftray.train.state import Training

ORPHAN_SECONDS = 60
"""How long to wait for a worker of a killed driver to notice that it is alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """Everything a worker needs to know; crosses process borders."""

    loaded: LoadedJob
    plan: Plan
    run: Path
    run_id: str


def prepare_data(loaded: LoadedJob) -> tuple[Datasets, Any]:
    """Return the job's rows, and its tokenizer."""
    job = loaded.job
    require_probe_names([probe.name for probe in job.evaluate.general])
    if str(loaded.base) not in sys.path:
        # A metric of the user's own (module:function) lies beside the job file.
        sys.path.append(str(loaded.base))
    tokenizer = load_tokenizer(job.model)
    config = load_config(job.model).get_text_config()
    length = int(getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length)
    datasets = prepare(
        job.data,
        probes={probe.name: probe for probe in job.evaluate.general},
        tokenizer=tokenizer,
        model_length=length,
        base=loaded.base,
        seed=job.seed,
        smoke=loaded.smoke,
        accepted={one.check: one.reason for one in job.audit.accept},
    )
    return datasets, tokenizer


def require_probe_names(names: list[str]) -> None:
    """Raise InputError for probes that would hide each other or another dataset in the records."""
    taken = {"train", "validation", "test", "task"}
    for name in names:
        if name in taken:
            raise InputError(
                f"the probe name {name!r} is taken",
                kind="bad_name",
                given=names,
                allowed="names that differ from each other and from train, validation, test and task",
                hint="Rename the probe in evaluate.general.",
                path="evaluate.general",
            )
        taken.add(name)


def build_tasks(job: Job, datasets: Datasets) -> tuple[Task, FinalTasks]:
    """Return the validation task, and the tasks of the final comparison. Raises InputError where metrics do not fit."""
    tokenization = datasets.tokenization
    metric = job.evaluate.task
    validation = build_task(
        datasets.validation, name="validation", role="task", metric=metric, tokenization=tokenization
    )
    held_out = datasets.test if datasets.test is not None else datasets.validation
    final = [build_task(held_out, name="task", role="task", metric=metric, tokenization=tokenization)]
    for probe in job.evaluate.general:
        rows = datasets.probes[probe.name]
        final.append(build_task(rows, name=probe.name, role="general", metric=probe, tokenization=tokenization))
    return validation, FinalTasks(tasks=final, split="test" if datasets.test is not None else "validation")


def build_model(job: Job, plan: Plan) -> nn.Module:
    """Return the model that is trained: fp32 weights, except that a frozen base takes the run's precision."""
    frozen_dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[plan.precision]
    base = load_model(job.model, dtype=frozen_dtype if job.method.kind == "lora" else "float32")
    if plan.activation_checkpointing:
        with warnings.catch_warnings():
            # Newer versions of transformers call it activation_checkpointing_enable; older ones do not know that name.
            warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated", FutureWarning)
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if job.method.kind == "full":
        return base
    return attach_lora(base, job.method, base_name=job.model, seed=job.seed)


def build_engine(model: nn.Module, plan: Plan) -> Engine:
    """Return the engine the plan names."""
    settings = OptimizerSettings(
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        label_smoothing=plan.label_smoothing,
        precision=plan.precision,
    )
    if plan.engine == "torch":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return TorchEngine(model, settings, device=device)
    from ftray.train.deepspeed import DeepSpeedEngine

    if plan.gpus_per_worker:
        import ray.train.torch

        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)
        return DeepSpeedEngine(model, settings, plan, device=device)
    return DeepSpeedEngine(model, settings, plan, device=torch.device("cpu"))


def work(order: WorkOrder, *, told: int, display: Report) -> dict[str, Any]:
    """Do the whole run on this rank; return what result.json says about it (the same on every rank)."""
    started = time.perf_counter()
    keep_freed_memory()
    reset_memory_peak()
    if order.plan.engine == "deepspeed":
        torch.set_num_threads(max(1, int(order.plan.cpus_per_worker)))
    job, plan, run = order.loaded.job, order.plan, RunDirectory(order.run)
    datasets, tokenizer = prepare_data(order.loaded)
    validation_task, final = build_tasks(job, datasets)
    engine = build_engine(build_model(job, plan), plan)
    require_group(engine.group, least=max(1, plan.min_workers), most=max(1, plan.workers), told=told)
    validation = Validation(
        task=validation_task,
        tokenizer=tokenizer,
        stop_token_ids=datasets.tokenization.stop_token_ids,
        layout=layout_for(engine.model),
    )
    with sole_worker(run, engine), tracking(order, run, engine, display) as report:
        training = Training(
            plan,
            datasets.train,
            metric=digest_of(job.evaluate.task.model_dump()),
            higher_is_better=job.evaluate.task.metric not in LOWER_IS_BETTER,
        )
        resume(training, engine, run, run_id=order.run_id, report=report)
        startup = time.perf_counter() - started
        checkpoints = CheckpointWriter(run.checkpoints, run_id=order.run_id, keep=plan.keep_checkpoints)
        clock = train(training, engine, validation, checkpoints, report)
        evaluation = conclude(order, run, training, engine, validation, final, datasets)
        clock.evaluate += clock.lap()
    return {
        **evaluation,
        **describe(training, engine, clock),
        "seconds": {
            "startup": startup,
            "train": clock.train,
            "evaluate": clock.evaluate,
            "checkpoint": clock.checkpoint,
            "total": time.perf_counter() - started,
        },
        "data_digests": datasets.digests,
    }


@contextmanager
def sole_worker(run: RunDirectory, engine: Engine) -> Iterator[None]:
    """Make sure that no worker of an earlier, killed driver still writes into this run."""
    problem = ""
    file = (run.root / ".worker.lock").open("w", encoding="utf-8") if engine.group.rank == 0 else None
    deadline = time.monotonic() + ORPHAN_SECONDS
    while file is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                problem = f"another process still trains this run after {ORPHAN_SECONDS} s"
                break
            time.sleep(0.2)
    if any(engine.group.gather(problem)):
        raise RunError(
            problem or "rank 0 found another worker", kind="node", hint="End it, then run the command again."
        )
    try:
        yield
    finally:
        if file is not None:
            file.close()


@contextmanager
def tracking(order: WorkOrder, run: RunDirectory, engine: Engine, display: Report) -> Iterator[Report]:
    """Give rank 0 the run's tracker, and the others a report that says nothing."""
    if engine.group.rank != 0:
        yield lambda line: None
        return
    job = order.loaded.job
    mirrors = open_mirrors(
        job.tracking, folder=run.root, name=job.name, run_id=order.run_id, params=job.train.model_dump()
    )
    tracker = Tracker(run.metrics, attempt=next_attempt(run.metrics), mirrors=mirrors, also=display)
    try:
        yield tracker.report
    finally:
        tracker.close()


def resume(training: Training, engine: Engine, run: RunDirectory, *, run_id: str, report: Report) -> None:
    """Go on from the newest checkpoint that is whole. Rank 0 chooses, so that all ranks take the same one."""
    step: int | None = None
    notes: list[str] = []
    if engine.group.rank == 0:
        newest, notes = newest_whole(run.checkpoints, run_id=run_id)
        step = newest.step if newest else None
    step = engine.group.gather(step)[0]
    if step is not None:
        (chosen,) = [one for one in find_checkpoints(run.checkpoints, run_id=run_id) if one.step == step]
        training.restore(load_checkpoint(chosen, engine))
        engine.scaler.scale = training.progress.loss_scale
        engine.scaler.good_steps = training.progress.good_steps
    event = {"step": training.progress.step, "epoch": training.epoch, "kind": "event"}
    for note in notes:
        report({**event, "event": note})
    report({**event, "event": f"resumed at step {step}" if step else "started", "workers": engine.group.size})


def conclude(
    order: WorkOrder,
    run: RunDirectory,
    training: Training,
    engine: Engine,
    validation: Validation,
    final: FinalTasks,
    datasets: Datasets,
) -> dict[str, Any]:
    """Choose, compare, export. Returns the parts of result.json that come of it."""
    job = order.loaded.job
    if training.progress.step == 0:
        raise RunError("no step was trained", kind="nothing_learned", hint="Check train.epochs and train.max_steps.")
    selection = choose(training, engine, validation, run.checkpoints, run_id=order.run_id)
    difference = require_difference(engine, datasets.train, validation.layout, model=job.model)
    base, tuned = evaluate_both(engine, final, validation, model=job.model)
    outcome: dict[str, Any] = {}
    if engine.group.rank == 0:
        chosen = next(
            one for one in find_checkpoints(run.checkpoints, run_id=order.run_id) if one.step == selection.step
        )
        metric = job.evaluate.task.metric
        write_json(run.selection, selection.to_record(metric=metric))
        draft = export(chosen, run, tokenizer=validation.tokenizer, card="", full=job.method.kind == "full")
        evaluation = write_evaluation(
            run,
            final,
            base,
            tuned,
            config=job.evaluate,
            run_id=order.run_id,
            model=job.model,
            tuned_step=selection.step,
            tuned_digest=draft,
        )
        card = model_card(
            name=job.name,
            model=job.model,
            method=job.method.model_dump(),
            evaluation=evaluation,
            run_id=order.run_id,
        )
        (run.adapter / "README.md").write_text(card, encoding="utf-8")
        outcome = summarise(run, evaluation, selection=selection.to_record(metric=metric), digest=draft)
        outcome["max_abs_difference_from_base"] = difference
    return {**outcome, **(engine.group.gather(outcome)[0])}


def summarise(
    run: RunDirectory, evaluation: dict[str, Any], *, selection: dict[str, Any], digest: str
) -> dict[str, Any]:
    """Return result.json's view of an evaluation."""
    task = evaluation["tasks"][0]
    forgetting = evaluation["forgetting"]
    compared = {key: task[key] for key in ("metric", "n", "base", "tuned")}
    return {
        "verdict": evaluation["verdict"]["decision"],
        "verdict_reasons": evaluation["verdict"]["reasons"],
        "selected": {key: selection[key] for key in ("step", "metric", "value", "last_value")},
        "test": compared if evaluation["split"] == "test" else None,
        "validation": compared if evaluation["split"] == "validation" else None,
        "tasks": evaluation["tasks"],
        "forgetting": {key: forgetting[key] for key in ("score", "low", "high", "n")} if forgetting else None,
        "adapter": {"path": str(run.adapter), "digest": digest},
    }


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
        "tokens_per_second": clock.tokens / clock.train if clock.train and clock.tokens else 0.0,
        "peak_memory_bytes": max(engine.group.gather(peak_memory_bytes())),
        "optimizer_bytes_per_rank": engine.group.gather(engine.optimizer_bytes()),
        "workers_seen": engine.group.size,
    }


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_ray_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Entry of a Ray Train worker."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return work(payload["order"], told=payload["told"], display=lambda line: None)
