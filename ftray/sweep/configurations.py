"""The trials of a campaign: what each configuration of its space makes of the job.

Nothing here starts or trains anything, and neither Ray nor torch is imported. Two configurations that would train the
same weights have the same trial_id, so that the second is known before it costs anything.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ftray.artifacts import digest_of
from ftray.campaign import Config
from ftray.errors import InputError
from ftray.job import Job, LoadedJob
from ftray.sweep.fields import apply, refuse, require_value, value_of
from ftray.sweep.prefixes import recipe
from ftray.sweep.space import Space, ends, grid
from ftray.sweep.trial import TrialSpec
from ftray.train.plan import DataCounts, Machine, Plan, make_plan

ID_DIGITS = 12
COUPLED = (("learning_rate", "min_learning_rate"), ("warmup", "epochs", "max_steps", "batch_size"))
"""Fields of which one value can forbid another's: a rate must end below its peak, warm-up before the last step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configurations:
    """Make the trials of one campaign. It crosses process borders."""

    loaded: LoadedJob
    space: Space
    data: DataCounts
    machine: Machine
    max_length: int
    trained_parameters: int
    """Those of the default. An adapter's number of weights is its rank times a number that the model decides."""

    def default(self) -> TrialSpec:
        """Return the job itself as a trial: its configuration is its own value of every field of the space."""
        job = apply(self.loaded.job, {})
        plan = self._plan(job, seed=job.seed)
        values = {field: value_of(job, field) for field in self.space.dimensions}
        config = {field: plan.total_steps if value is None else value for field, value in values.items()}
        return _spec(job, plan, config, is_default=True)

    def spec(self, config: Config, *, seed: int | None = None) -> TrialSpec:
        """Return the trial of a configuration; the default where that is what it comes to.

        Raises InputError for values that their fields refuse, or that exclude each other.
        """
        default = self.default()
        read = {field: require_value(field, value, self.loaded.job) for field, value in config.items()}
        seed = default.seed if seed is None else seed
        # A ratio that is not a round number would give the default's own alpha only nearly.
        job = default.job if read == default.config else apply(self.loaded.job, read)
        spec = _spec(job, self._plan(job, seed=seed), read)
        return default if spec.trial_id == default.trial_id else spec

    def key(self, config: Config) -> str:
        """Return what two configurations share that would train the same weights: the trial_id."""
        return self.spec(config).trial_id

    def grid(self) -> list[TrialSpec]:
        """Return the trials of a space without ranges: the default, then each other point once."""
        specs = [self.default(), *(self.spec(point) for point in grid(self.space))]
        return list({spec.trial_id: spec for spec in specs}.values())

    def require_feasible(self) -> None:
        """Refuse a space with values that the job cannot be trained with, alone or with each other.

        Every value and both ends of every range are tried with the default's other values, and with each other where
        one can forbid the other. Raises InputError `contradictory_space` or `space_too_small`.
        """
        tried = {field: ends(dimension) for field, dimension in self.space.dimensions.items()}
        default = self.default()
        for field, values in tried.items():
            for value in values:
                self._require_plan({field: value}, default)
        for fields in COUPLED:
            swept = [field for field in fields if field in tried]
            for point in itertools.product(*(tried[field] for field in swept)):
                self._require_plan(dict(zip(swept, point, strict=True)), default)
        if not self.space.has_ranges and all(self.spec(point) == default for point in grid(self.space)):
            raise refuse(
                "",
                "every configuration of the space trains the same weights as the job itself",
                kind="space_too_small",
                given=sorted(self.space.dimensions),
                allowed="values that change what is trained",
                hint="Give a field other values; ftray check shows what the job comes to.",
            )

    def _require_plan(self, values: Config, default: TrialSpec) -> None:
        try:
            self.spec({**default.config, **values})
        except InputError as error:
            if error.path is not None and error.path.startswith("sweep."):
                raise
            spelled = ", ".join(f"{field}: {value}" for field, value in values.items())
            field = next(iter(values))
            raise refuse(
                field,
                f"the space allows {spelled}, and then {error.message}",
                kind="contradictory_space",
                given=values,
                allowed=error.allowed,
                hint=f"Narrow {' or '.join(values)} in sweep.space. {error.hint}",
            ) from error

    def _plan(self, job: Job, *, seed: int) -> Plan:
        of_default = self.loaded.job.method.rank
        trained = self.trained_parameters
        return make_plan(
            method=job.method,
            train=job.train,
            compute=job.compute,
            data=self.data,
            machine=self.machine,
            max_length=self.max_length,
            sequence_packing=job.data.sequence_packing,
            seed=seed,
            trained_parameters=trained if job.method.kind == "full" else trained // of_default * job.method.rank,
        )


def _spec(job: Job, plan: Plan, config: Config, *, is_default: bool = False) -> TrialSpec:
    schedule = plan.schedule
    # 0-based rates of every step; warm-up written as a share or as steps is the same.
    curve = [schedule.kind, schedule.peak, schedule.minimum, schedule.warmup_steps, schedule.total_steps]
    identity = {**recipe(job, plan), "schedule": curve}
    return TrialSpec(
        trial_id=digest_of(identity)[:ID_DIGITS],
        config=config,
        seed=plan.seed,
        job=job,
        plan=plan,
        is_default=is_default,
    )
