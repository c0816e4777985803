"""The campaign as the plain sides read it: rows as tokens, the rows of every step, and each trial's learning rates.

All of it is ftray's own, so that nothing but the way of running differs. It is written before any clock starts: the
plain sides neither read data nor tokenize.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftray.job import LoadedJob, load_job, run_directory, run_id_of
from ftray.preflight import check
from ftray.sweep.rungs import grace_tokens
from ftray.train.batches import StepSampler
from ftray.train.plan import Plan
from ftray.work import build_tasks

Record = dict[str, Any]


def make_campaign(job_file: Path, sets: list[str], settings: Record) -> Record:
    """Return what the plain sides need to know of this job and its space, as JSON types."""
    loaded = load_job(job_file, sets=sets)
    run_id = run_id_of(loaded)
    prepared = check(loaded, run_id=run_id, run=run_directory(loaded, run_id))
    datasets, plan, metric = prepared.datasets, prepared.plan, loaded.job.evaluate.task
    task, _ = build_tasks(loaded.job, datasets)
    sampler = StepSampler(datasets.train, batch_size=plan.batch_size, seed=plan.seed)
    place = {id(example): index for index, example in enumerate(datasets.train)}
    steps = [sampler.step(step) for step in range(plan.total_steps)]
    tokens = sum(len(example.tokens) for step in steps for example in step)
    return {
        "model": loaded.job.model,
        "seed": plan.seed,
        "train": [{"tokens": row.tokens.tolist(), "is_label": row.is_label.tolist()} for row in datasets.train],
        "validation": [
            {
                "tokens": row.example.tokens.tolist(),
                "is_label": row.example.is_label.tolist(),
                "prompt": list(row.prompt_tokens),
                "expected": row.expected,
            }
            for row in task.rows
        ],
        "batches": [[place[id(example)] for example in step] for step in steps],
        "evaluate_at": [step for step in range(1, plan.total_steps + 1) if plan.evaluates_at(step)],
        "max_new_tokens": metric.max_new_tokens,
        "stop_token_ids": list(datasets.tokenization.stop_token_ids),
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        "trials": [_trial(loaded, plan, config) for config in configurations(loaded)],
        "asha": {**settings["asha"], **_rungs(plan, tokens)},
        "plain": settings["plain"],
        "recipe": settings["recipe"],
    }


def configurations(loaded: LoadedJob) -> Iterator[Record]:
    """Yield every point of the grid."""
    assert loaded.job.sweep is not None
    assert loaded.job.sweep.space is not None, "the benchmark lists its space"
    space = loaded.job.sweep.space
    for values in itertools.product(*(dimension for dimension in space.values() if isinstance(dimension, list))):
        yield dict(zip(space, values, strict=True))


def name_of(config: Record) -> str:
    """Return the name under which the sides' trials of one configuration are compared."""
    rate = float(config["learning_rate"])
    return f"rank {config['rank']}, alpha/rank {config['alpha_over_rank']:g}, learning rate {rate:g}"


def _trial(loaded: LoadedJob, plan: Plan, config: Record) -> Record:
    method = loaded.job.method
    schedule = replace(plan.schedule, peak=float(config["learning_rate"]))
    return {
        "name": name_of(config),
        "rank": config["rank"],
        "alpha": config["alpha_over_rank"] * config["rank"],
        "dropout": method.dropout,
        "target_modules": method.target_modules,
        "learning_rates": [schedule.at(step) for step in range(plan.total_steps)],
    }


def _rungs(plan: Plan, tokens: int) -> Record:
    """Return where the first rung is, and a number of tokens that no trial reaches: each ends by its own last step.

    As `ftray sweep` reckons it.
    """
    return {"grace_period": grace_tokens(plan, {}), "max_t": tokens + 1}


def write_campaign(campaign: Record, file: Path) -> None:
    """Write it where the plain sides read it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(campaign), encoding="utf-8")
