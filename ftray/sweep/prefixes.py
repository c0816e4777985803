"""What trials have in common: one that differs from a longer one only in its epochs may be its first steps, exactly.

Then the longer one is trained and both are known. Whether it is so depends on the learning rates alone: with a constant
schedule always, with warmup-stable-decay up to the decay, with cosine and linear during warm-up.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ftray.artifacts import digest_of
from ftray.job import Job
from ftray.sweep.fields import method_identity
from ftray.sweep.trial import TrialSpec
from ftray.train.plan import Plan


def recipe(job: Job, plan: Plan) -> dict[str, Any]:
    """Return what decides the weights of each step but the learning rate: the same in all trials of a family."""
    return {
        "method": method_identity(job.method),
        "batch_size": plan.batch_size,
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        "label_smoothing": plan.label_smoothing,
        "precision": plan.precision,
        "seed": plan.seed,
    }


def shared_steps(first: TrialSpec, second: TrialSpec) -> int:
    """Return how many first optimizer steps two trials have in common exactly; 0 where more than the rates differ."""
    if recipe(first.job, first.plan) != recipe(second.job, second.plan):
        return 0
    one, other = first.plan.schedule, second.plan.schedule
    steps = range(min(first.plan.total_steps, second.plan.total_steps))
    return sum(1 for _ in itertools.takewhile(lambda step: one.at(step) == other.at(step), steps))


def is_prefixable(job: Job) -> bool:
    """Return whether trials of a job that differ only in epochs share their steps: rates must not depend on the end.

    A share of all steps as warm-up is another number of steps for each.
    """
    return job.train.schedule in ("constant", "wsd") and (isinstance(job.train.warmup, int) or job.train.warmup == 0)


def ordered(specs: Sequence[TrialSpec]) -> list[TrialSpec]:
    """Return the trials with those that differ only in their length next to each other, the longest first.

    Families come in the order of their first members.
    """
    families: dict[str, list[TrialSpec]] = {}
    for spec in specs:
        families.setdefault(_family(spec), []).append(spec)
    return [
        spec
        for family in families.values()
        for spec in sorted(family, key=lambda one: one.plan.total_steps, reverse=True)
    ]


def _family(spec: TrialSpec) -> str:
    schedule = spec.plan.schedule
    rates = [schedule.kind, schedule.peak, schedule.minimum, spec.job.train.warmup]
    return digest_of({**recipe(spec.job, spec.plan), "rates": rates})
