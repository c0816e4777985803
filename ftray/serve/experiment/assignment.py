"""Which arm a unit gets: a pure function of the experiment's salt and weights, so that any replica says the same.

Once a unit has been exposed, the store's answer counts and not this one: weights may have changed since.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from ftray.serve.experiment.spec import Experiment, propensities


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The arm that a unit would be exposed to now."""

    arm: str
    propensity: float
    """The arm's present share of the units that take part; 1 for a unit that does not."""
    is_included: bool
    """False: the unit takes no part, gets the control's answers and is not counted."""


def assign(experiment: Experiment, unit: str) -> Assignment:
    """Return a unit's arm under the present weights.

    One hash says whether the unit takes part, an independent one which arm it gets.
    """
    spec = experiment.spec
    if _place(experiment, "include", unit) >= spec.include:
        return Assignment(arm=spec.control, propensity=1.0, is_included=False)
    shares = propensities(experiment.weights)
    place, reached = _place(experiment, "arm", unit), 0.0
    arm = spec.arms[-1].name  # where rounding leaves the last share's end below 1
    for one in spec.arms:
        reached += shares[one.name]
        if place < reached:
            arm = one.name
            break
    return Assignment(arm=arm, propensity=shares[arm], is_included=True)


def _place(experiment: Experiment, purpose: str, unit: str) -> float:
    """Return a number from 0 to below 1 that is uniform over units, and independent for each purpose.

    The first 53 bits of the SHA-256 of salt, purpose, experiment and unit, as a JSON list: no two are spelled alike.
    """
    spelled = json.dumps([experiment.salt, purpose, experiment.spec.name, unit]).encode()
    return (int.from_bytes(hashlib.sha256(spelled).digest()[:8], "big") >> 11) / 2**53
