"""Records of a run that never was: a healthy one to start from, and what is changed in it to make each failure."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from typing import Any

from ftray.job import Job
from ftray.jobfile import apply_sets
from ftray.report.records import Records

LABELS = ("get weather", "play music", "rate book", "book restaurant", "add to playlist")
STEPS = 120
START = 9.0
TOKENS_PER_ANSWER = 5.0
Json = dict[str, Any]


def job(*sets: str) -> Json:
    """Return a resolved job as job.json holds it."""
    content: Json = {
        "name": "router",
        "model": "some-base",
        "data": {"train": {"path": "train.jsonl"}, "test": {"path": "test.jsonl"}},
        "train": {"learning_rate": 2e-4, "epochs": 3},
    }
    apply_sets(content, sets)
    return Job.model_validate(content).model_dump(mode="json")


def noisy(levels: Sequence[float], *, noise: float, seed: int = 0) -> list[float]:
    """Return the levels with Gaussian noise, never below zero."""
    order = random.Random(seed)
    return [max(1e-3, level + order.gauss(0, noise)) for level in levels]


def falling(*, start: float = START, end: float = 0.02, steps: int = STEPS, rate: float = 12.0) -> list[float]:
    """Return a loss that falls exponentially, most of it at once."""
    return [end + (start - end) * math.exp(-rate * step / steps) for step in range(steps)]


def step_lines(losses: Sequence[float], *, norm: float = 2.0, every: int = 10) -> list[Json]:
    """Return the lines of metrics.jsonl, each with all steps since the line before."""
    lines, pending = [], []
    for step, loss in enumerate(losses, start=1):
        pending.append(loss)
        if step == 1 or step % every == 0 or step == len(losses):
            numbers = {"train/loss": loss, "train/losses": pending, "train/grad_norms": [norm] * len(pending)}
            lines.append({"kind": "step", "step": step, **numbers})
            pending = []
    return lines


def evaluation_lines(losses: Sequence[float], train: Sequence[float], values: Sequence[float]) -> list[Json]:
    """Return evaluations spread evenly over the run."""
    every = STEPS // max(1, len(losses))
    return [
        {"kind": "evaluation", "step": every * index, "val/loss": loss, "val/accuracy": value, "train/loss_average": at}
        for index, (loss, at, value) in enumerate(zip(losses, train, values, strict=True), start=1)
    ]


def predictions(
    tuned: Sequence[str] | None = None, *, expected: Sequence[str] | None = None, base: str = "Once upon"
) -> list[Json]:
    """Return held-out rows; five labels in turn, answered rightly, unless said otherwise."""
    wanted = list(expected or [LABELS[row % len(LABELS)] for row in range(100)])
    said = list(tuned or wanted)
    return [
        {
            "task": "task", "row": row, "prompt": f"question {row}", "expected": right, "base": f"{base} {row}",
            "tuned": answer, "base_correct": False, "tuned_correct": answer == right,
            "base_score": 0.0, "tuned_score": float(answer == right),
        }
        for row, (right, answer) in enumerate(zip(wanted, said, strict=True))
    ]  # fmt: skip


def compared(name: str, role: str, base: float, tuned: float, *, p_value: float = 1e-6, bits: bool = False) -> Json:
    """Return one task of evaluation.json."""
    return {
        "name": name,
        "role": role,
        "metric": "bits_per_byte" if bits else "exact_match",
        "higher_is_better": not bits,
        "n": 100,
        "base": {"value": base, "low": base, "high": base},
        "tuned": {"value": tuned, "low": tuned, "high": tuned},
        "paired": None,
        "p_value": p_value,
        "bits_per_byte_change": tuned - base if bits else None,
    }


def evaluation(*tasks: Json, forgot: bool = False, **keys: Any) -> Json:
    """Return evaluation.json; a good task unless said otherwise."""
    given = list(tasks)
    if not any(task["role"] == "task" for task in given):
        given.insert(0, compared("task", "task", 0.0, 0.95))
    return {
        "tasks": given,
        "forgetting": {"score": 0.5 if forgot else 0.0, "low": 0.0, "high": 1.0, "n": 10, "passed": not forgot},
        "collapse": {"distinct_share": 0.05, "top_share": 0.2, "entropy_bits": 2.3},
        "prefix_validity": None,
        **keys,
    }


def check(name: str, status: str, *, count: int, rows: int = 100, **keys: Any) -> Json:
    """Return one check of audit.json."""
    example = {"dataset": "test", "row": 7, "other_dataset": "train", "other_row": 3, "similarity": 1.0}
    return {
        "name": name, "status": status, "count": count, "rows": rows, "share": count / rows, "limit": 0.005,
        "accepted": None, "examples": [example] if count else [], "fix": "", "facts": {}, **keys,
    }  # fmt: skip


def spike(step: int, *rows: int) -> Json:
    """Return the event of a spike."""
    listed = [{"dataset": "train", "row": row, "loss": 9.0 - index} for index, row in enumerate(rows)]
    return {
        "kind": "event", "step": step, "event": "loss_spike", "message": "the loss jumped",
        "train/loss": 7.5, "train/loss_average": 0.4, "rows": listed,
    }  # fmt: skip


HEALTHY_VALIDATION = (0.6, 0.22, 0.14, 0.145, 0.08, 0.079, 0.066, 0.068, 0.075, 0.074)
HEALTHY_TRAIN = (0.9, 0.3, 0.18, 0.14, 0.1, 0.08, 0.06, 0.05, 0.04, 0.04)


def records(
    *,
    sets: Sequence[str] = (),
    losses: Sequence[float] | None = None,
    norm: float = 2.0,
    validation: Sequence[float] = HEALTHY_VALIDATION,
    train: Sequence[float] = HEALTHY_TRAIN,
    values: Sequence[float] | None = None,
    events: Sequence[Json] = (),
    warmup_steps: int = 4,
    answers: Sequence[Json] | None = None,
    compared_on: Json | None = None,
    checks: Sequence[Json] = (),
    failure: Json | None = None,
    smoke: bool = False,
) -> Records:
    """Return the records of a run; healthy, but for what is given."""
    curve = noisy(falling(), noise=0.03) if losses is None else list(losses)
    lines = [
        *step_lines(curve, norm=norm),
        *evaluation_lines(validation, train, values or [0.9] * len(validation)),
        *events,
    ]
    lines = [{"time": "2026-01-02T03:04:05.000Z", "attempt": 1, "epoch": 1.0, **line} for line in lines]
    plan = {
        "total_steps": STEPS,
        "schedule": {"warmup_steps": warmup_steps},
        "data": {"train_rows": 600, "train_labels": int(600 * TOKENS_PER_ANSWER), "train_tokens": 20_000},
    }
    finished = failure is None
    return Records(
        job={"job": job(*sets), "smoke": smoke},
        plan=plan,
        audit={"checks": list(checks)},
        result={"status": "completed" if finished else "failed", "failure": copy.deepcopy(failure)},
        lines=sorted(lines, key=lambda line: (line["step"], line["kind"] != "step")),
        selection={"step": 90} if finished else None,
        evaluation=(evaluation() if compared_on is None else compared_on) if finished else None,
        predictions=list(predictions() if answers is None else answers) if finished else [],
    )
