"""The `sweep` section of a job: what is searched, how, and for how long.

A dimension is a list of values or a range. What the fields of a space are and which of them can be searched together
is decided in `sweep/space.py`, which knows the rest of the job.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ftray.config import Config

Value = bool | int | float | str
"""What a field of a trial's configuration can be."""
SchedulerName = Literal["asha", "median", "none"]
Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
WholeBounds = Annotated[list[int], Field(min_length=2, max_length=2)]


class Range(Config):
    """A range of numbers: exactly one of these."""

    uniform: Bounds | None = None
    """[low, high], every number as likely as another."""
    loguniform: Bounds | None = None
    """[low, high], both above 0: every order of magnitude as likely as another."""
    int: WholeBounds | None = None
    """[low, high], whole numbers, both ends included."""

    @model_validator(mode="after")
    def _one_rising_range(self) -> Self:
        given = {name: bounds for name in self.model_fields_set if (bounds := getattr(self, name)) is not None}
        if len(given) != 1:
            raise ValueError("a range is exactly one of uniform, loguniform and int, each as [low, high]")
        (name, (low, high)) = next(iter(given.items()))
        if low >= high:
            raise ValueError(f"the range {name}: [{low}, {high}] does not rise: low must be below high")
        if name == "loguniform" and low <= 0:
            raise ValueError(f"loguniform: [{low}, {high}] must begin above 0")
        return self

    @property
    def kind(self) -> Literal["uniform", "loguniform", "int"]:
        """Which of the three it is."""
        return "uniform" if self.uniform else "loguniform" if self.loguniform else "int"

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest number."""
        low, high = self.uniform or self.loguniform or self.int or (0.0, 0.0)
        return low, high


Dimension = Annotated[list[Value], Field(min_length=1)] | Range


class Budget(Config):
    """When a campaign ends, finished or not: exactly one of these."""

    hours: Annotated[float, Field(gt=0)] | None = None
    """Hours by the clock, all attempts together."""
    accelerator_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of trainers: two trainers for an hour are two. On the CPU a trainer is a core."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.hours is None) == (self.accelerator_hours is None):
            raise ValueError("a budget is exactly one of hours and accelerator_hours")
        return self


class SweepConfig(Config):
    """What `ftray sweep` searches. The job without this section is the default configuration, and always a trial."""

    space: dict[str, Dimension] | None = None
    """Fields of `method` and `train`, and `alpha_over_rank`: a list of values, or {uniform|loguniform|int: [low,
    high]}. Null takes the space of the job's preset."""
    trials: Annotated[int, Field(ge=2)] = 16
    """Configurations to try, the default one among them. A grid tries all of its points."""
    searcher: Annotated[str, Field(min_length=1)] | None = None
    """grid, random, optuna, the name of another searcher of Ray Tune, or module:Class. Null: grid where the space has
    no ranges and no more points than trials, else optuna from 10 trials on, else random."""
    scheduler: SchedulerName | None = None
    """What stops trials that fall behind. Null: asha from 8 trials on, else none."""
    mode: Literal["auto", "shared", "trainers"] = "auto"
    """shared: many trials on one copy of the base. trainers: a Ray Train run for each trial."""
    slots: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Trials that share one base; auto measures."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Shared bases, or trials at a time in trainers mode; auto: one for each GPU, or for each CPU."""
    finalists: Annotated[int, Field(ge=1)] = 3
    """The best trials by validation, which are compared with the default on the test rows."""
    resolution: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The smallest difference in accuracy that the validation rows must be able to show; too few rows are refused."""
    budget: Budget | None = None
    """When to stop, finished or not; null: never."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """With more than one the winner is trained again with other seeds, to show the spread."""
