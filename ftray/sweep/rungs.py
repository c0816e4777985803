"""From where to where a scheduler compares trials, in tokens seen.

Pure functions of the default's plan and of the space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ftray.space import Dimension
from ftray.train.plan import Plan

EVALUATION_SHARE = 0.9
"""Steps differ in tokens: an evaluation counts as reached a little before its mean."""


def grace_tokens(plan: Plan, dimensions: Mapping[str, Dimension]) -> int:
    """Return the tokens before which no trial is stopped for falling behind: the warm-up and one evaluation."""
    warmups = [
        warmup if warmup >= 1 else math.ceil(warmup * plan.total_steps) for warmup in _numbers(dimensions, "warmup")
    ]
    # A share of a longer training is more steps.
    longest = _longest_epochs(plan, dimensions) * plan.steps_per_epoch / plan.total_steps
    warmup = max([plan.schedule.warmup_steps, *warmups]) * max(1.0, longest)
    of_warmup = math.ceil(warmup * _tokens_per_step(plan))
    return max(1, of_warmup, int(EVALUATION_SHARE * plan.evaluate_every * _tokens_per_step(plan)))


def most_tokens(plan: Plan, dimensions: Mapping[str, Dimension]) -> int:
    """Return more tokens than any trial can see: one that ends by its own length is completed, never stopped."""
    of_epochs = _longest_epochs(plan, dimensions) * plan.data.train_tokens
    largest = max([1.0, *(batch / plan.batch_size for batch in _numbers(dimensions, "batch_size"))])
    of_steps = max([plan.total_steps, *_numbers(dimensions, "max_steps")]) * largest * _tokens_per_step(plan)
    return int(2 * max(of_epochs, of_steps)) + 1


def _tokens_per_step(plan: Plan) -> float:
    return plan.data.train_tokens / plan.steps_per_epoch


def _longest_epochs(plan: Plan, dimensions: Mapping[str, Dimension]) -> float:
    return max([plan.total_steps / plan.steps_per_epoch, *_numbers(dimensions, "epochs")])


def _numbers(dimensions: Mapping[str, Dimension], field: str) -> list[float]:
    """Return the values of a field of the space, or the ends of its range."""
    dimension = dimensions.get(field, [])
    values = dimension if isinstance(dimension, list) else dimension.bounds
    return [float(value) for value in values if isinstance(value, int | float)]
