"""An experiment with its running sums, as its row in the store has it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from ftray.serve.experiment.spec import Experiment, ExperimentSpec, OutOfRange
from ftray.serve.experiment.tally import Tally
from ftray.serve.outcomes.database import Row

SAME_SHARE = 1e-9
"""Shares closer than this are the same one, computed elsewhere."""
COLUMNS = "spec, digests, weights, status, reason, salt, created_at, revision, tally"


@dataclass(slots=True)
class Open:
    """An experiment with its sums, as of a revision."""

    experiment: Experiment
    revision: int
    tally: Tally
    shares: list[dict[str, float]]
    """All that it has had; the version of a weighting is its position."""
    is_changed: bool = False
    points: list[dict[str, Any]] = field(default_factory=list)
    """Of the history, not written yet."""

    @property
    def is_running(self) -> bool:
        return self.experiment.status == "running"


def opened(row: Row, shares: list[dict[str, float]]) -> Open:
    """Return an experiment from its row (COLUMNS)."""
    spec = ExperimentSpec.model_validate_json(row[0])
    experiment = Experiment(
        spec=spec,
        digests=json.loads(row[1]),
        weights=json.loads(row[2]),
        status=row[3],
        reason=row[4],
        salt=row[5],
        created_at=row[6],
    )
    tally = Tally.from_record(spec, json.loads(row[8]))
    return Open(experiment=experiment, revision=row[7], tally=tally, shares=shares)


def weighting_of(shares: list[dict[str, float]], arm: str, propensity: float) -> int:
    """Return the last weighting in which the arm had this share.

    A replica may not have heard yet that the weights have changed: what it drew with is what counts.
    """
    for version in range(len(shares) - 1, -1, -1):
        if abs(shares[version].get(arm, math.inf) - propensity) <= SAME_SHARE:
            return version
    raise OutOfRange(f"the arm {arm!r} has never had the share {propensity:g}")
