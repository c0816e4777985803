"""Everything that can be known about a job before it runs, as one record: what `ftray check` says.

It goes the way `finetune` goes until something would be started, and stops there: no folder is made, Ray stays off.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftray.audit.report import AuditReport
from ftray.audit.table import spell_rows
from ftray.doctor import free_memory
from ftray.errors import InputError
from ftray.estimate import MemoryEstimate, estimate_memory, estimate_time, forward_load, measure_shape
from ftray.job import LoadedJob, run_directory, run_id_of
from ftray.preflight import Prepared, check, require_audit
from ftray.prepare import Datasets
from ftray.ranges import Advice, advise
from ftray.run_records import finished_result, replay_record
from ftray.speed import worker_speed
from ftray.sweep.prepare import plan_campaign, sweep_id_of
from ftray.tracking import require_trackers
from ftray.train.address import ray_address
from ftray.train.checkpoint import find_checkpoints
from ftray.train.plan import Plan

PERCENTILES = (50, 90, 99)


def check_job(loaded: LoadedJob) -> dict[str, Any]:
    """Return the record `ftray/check/1` of a job.

    Raises InputError for what `finetune` would refuse before it starts, a failed dataset gate last.
    """
    job = loaded.job
    require_trackers(job.tracking)
    run_id = run_id_of(loaded)
    prepared = check(loaded, run_id=run_id, run=run_directory(loaded, run_id))
    shape = measure_shape(job.model, job.method)
    datasets, plan = prepared.datasets, prepared.plan
    resources = check_resources(plan)
    load = forward_load(datasets.train, plan)
    memory = estimate_memory(shape, plan, load)
    here = resources["where"] == "this machine"
    speed = worker_speed(plan, rows=load.tokens, inner=shape.hidden, columns=shape.feed_forward, here=here)
    advice = [
        *advise(job.method, job.train, plan, train_field="data.train", parameters=shape.parameters),
        *_about_data(datasets),
        *_about_evaluation(loaded),
        *_about_place(prepared, plan, memory, here=here),
    ]
    campaign = plan_campaign(loaded, prepared, sweep_id=sweep_id_of(loaded)) if job.sweep is not None else None
    record = {
        "schema": "ftray/check/1",
        "run_id": run_id,
        "name": job.name,
        "run": str(prepared.run.root),
        "state": _state(loaded, prepared),
        "smoke": loaded.smoke,
        "model": {"name": job.model, "parameters": shape.parameters, "trained": shape.trained},
        "audit": _audit_record(prepared.audit),
        "rows": {
            "train": datasets.num_task_rows,
            "replay": len(datasets.replay.rows) if datasets.replay else None,
            "validation": len(datasets.validation),
            "test": len(datasets.test) if datasets.test is not None else None,
            "probes": {name: len(rows) for name, rows in datasets.probes.items()},
        },
        "replay": replay_record(datasets),
        "dropped": dict(Counter(one.reason for one in datasets.dropped)),
        "decontaminated": datasets.decontaminated,
        "left_out": datasets.left_out,
        "tokens": _token_record(datasets, plan),
        "steps": _step_record(plan),
        "resources": resources,
        "memory": memory.to_record(),
        "time": estimate_time(shape, plan, datasets.train, speed),
        "plan": plan.to_record(),
        "sweep": campaign.to_record() if campaign else None,
        "warnings": [one.to_record() for one in advice],
        "notes": campaign.notes if campaign else list(datasets.notes),
    }
    _require_audit(prepared.audit, record)
    return record


def check_resources(plan: Plan) -> dict[str, Any]:
    """Return where the workers will run and whether they fit there.

    Ray is not started: a cluster named by RAY_ADDRESS is asked when the run starts. Raises InputError
    `too_few_resources` for this machine.
    """
    cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    if plan.engine == "torch":
        return {"where": "this machine", "fits": True, "cpus": cpus, "gpus": gpus}
    address = ray_address()
    if address is not None:
        return {"where": f"the Ray cluster at {address}", "fits": None, "cpus": None, "gpus": None}
    from ftray.train.cluster import require_resources

    require_resources(plan, [{"CPU": cpus, "GPU": gpus}], "this machine")
    return {"where": "this machine", "fits": True, "cpus": cpus, "gpus": gpus}


def _state(loaded: LoadedJob, prepared: Prepared) -> str:
    """Return what `ftray train` would do now: start, resume, or return a finished run."""
    if finished_result(prepared.run, loaded) is not None:
        return "finished"
    return "resumes" if find_checkpoints(prepared.run.checkpoints, run_id=prepared.run_id) else "new"


def _audit_record(report: AuditReport) -> dict[str, Any]:
    record = report.to_record()
    keys = ("name", "status", "count", "rows", "share", "limit", "accepted", "fix", "examples")
    findings = [{key: one[key] for key in keys} for one in record["checks"] if one["status"] in ("warn", "fail")]
    return {"status": record["status"], "findings": findings}


def _token_record(datasets: Datasets, plan: Plan) -> dict[str, Any]:
    lengths = [len(example.tokens) for example in datasets.train]
    values = np.percentile(lengths, PERCENTILES, method="higher")
    return {
        "epoch": plan.data.train_tokens,
        "labels": plan.data.train_labels,
        "label_share": plan.data.train_labels / plan.data.train_tokens,
        "lengths": {f"p{share}": int(value) for share, value in zip(PERCENTILES, values, strict=True)},
        "longest": plan.data.longest,
        "max_length": datasets.max_length,
        "all_steps": round(plan.data.train_tokens * plan.total_steps / plan.steps_per_epoch),
    }


def _step_record(plan: Plan) -> dict[str, Any]:
    steps = range(1, plan.total_steps + 1)
    return {
        "total": plan.total_steps,
        "per_epoch": plan.steps_per_epoch,
        "epochs": plan.total_steps / plan.steps_per_epoch,
        "warmup": plan.schedule.warmup_steps,
        "effective_batch": plan.batch_size,
        "evaluations": sum(plan.evaluates_at(step) for step in steps),
        "checkpoints": sum(plan.checkpoints_at(step) for step in steps),
    }


def _about_data(datasets: Datasets) -> list[Advice]:
    found: list[Advice] = []
    if datasets.dropped:
        reasons = Counter(one.reason for one in datasets.dropped)
        spelled = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        message = f"{len(datasets.dropped)} rows are left out ({spelled}); rows are never cut"
        found.append(Advice(field="data.max_dropped", given=len(datasets.dropped), message=message))
    return found


def _about_evaluation(loaded: LoadedJob) -> list[Advice]:
    found = []
    if loaded.job.data.test is None:
        message = "without test rows the verdict cannot be better than inconclusive"
        found.append(Advice(field="data.test", given=None, message=message))
    if not loaded.job.evaluate.general:
        message = "without a general probe nobody sees what the model forgets"
        found.append(Advice(field="evaluate.general", given=[], message=message))
    return found


def _about_place(prepared: Prepared, plan: Plan, memory: MemoryEstimate, *, here: bool) -> list[Advice]:
    """Say what will not fit, and a storage folder that cannot be written."""
    found = []
    place = next(folder for folder in (prepared.run.root, *prepared.run.root.parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        message = f"{place} cannot be written; choose another place with --storage or FTRAY_STORAGE"
        found.append(Advice(field="storage", given=str(prepared.run.root.parent), message=message))
    if not here:
        return found
    on_gpu = plan.gpus_per_worker > 0 or (plan.engine == "torch" and torch.cuda.is_available())
    workers = 1 if on_gpu else max(1, plan.min_workers)
    there = torch.cuda.get_device_properties(0).total_memory if on_gpu else free_memory()
    if there is not None and memory.total * workers > there:
        message = (
            f"about {spell_bytes(memory.total)} for each of {workers} workers, and "
            f"{'the GPU' if on_gpu else 'this machine'} has {spell_bytes(there)}: lower train.micro_batch_size, turn "
            "on train.activation_checkpointing, or share the weights with compute.deepspeed.stage: 3"
        )
        found.append(Advice(field="compute.workers", given=workers, message=message))
    return found


def spell_bytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _require_audit(report: AuditReport, record: dict[str, Any]) -> None:
    """Refuse a failed gate as `finetune` does, with what the check knows in the message."""
    try:
        require_audit(report)
    except InputError as error:
        rows, steps, tokens = record["rows"], record["steps"], record["tokens"]
        raise InputError(
            f"{error.message}. The rest is known: {rows['train']} training, {rows['validation']} validation and "
            f"{rows['test'] or 0} test rows, {record['decontaminated']} decontaminated, {tokens['epoch']} tokens "
            f"an epoch ({tokens['label_share']:.1%} labels), {steps['total']} steps",
            kind=error.kind,
            given=error.given,
            allowed=error.allowed,
            hint=error.hint,
            path=error.path,
        ) from error


def render_check(record: dict[str, Any], console: Console) -> None:
    """Print the record on one screen: what is read, what will run, what it takes, what to look at."""
    # Lines are wrapped for people; elsewhere a line is what is searched for.
    show = partial(console.print, soft_wrap=not console.is_terminal)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _lines(record).items():
        if console.is_terminal:
            grid.add_row(name, Text(text))
        else:
            show(Text(f"{name:9} {text}"))
    if console.is_terminal:
        show(grid)
    for one in record["audit"]["findings"]:
        accepted = f" (accepted: {one['accepted']})" if one["accepted"] else ""
        line = f"audit {one['status']}: {one['name']}, {one['count']} of {one['rows']} rows{accepted}. {one['fix']}"
        shown = f" Look at {spell_rows(one['examples'])}." if one["examples"] else ""
        show(Text(line + shown, style="yellow"))
    for one in record["warnings"]:
        source = f" [{one['source']}]" if one["source"] else ""
        show(Text(f"warning: {one['field']}: {one['message']}{source}", style="yellow"))
    for note in record["notes"]:
        show(Text(f"note: {note}"))
    if "decision" in record:
        for line in decision_lines(record["decision"]):
            show(Text(line))


def decision_lines(decision: dict[str, Any]) -> list[str]:
    """Return what was decided, for people: the advice first."""
    advice = {"fine_tune": "Fine-tune.", "prompt": "Prompt instead."}[decision["recommend"]]
    asked = {"as it is": "zero_shot", f"with {decision['shots']} examples": "few_shot"}
    ways = "; ".join(
        f"base {how} {decision[key]['value']:.1%} ({decision[key]['low']:.1%} to {decision[key]['high']:.1%}), "
        f"{decision[key]['prompt_tokens']:.0f} prompt tokens, {decision[key]['seconds']:.2f} s a request"
        for how, key in asked.items()
    )
    return [
        f"decision: {advice} {' '.join(decision['reasons'])}",
        f"asked    {ways}",
        f"saved    {decision['prompt_tokens_saved']:.0f} prompt tokens and {decision['seconds_saved']:.2f} s a request "
        "by not showing examples",
    ]


def _lines(record: dict[str, Any]) -> dict[str, str]:
    rows, tokens, steps, plan = record["rows"], record["tokens"], record["steps"], record["plan"]
    model, memory, time, dropped = record["model"], record["memory"], record["time"], record["dropped"]
    state = {
        "new": "new run",
        "resumes": "goes on from its last checkpoint",
        "finished": "finished: train prints its result and trains nothing",
    }[record["state"]]
    left_out = [f"{count:,} dropped: {reason}" for reason, count in dropped.items()] or ["no row dropped"]
    probes = "".join(f", {count:,} {name}" for name, count in rows["probes"].items())
    schedule = plan["schedule"]
    length = ", ".join(f"{name} {value:,}" for name, value in tokens["lengths"].items())
    parts = ("weights", "gradients", "optimizer", "buckets", "activations", "logits", "process")
    shares = ", ".join(f"{name} {spell_bytes(memory[name])}" for name in parts if memory[name])
    shape = f"{model['parameters'] / 1e6:,.4g}M weights, {model['trained'] / 1e6:,.4g}M trained ({plan['method']})"
    return {
        "run": f"{record['run']}: {state}{', smoke' if record['smoke'] else ''}",
        "model": f"{model['name']}: {shape}",
        "rows": f"{rows['train']:,} train, {rows['validation']:,} validation, "
        f"{'no' if rows['test'] is None else format(rows['test'], ',')} test{probes}",
        **({"sweep": spell_sweep(record["sweep"])} if record["sweep"] else {}),
        **({"replay": spell_replay(record["replay"], tokens["labels"])} if record["replay"] else {}),
        "left out": f"{', '.join(left_out)}; removed from train because an evaluation set asks the same: "
        f"{record['decontaminated']:,}"
        + (f"; nearly like rows of both sides of the split: {record['left_out']:,}" if record["left_out"] else ""),
        "audit": record["audit"]["status"],
        "tokens": f"{tokens['epoch']:,} an epoch, {tokens['label_share']:.1%} carry a label",
        "lengths": f"{length}, longest {tokens['longest']:,} of {tokens['max_length']:,}",
        "steps": f"{steps['total']:,} of {steps['effective_batch']} examples ({steps['epochs']:.3g} epochs), "
        f"{steps['warmup']} warm-up; {steps['evaluations']} evaluations, {steps['checkpoints']} checkpoints",
        "recipe": f"{schedule['kind']} from {schedule['peak']:g} to {schedule['minimum']:g}, {plan['precision']}, "
        f"{plan['micro_batch_size']} {'rows' if plan['packed_length'] else 'examples'} a forward pass",
        "mode": f"{plan['mode_reason']}; on {record['resources']['where']}",
        "memory": f"about {spell_bytes(memory['total'])} a worker ({shares})"
        + (f"; {spell_bytes(memory['host'])} in host memory" if memory["host"] else ""),
        "time": f"{spell_seconds(time['train_seconds'])} for {time['train_flops']:.2g} operations, evaluations not "
        f"counted ({time['assumption']})",
    }


def spell_sweep(sweep: dict[str, Any]) -> str:
    """Return what `ftray sweep` would do in a line."""
    fields = ", ".join(sweep["space"])
    return (
        f"{sweep['trials']} trials over {fields}; {sweep['searcher']} ({sweep['searcher_reason']}), scheduler "
        f"{sweep['scheduler']} ({sweep['scheduler_reason']}); mode {sweep['mode']} ({sweep['mode_reason']})"
    )


def spell_replay(replay: dict[str, Any], labels: int) -> str:
    """Return what is rehearsed in a line. `labels`: of an epoch, replay included."""
    text = (
        f"{replay['rows']:,} rows ({replay['distinct']:,} distinct of {replay['available']:,}), {replay['origin']}: "
        f"{replay['share']:.1%} of an epoch's rows, {replay['labels'] / labels:.1%} of its labels"
    )
    left_out = f"; {replay['dropped']:,} more do not fit" if replay["dropped"] else ""
    waiting = "" if replay["is_sampled"] else "; sampled when the run starts, until then counted at their longest"
    return f"{text}{left_out}{waiting}"


def spell_seconds(seconds: float | None) -> str:
    """Return a duration as people read it."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
