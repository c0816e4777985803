"""What Ray Tune calls a trial's config: a configuration of the space, and where it is not the job's own, a seed."""

from __future__ import annotations

from collections.abc import Mapping

from ftray.space import Value
from ftray.sweep.configurations import Configurations
from ftray.sweep.trial import TrialSpec

SEED = "seed"


def spec_of_config(configurations: Configurations, config: Mapping[str, Value]) -> TrialSpec:
    """Return the trial of a Tune config."""
    fields = {field: value for field, value in config.items() if field != SEED}
    seed = config.get(SEED)
    return configurations.spec(fields, seed=None if seed is None else int(seed))
