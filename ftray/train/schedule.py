"""Learning rate as a pure function of the step, so that a resumed run needs nothing but its step number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

DECAY_SHARE = 0.2
"""Share of all steps that warmup-stable-decay spends decaying (Hu et al. 2024, arXiv:2404.06395 use 10-20 %)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A learning-rate schedule over `total_steps` optimizer steps."""

    kind: Literal["cosine", "linear", "constant", "wsd"]
    peak: float
    minimum: float
    warmup_steps: int
    total_steps: int

    def at(self, step: int) -> float:
        """Return the learning rate of the optimizer step `step` (0-based)."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        first = self.warmup_steps
        if self.kind == "wsd":
            first = max(first, self.total_steps - math.ceil(DECAY_SHARE * self.total_steps))
            if step < first:
                return self.peak
        # The last step runs at the minimum exactly, unless it is the only one.
        last = self.total_steps - 1
        progress = min(1.0, (step - first) / (last - first)) if last > first else float(last > 0)
        fall = 0.5 * (1 + math.cos(math.pi * progress)) if self.kind == "cosine" else 1 - progress
        return self.minimum + (self.peak - self.minimum) * fall
