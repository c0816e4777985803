"""The records that a run's driver writes: job.json, audit.json, plan.json, result.json, the report."""

from __future__ import annotations

import importlib.metadata
import time
from typing import Any

from ftray import __version__
from ftray.artifacts import RunDirectory, now, read_json, write_json
from ftray.errors import FAILURE_KINDS, FtrayError
from ftray.job import LoadedJob, evaluate_digest
from ftray.model.base import identify
from ftray.preflight import Prepared
from ftray.prepare import Datasets
from ftray.storage.mirror import Mirror

PACKAGES = ("ray", "torch", "transformers", "peft", "deepspeed", "datasets")
FINISHED = ("completed", "early_stopped")


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


def write_result(mirror: Mirror, run: RunDirectory, result: dict[str, Any]) -> None:
    """Write result.json, and publish it."""
    write_json(run.result, result)
    mirror.publish(run.result.name)


def write_report(run: RunDirectory, mirror: Mirror) -> None:
    """Write diagnosis.json and report.html from the records, and publish them."""
    from ftray.report.render import render_run

    render_run(run)
    mirror.publish(run.diagnosis.name, run.report.name)
