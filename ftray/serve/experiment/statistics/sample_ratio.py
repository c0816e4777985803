"""Do the arms get the units that their weights say? An e-process that may be looked at after every unit.

Lindon & Malek, "Anytime-valid inference for multinomial count data" (2022): Dirichlet-multinomial against multinomial.
Each unit's own chances are used, so that weights may change. A mismatch is a fault of the plumbing (a cache, a crash in
one arm, a bot), and no outcome is to be trusted with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftray.serve.experiment.statistics.betting import exponential

PRIOR_WEIGHT = 100.0
"""The prior is as strong as this many units that fell as they should."""
ALARM = 1000.0
"""A larger e-value blocks the experiment: where nothing is wrong, that ever happens to less than one in a thousand."""


@dataclass(slots=True)
class SampleRatio:
    """Units and expected units of each arm, and the e-value against their chances."""

    seen: dict[str, int] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    log_e: float = 0.0
    largest: float = 0.0

    def add(self, arm: str, chances: Mapping[str, float]) -> None:
        """Take a unit that fell to `arm`, with the chances that it had of each arm.

        The bet on an arm is its chance times (prior + seen) / (prior + expected); with chances that never change, that
        is the Dirichlet-multinomial with prior 100 * chances.
        """
        tilt = {
            name: (PRIOR_WEIGHT * chance + self.seen.get(name, 0))
            / (PRIOR_WEIGHT * chance + self.expected.get(name, 0.0))
            for name, chance in chances.items()
        }
        self.log_e += math.log(tilt[arm]) - math.log(math.fsum(chances[name] * tilt[name] for name in chances))
        self.largest = max(self.largest, self.log_e)
        self.seen[arm] = self.seen.get(arm, 0) + 1
        for name, chance in chances.items():
            self.expected[name] = self.expected.get(name, 0.0) + chance

    @property
    def e_value(self) -> float:
        """The e-value now."""
        return exponential(self.log_e)

    @property
    def is_blocked(self) -> bool:
        """Whether the e-value has ever been larger than ALARM."""
        return self.largest > math.log(ALARM)

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"seen": self.seen, "expected": self.expected, "log_e": self.log_e, "largest": self.largest}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> SampleRatio:
        """Read what to_record returned."""
        return cls(**record)
