"""The whole service as one function: a job in; a run directory with a verdict out.

Everything that can be wrong is found before anything is started; everything that was started can be resumed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ftray import __version__
from ftray.artifacts import RunDirectory, now, read_json, run_lock, write_json
from ftray.audit.report import AuditReport
from ftray.audit.table import spell_rows
from ftray.data.conversations import REPLAY
from ftray.errors import (
    FAILURE_KINDS,
    OUT_OF_MEMORY_HINT,
    FtrayError,
    InputError,
    Interrupted,
    RunError,
    is_out_of_memory,
)
from ftray.follow import following
from ftray.job import LoadedJob, evaluate_digest, run_directory, run_id_of
from ftray.model.base import identify, own_precision
from ftray.observe.measures import RunMeasures
from ftray.observe.ray_measures import RayInstruments
from ftray.observe.spans import root, span
from ftray.prepare import Datasets
from ftray.registry.registry import open_registry
from ftray.registry.store import RECORD_FILE
from ftray.storage.lease import Lease
from ftray.storage.mirror import DRIVER, Mirror, is_record, of_training
from ftray.tracking import require_trackers
from ftray.train.batches import count_labels
from ftray.train.checkpoint import find_checkpoints
from ftray.train.plan import DataCounts, Machine, Plan, make_plan

PACKAGES = ("ray", "torch", "transformers", "peft", "deepspeed", "datasets")
FINISHED = ("completed", "early_stopped")
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's Jobs API in the environment of a command that it runs."""
Display = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job that has been checked against its data and machine."""

    run_id: str
    run: RunDirectory
    datasets: Datasets
    plan: Plan

    @property
    def audit(self) -> AuditReport:
        """What the dataset gate found."""
        assert self.datasets.audit is not None, "the process that checks a job audits its rows"
        return self.datasets.audit


def finetune(
    loaded: LoadedJob,
    *,
    display: Display,
    on_plan: Callable[[Prepared], None],
    on_sampling: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fine-tune, select, compare with the base; return result.json.

    `on_plan` is told what is about to run, `on_sampling` how many replay texts are sampled, of how many, `say` what is
    waited for.

    Raises InputError when nothing was started. A run that started and failed returns its result with the failure in
    it; an interrupted one raises Interrupted after writing its result.
    """
    require_trackers(loaded.job.tracking)
    loaded.place.require()
    require_registrable(loaded)
    run_id = run_id_of(loaded)
    run = run_directory(loaded, run_id)
    mirror = loaded.place.mirror(run.root)
    mirror.fetch(is_record, as_reader=True)
    earlier = finished_result(run, loaded)
    if earlier is not None:
        earlier = register(loaded, run, earlier)
        if not (run.report.exists() and run.diagnosis.exists()):
            write_report(run, mirror)
        return {**earlier, "reused": True}
    with root("run", job=loaded.job.name, run=run_id[:12], smoke=loaded.smoke) as told:
        result = _finetune(loaded, run_id, run, display=display, on_plan=on_plan, on_sampling=on_sampling, say=say)
        told.set(status=result["status"], verdict=result["verdict"], steps=result["steps"])
    return result


def _finetune(
    loaded: LoadedJob,
    run_id: str,
    run: RunDirectory,
    *,
    display: Display,
    on_plan: Callable[[Prepared], None],
    on_sampling: Callable[[int, int], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Do what is left of a run; as `finetune` says."""
    from ftray.sampling import require_same_texts

    mirror = loaded.place.mirror(run.root)
    with span("check"):
        prepared = check(loaded, run_id=run_id, run=run)
    require_audit(prepared.audit)
    require_whole_checkpoints(loaded, prepared.plan)
    # A folder that holds another job's checkpoints is refused before anything is written into it.
    find_checkpoints(run.checkpoints, run_id=run_id)
    require_workers(prepared.plan, say=say)
    run.create()
    with run_lock(run.driver_lock), mirror.holding(DRIVER) as lease:
        # What another machine has come to since.
        mirror.fetch(is_record)
        if prepared.datasets.awaits_sampling:
            sample_replay(loaded, prepared, on_sampling)
            prepared = check(loaded, run_id=run_id, run=run)
            require_audit(prepared.audit)
        require_same_texts(run, run_id=run_id, digest=prepared.datasets.digests.get(REPLAY))
        write_records(loaded, prepared)
        on_plan(prepared)
        result = train_and_evaluate(loaded, prepared, display, say=say, lease=lease)
        if lease is not None:
            lease.verify()
        write_result(mirror, run, result)
        with span("report"):
            write_report(run, mirror)
            result = register(loaded, run, result)
    return result


def write_result(mirror: Mirror, run: RunDirectory, result: dict[str, Any]) -> None:
    """Write result.json, and publish it."""
    write_json(run.result, result)
    mirror.publish(run.result.name)


def require_registrable(loaded: LoadedJob) -> None:
    """Refuse, before anything is started, a name that the registry could not take at the end."""
    if not loaded.smoke:
        open_registry(loaded.storage, loaded.place.registry_url).require_free(loaded.job.name)


def register(loaded: LoadedJob, run: RunDirectory, result: dict[str, Any]) -> dict[str, Any]:
    """Put a finished run's adapter, or model, into the registry; return result.json with its address, written.

    Once for each registry; a smoke run is not for keeping. Raises RunError where the registry cannot be written: the
    run stays finished, and the same command registers it.
    """
    if loaded.smoke or result["status"] not in FINISHED:
        return result
    registry, known = open_registry(loaded.storage, loaded.place.registry_url), result.get("registered")
    if known is not None and registry.has(known["name"], known["digest"]):
        return result
    if not (run.adapter / RECORD_FILE).is_file():
        from ftray.work import describe_adapter

        write_json(run.adapter / RECORD_FILE, describe_adapter(loaded, run, result))
    registered = registry.put(run.adapter, read_json(run.adapter / RECORD_FILE))
    result = {**result, "registered": {"name": registered.name, "digest": registered.digest}}
    write_result(loaded.place.mirror(run.root), run, result)
    return result


def finished_result(run: RunDirectory, loaded: LoadedJob) -> dict[str, Any] | None:
    """Return the result of a finished run of this job, evaluated as the job now says; else None."""
    if not run.result.exists():
        return None
    result: dict[str, Any] = read_json(run.result)
    same_evaluation = result.get("evaluate_digest") == evaluate_digest(loaded)
    if result["status"] not in FINISHED or not same_evaluation:
        return None
    return result if loaded.place.url is None else with_own_paths(result, run)


def with_own_paths(result: dict[str, Any], run: RunDirectory) -> dict[str, Any]:
    """Return result.json with the paths of this machine's working copy, where another one wrote it."""
    adapter = result["adapter"] and {**result["adapter"], "path": str(run.adapter)}
    return {**result, "path": str(run.root), "adapter": adapter}


def check(loaded: LoadedJob, *, run_id: str, run: RunDirectory) -> Prepared:
    """Read the data, run the gate, make the plan. Raises InputError for whatever is wrong."""
    from ftray.estimate import measure_shape
    from ftray.evaluate.lm_eval import require_lm_eval, spell_lm_eval
    from ftray.work import build_tasks, prepare_data

    # Before any data is read: a wrong target module must not wait for the workers to be found.
    shape = measure_shape(loaded.job.model, loaded.job.method)
    require_lm_eval(loaded.job.evaluate.lm_eval_probes, stage=loaded.job.compute.deepspeed.stage)
    datasets = prepare_data(loaded, may_stand_in=True)
    _, final = build_tasks(loaded.job, datasets)
    unseen = [spell_lm_eval(task) for task in final.tasks if task.lm_eval is not None]
    datasets = replace(datasets, notes=[*datasets.notes, *unseen])
    lengths = [len(example.tokens) for example in datasets.train]
    of_task = [example for example in datasets.train if example.dataset != REPLAY]
    counts = DataCounts(
        train_rows=len(datasets.train),
        train_tokens=sum(lengths),
        train_labels=count_labels(datasets.train),
        longest=max(lengths),
        validation_rows=len(datasets.validation),
        test_rows=len(datasets.test or []),
        task_rows=len(of_task),
        task_labels=count_labels(of_task),
    )
    plan = make_plan(
        method=loaded.job.method,
        train=loaded.job.train,
        compute=loaded.job.compute,
        data=counts,
        machine=describe_machine(loaded),
        max_length=datasets.max_length,
        sequence_packing=loaded.job.data.sequence_packing,
        seed=loaded.job.seed,
        trained_parameters=shape.trained,
    )
    return Prepared(run_id=run_id, run=run, datasets=datasets, plan=plan)


def describe_machine(loaded: LoadedJob) -> Machine:
    """Return what a worker has: by the job's word where workers run elsewhere, by looking where it is this process."""
    import torch

    in_process = loaded.job.compute.workers == 0
    has_gpu = torch.cuda.is_available() if in_process else loaded.job.compute.gpus_per_worker > 0
    return Machine(has_gpu=has_gpu, has_bf16=not torch.cuda.is_available() or torch.cuda.is_bf16_supported())


def require_audit(report: AuditReport) -> None:
    """Raise InputError `audit_failed` when the dataset gate fails."""
    record = report.to_record()
    if record["status"] != "fail":
        return
    failed = [one for one in record["checks"] if one["status"] == "fail" and not one["accepted"]]
    names = ", ".join(f"{one['name']} ({one['count']} of {one['rows']} rows)" for one in failed)
    raise InputError(
        f"the dataset gate failed: {names}",
        kind="audit_failed",
        given=[f"{one['name']}: {spell_rows(one['examples'])}" if one["examples"] else one["name"] for one in failed],
        allowed="data that passes the gate, or a job that accepts the check by name with a reason",
        # Of two overlaps that ask for the same change the second is the wider one.
        hint=" ".join({one["fix"].partition(":")[2]: one["fix"] for one in failed}.values())
        + f" Or accept it: audit: {{accept: [{{check: {failed[0]['name']}, reason: ...}}]}}.",
        path="audit.accept",
    )


def require_workers(plan: Plan, *, say: Callable[[str], None]) -> None:
    """Refuse more workers than this machine, or the cluster of RAY_ADDRESS, holds; `say` is told of a wait."""
    if plan.engine == "deepspeed":
        from ftray.train.cluster import require_place

        require_place(plan, say=say)


def join_cluster() -> None:
    """Connect to the cluster that this command was submitted to: it trains alone, and its numbers are the cluster's."""
    if SUBMITTED in os.environ:
        from ftray.train.cluster import connect

        connect()


def require_whole_checkpoints(loaded: LoadedJob, plan: Plan) -> None:
    """Raise InputError where each worker writes a part of a checkpoint, and only rank 0 publishes what it writes."""
    if loaded.place.url is None or plan.method != "full" or plan.workers <= 1:
        return
    raise InputError(
        f"full fine-tuning by {plan.workers} workers writes a part of each checkpoint on every worker, and "
        f"{loaded.place.url} takes only what one of them writes",
        kind="incompatible",
        given={"workers": plan.workers, "storage": loaded.place.url},
        allowed="a folder that all workers share; or LoRA; or one worker",
        hint="Name a shared folder: --storage DIR; or set compute.workers: 1, or method.kind: lora.",
        path="storage",
    )


def sample_replay(loaded: LoadedJob, prepared: Prepared, on_sampling: Callable[[int, int], None]) -> None:
    """Sample the texts that data.replay.sample_base asks for; once, for all workers and all later attempts."""
    from ftray.sampling import sample_base, sampling_of

    tokenizer = prepared.datasets.tokenization.tokenizer
    sampling = sampling_of(loaded, tokenizer)
    assert sampling is not None, "what awaits sampling is sampled from the base"
    sample_base(sampling, tokenizer, on_progress=on_sampling)
    loaded.place.mirror(sampling.texts.file.parent).publish(sampling.texts.file.name)


def write_records(loaded: LoadedJob, prepared: Prepared) -> None:
    """Write job.json, audit.json and plan.json, and publish them: what ran is what is written here."""
    job, run = loaded.job, prepared.run
    record = {
        "schema": "ftray/job/1",
        "run_id": prepared.run_id,
        "smoke": loaded.smoke,
        "attempt_salt": loaded.attempt_salt,
        "base_folder": str(loaded.base),
        "job": job.model_dump(mode="json", exclude={"serve"}),
        "model_digest": identify(job.model).digest,
        "data_digests": prepared.datasets.digests,
        "replay": replay_record(prepared.datasets),
        "ftray_version": __version__,
    }
    write_json(run.job, record)
    write_json(run.audit, prepared.audit.to_record())
    write_json(run.plan, prepared.plan.to_record())
    loaded.place.mirror(run.root).publish(run.job.name, run.audit.name, run.plan.name)


def replay_record(datasets: Datasets) -> dict[str, Any] | None:
    """Return what the records say about replay; None without it."""
    return datasets.replay.to_record() if datasets.replay else None


def train_and_evaluate(
    loaded: LoadedJob,
    prepared: Prepared,
    display: Display,
    *,
    say: Callable[[str], None],
    lease: Lease | None = None,
) -> dict[str, Any]:
    """Run the workers and return result.json, also when they fail. `lease`: what this process holds on the run."""
    started_at, started = now(), time.perf_counter()
    display = also_measured(display, loaded, prepared)
    try:
        outcome = run_workers(loaded, prepared, display, say=say, lease=lease)
        if outcome["data_digests"] != prepared.datasets.digests:
            raise RunError(
                "the workers read other data than this process checked: a file changed in between",
                kind="data",
                given=outcome["data_digests"],
                allowed=prepared.datasets.digests,
                hint="Keep the data files as they are while a run goes on; then run the command again.",
            )
    except KeyboardInterrupt as error:
        outcome = failed_outcome("interrupted", None)
        result = result_record(loaded, prepared, outcome, started_at, started)
        write_json(prepared.run.result, result)
        with contextlib.suppress(RunError):
            if lease is not None:
                # Another machine may have taken the run over: the result in the store is its.
                lease.verify()
            loaded.place.mirror(prepared.run.root).publish(prepared.run.result.name)
        raise Interrupted(
            f"interrupted; {prepared.run.root} keeps its checkpoints",
            kind="interrupted",
            hint="Run the same command again: it goes on from the last checkpoint.",
        ) from error
    except RunError as error:
        outcome = failed_outcome("failed", error)
    except InputError as error:
        # Something was started by now: that is a failed run, not a refused job.
        outcome = failed_outcome("failed", RunError(error.message, kind="data", given=error.given, hint=error.hint))
    except OSError as error:
        outcome = failed_outcome("failed", RunError(f"the run could not go on: {error}", kind="unknown"))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        failure = RunError(f"out of memory: {first}", kind="oom", hint=OUT_OF_MEMORY_HINT)
        outcome = failed_outcome("failed", failure)
    return result_record(loaded, prepared, outcome, started_at, started)


def also_measured(display: Display, loaded: LoadedJob, prepared: Prepared) -> Display:
    """Return a display whose lines are told as numbers, too, through the Ray there is."""
    measures = RunMeasures(
        RayInstruments(), job=loaded.job.name, run_id=prepared.run_id, total_steps=prepared.plan.total_steps
    )

    def show(line: dict[str, Any]) -> None:
        display(line)
        measures(line)

    return show


def run_workers(
    loaded: LoadedJob,
    prepared: Prepared,
    display: Display,
    *,
    say: Callable[[str], None],
    lease: Lease | None = None,
) -> dict[str, Any]:
    """Run the worker function in this process or on Ray Train; what it has left is here then."""
    from ftray.work import WorkOrder, run_ray_worker, work

    order = WorkOrder(
        loaded=loaded,
        plan=prepared.plan,
        run=prepared.run.root,
        run_id=prepared.run_id,
        sampling_precision=own_precision(),
    )
    if prepared.plan.engine == "torch":
        join_cluster()
        return work(order, told=1, display=display, datasets=prepared.datasets, lease=lease)
    from ftray.train.launch import launch

    run, mirror = prepared.run, order.mirror
    try:
        with following(run.metrics, display, mirror=mirror):
            outcome = launch(
                run_ray_worker, {"order": order}, plan=prepared.plan, run=run.root, place=loaded.place, say=say
            )
    except BaseException:
        with contextlib.suppress(RunError):
            mirror.fetch(is_training_record)
        raise
    mirror.fetch(is_training_record)
    return with_own_paths(outcome, run) if mirror.is_remote else outcome


def is_training_record(name: str) -> bool:
    """Return whether a file is what workers leave to whoever started them."""
    return of_training(name) and is_record(name)


def failed_outcome(status: str, error: FtrayError | None) -> dict[str, Any]:
    """Return result.json's fields for a run that has nothing to show."""
    kind = error.kind if error and error.kind in FAILURE_KINDS else "unknown"
    message = ". ".join(part.rstrip(".") for part in (error.message, error.hint) if part) if error else ""
    return {
        "status": status,
        "verdict": "none",
        "verdict_reasons": [],
        "steps": 0,
        "epochs": 0.0,
        "tokens": 0,
        "label_tokens": 0,
        "tokens_per_second": 0.0,
        "peak_memory_bytes": 0,
        "optimizer_bytes_per_rank": [],
        "seconds": {"startup": 0.0, "train": 0.0, "evaluate": 0.0, "checkpoint": 0.0},
        "selected": None,
        "test": None,
        "forgetting": None,
        "adapter": None,
        "registered": None,
        "failure": {"kind": kind, "message": message, "given": error.given} if error else None,
    }


def result_record(
    loaded: LoadedJob, prepared: Prepared, outcome: dict[str, Any], started_at: str, started: float
) -> dict[str, Any]:
    """Return result.json."""
    from ftray.tracking import next_attempt

    plan = prepared.plan
    total = time.perf_counter() - started
    return {
        "schema": "ftray/result/1",
        "run_id": prepared.run_id,
        "name": loaded.job.name,
        "path": str(prepared.run.root),
        "url": loaded.place.spell(prepared.run.root) if loaded.place.url else None,
        "smoke": loaded.smoke,
        "reused": False,
        "attempts": next_attempt(prepared.run.metrics) - 1,
        "method": plan.method,
        "engine": plan.engine,
        "zero_stage": plan.stage,
        "workers": plan.workers,
        "mode_reason": plan.mode_reason,
        "failure": None,
        **outcome,
        "seconds": {**outcome["seconds"], "startup": _startup(outcome["seconds"], total), "total": total},
        "data_digests": prepared.datasets.digests,
        "replay": replay_record(prepared.datasets),
        "evaluate_digest": evaluate_digest(loaded),
        "versions": {"ftray": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "started_at": started_at,
        "ended_at": now(),
    }


def _startup(seconds: dict[str, float], total: float) -> float:
    """Everything that is not training, evaluation or checkpoints: processes, imports, data, model, DeepSpeed."""
    return max(0.0, total - sum(seconds[part] for part in ("train", "evaluate", "checkpoint")))


def write_report(run: RunDirectory, mirror: Mirror) -> None:
    """Write diagnosis.json and report.html from the records, and publish them."""
    from ftray.report.render import render_run

    render_run(run)
    mirror.publish(run.diagnosis.name, run.report.name)
