"""The space of a campaign, checked against its job, and its points: all of a grid, or random ones without end."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from ftray.campaign import Config
from ftray.job import Job
from ftray.presets import FULL_SPACE, LORA_SPACES
from ftray.space import Dimension, Range, SchedulerName, SweepConfig, Value
from ftray.sweep.fields import RATIO, apply, refuse, require_dimension, require_field, value_of

OPTUNA_FROM = 10
"""Trials from which on a model of the space is worth its first random ones (optuna's TPE draws 10)."""
ASHA_FROM = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What is searched: each field's values or range, checked, in the order given."""

    dimensions: dict[str, Dimension]

    @property
    def has_ranges(self) -> bool:
        """Whether there are more points than can be listed."""
        return any(isinstance(dimension, Range) for dimension in self.dimensions.values())

    @property
    def size(self) -> int | None:
        """Points of the grid; None with ranges."""
        if self.has_ranges:
            return None
        return math.prod(len(values) for values in self.dimensions.values() if not isinstance(values, Range))

    def __contains__(self, config: Config) -> bool:
        return set(config) == set(self.dimensions) and all(
            _holds(dimension, config[field]) for field, dimension in self.dimensions.items()
        )


def _holds(dimension: Dimension, value: Value) -> bool:
    if not isinstance(dimension, Range):
        return value in dimension
    low, high = dimension.bounds
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and low <= float(value) <= high and (dimension.kind != "int" or float(value).is_integer())


def resolve_space(job: Job) -> Space:
    """Return what a resolved job searches: its own space, checked, else that of its preset around the job's values.

    Raises InputError, path sweep.space or sweep.space.<field>: `empty_space`, `unsweepable_field`,
    `contradictory_space`, `bad_value`, `space_too_small`; and sweep.searcher or sweep.trials: `contradictory_space`.
    """
    sweep = job.sweep or SweepConfig()
    given = sweep.space if sweep.space is not None else preset_space(job)
    if not given:
        raise refuse(
            "",
            "sweep.space is empty: there is nothing to search",
            kind="empty_space",
            given=given,
            allowed="at least one field with a list of values or a range",
            hint="Name a field, for example learning_rate: [1e-4, 2e-4], or remove `space` to take the preset's.",
        )
    for field in given:
        require_field(field, job)
    _require_no_contradiction(given, job)
    space = Space(dimensions={field: require_dimension(field, given[field], job) for field in given})
    if space.size == 1 and apply(job, next(grid(space))) == apply(job, {}):
        raise refuse(
            "",
            "the space holds one configuration, which is the job itself",
            kind="space_too_small",
            given=next(grid(space)),
            allowed="more than one value for at least one field",
            hint="Give a field more values.",
        )
    _require_grid(sweep, space)
    return space


def preset_space(job: Job) -> dict[str, Dimension]:
    """Return the space of a job's preset. What the job itself says is a point of it, and no field is there twice."""
    spaces = FULL_SPACE if job.method.kind == "full" else LORA_SPACES[job.preset]
    space = {name: values for name, values in spaces.items() if name != "epochs" or job.train.max_steps is None}
    return {field: _around(dimension, value_of(job, field)) for field, dimension in space.items()}


def _around(dimension: Dimension, value: Value | None) -> Dimension:
    """Add a value to a list; move a range, as wide as it is, so that its middle is a value outside it."""
    assert isinstance(value, int | float), "a preset's fields are numbers that every job has"
    if not isinstance(dimension, Range):
        return dimension if value in dimension else sorted([*dimension, value], key=float)
    low, high = dimension.bounds
    if low <= value <= high:
        return dimension
    width = math.sqrt(high / low)
    return Range(loguniform=[value / width, value * width])


def _require_no_contradiction(given: dict[str, Dimension], job: Job) -> None:
    """Refuse fields that decide the same thing, or nothing."""
    constant = given.get("schedule", [job.train.schedule]) == ["constant"]
    clashes = [
        ("alpha" in given and RATIO in given, RATIO, "alpha and alpha_over_rank both set alpha", "one of them"),
        ("epochs" in given and "max_steps" in given, "epochs", "max_steps takes the place of epochs", "one of them"),
        (
            "epochs" in given and job.train.max_steps is not None,
            "epochs",
            f"train.max_steps is {job.train.max_steps}, which takes the place of epochs",
            "max_steps in the space, or no train.max_steps in the job",
        ),
        (
            "min_learning_rate" in given and constant,
            "min_learning_rate",
            "a constant schedule never falls, so that min_learning_rate has no effect",
            "a schedule that falls: cosine, linear or wsd",
        ),
    ]
    for clashing, field, why, allowed in clashes:
        if clashing:
            raise refuse(
                field,
                why,
                kind="contradictory_space",
                given=sorted(given),
                allowed=allowed,
                hint=f"Remove {field} from sweep.space, or what it clashes with.",
            )


def _require_grid(sweep: SweepConfig, space: Space) -> None:
    if sweep.searcher != "grid":
        return
    ranges = [field for field, dimension in space.dimensions.items() if isinstance(dimension, Range)]
    if ranges:
        raise refuse(
            ranges[0],
            f"a grid has no points in a range, and {ranges[0]} is one",
            kind="contradictory_space",
            given=sweep.searcher,
            allowed="lists of values; or searcher: random or optuna",
            hint=f"List the values of {ranges[0]}, or remove sweep.searcher.",
        )
    size = space.size
    if "trials" in sweep.model_fields_set and size is not None and sweep.trials < size:
        raise refuse(
            "",
            f"the grid has {size} points, and sweep.trials is {sweep.trials}",
            kind="contradictory_space",
            given=sweep.trials,
            allowed=f"{size} or more; or searcher: random",
            hint="Remove sweep.trials: a grid tries all of its points. Or take searcher: random.",
            path="sweep.trials",
        )


def grid(space: Space) -> Iterator[Config]:
    """Yield every point of a space without ranges; the last field changes fastest."""
    lists = [values for values in space.dimensions.values() if not isinstance(values, Range)]
    assert len(lists) == len(space.dimensions), "a grid has no ranges"
    for values in itertools.product(*lists):
        yield dict(zip(space.dimensions, values, strict=True))


class Sample(Iterator[Config]):
    """Random points without end, the same for the same seed; numbers have six significant digits. It pickles."""

    def __init__(self, space: Space, *, seed: int) -> None:
        self._space, self._random = space, random.Random(seed)

    def __next__(self) -> Config:
        return {field: _draw(dimension, self._random) for field, dimension in self._space.dimensions.items()}


def _draw(dimension: Dimension, source: random.Random) -> Value:
    if not isinstance(dimension, Range):
        return source.choice(dimension)
    low, high = dimension.bounds
    if dimension.kind == "int":
        return source.randint(int(low), int(high))
    if dimension.kind == "uniform":
        drawn = source.uniform(low, high)
    else:
        drawn = math.exp(source.uniform(math.log(low), math.log(high)))
    return min(high, max(low, float(f"{drawn:.6g}")))


def ends(dimension: Dimension) -> list[Value]:
    """Return all values of a list, and the lowest and highest of a range."""
    if not isinstance(dimension, Range):
        return list(dimension)
    low, high = dimension.bounds
    return [int(low), int(high)] if dimension.kind == "int" else [low, high]


def choose_searcher(sweep: SweepConfig, space: Space) -> tuple[str, str]:
    """Return the searcher's name, and why it is that one."""
    if sweep.searcher is not None:
        return sweep.searcher, "the job says so"
    if space.size is not None and space.size <= sweep.trials:
        return "grid", f"the space has {space.size} points, which {sweep.trials} trials can try"
    if sweep.trials >= OPTUNA_FROM:
        return "optuna", f"from {OPTUNA_FROM} trials on there is something to learn from the first ones"
    return "random", f"{sweep.trials} trials are too few for a searcher that learns from them"


def choose_scheduler(sweep: SweepConfig, num_trials: int) -> tuple[SchedulerName, str]:
    """Return the scheduler's name for so many trials, and why it is that one."""
    if sweep.scheduler is not None:
        return sweep.scheduler, "the job says so"
    if num_trials >= ASHA_FROM:
        return "asha", f"from {ASHA_FROM} trials on some are known to be behind before their end"
    return "none", f"{num_trials} trials are too few to stop one for falling behind the others"
