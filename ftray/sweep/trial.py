"""One trial before it runs: a configuration of the space, and the job and plan that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ftray.campaign import Config
from ftray.job import Job
from ftray.train.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """What a trainer needs to know of a trial; crosses process borders."""

    trial_id: str
    """The first 12 hex digits of the digest of what decides its weights: equal trials have equal ids."""
    config: Config
    seed: int
    """Of data order, adapter initialisation and dropout; rows are split by the job's own."""
    job: Job
    """The job with this configuration in it, resolved."""
    plan: Plan
    is_default: bool = False

    def to_record(self) -> dict[str, Any]:
        """Return what trial.json says."""
        return {
            "schema": "ftray/trial/1",
            "trial_id": self.trial_id,
            "config": self.config,
            "seed": self.seed,
            "is_default": self.is_default,
            "method": self.job.method.model_dump(mode="json"),
            "train": self.job.train.model_dump(mode="json"),
        }
