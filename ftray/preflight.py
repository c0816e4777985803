"""What is known, and refused, before a run starts: its data, its plan, its places.

Nothing is written or started here; a cluster that grows may be asked for nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ftray.artifacts import RunDirectory
from ftray.audit.report import AuditReport
from ftray.audit.table import spell_rows
from ftray.data.conversations import REPLAY
from ftray.errors import InputError
from ftray.job import LoadedJob
from ftray.prepare import Datasets
from ftray.registry.registry import open_registry
from ftray.train.batches import count_labels
from ftray.train.plan import DataCounts, Machine, Plan, make_plan


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


def require_registrable(loaded: LoadedJob) -> None:
    """Refuse, before anything is started, a name that the registry could not take at the end."""
    if not loaded.smoke:
        open_registry(loaded.storage, loaded.place.registry_url).require_free(loaded.job.name)
