"""How small a difference the validation rows can show: a campaign that cannot tell its trials apart says so first.

Two trials answer the same rows, so that only rows on which one is right and the other wrong tell them apart.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from ftray.errors import InputError
from ftray.space import SweepConfig

SIGNIFICANCE = 0.05
"""Two-sided."""
POWER = 0.8
DISCORDANCE = 2.0
"""Assumed share of rows that only one of two trials gets right, in differences: for each difference of 2 points the
better trial alone is right on 3 rows of 100, the worse one alone on 1. More disagreement needs more rows."""
GOAL = 0.02
"""A difference that is worth knowing, of which the note says how many rows it needs."""


def rows_needed(difference: float, *, discordance: float = DISCORDANCE) -> int:
    """Return how many rows McNemar's test needs to show a difference in accuracy between two trials.

    n = (z_a sqrt(psi) + z_b sqrt(psi - d²))² / d² with the difference d and psi, the share of rows that only one of
    them gets right (Connor 1987, Biometrics 43:207-211), at two-sided significance 0.05 and power 0.8. psi is assumed
    to be `discordance` times d, and at most all rows.
    """
    if not 0 < difference <= 1:
        raise AssertionError(f"a difference in accuracy of {difference}")
    disagreeing = min(1.0, max(1.0, discordance) * difference)
    of_level = NormalDist().inv_cdf(1 - SIGNIFICANCE / 2) * math.sqrt(disagreeing)
    of_power = NormalDist().inv_cdf(POWER) * math.sqrt(disagreeing - difference**2)
    return math.ceil(((of_level + of_power) / difference) ** 2 - 1e-9)


def validation_resolution(rows: int, *, discordance: float = DISCORDANCE) -> float | None:
    """Return the smallest difference in accuracy that so many rows can show, to 1e-4; None where they show none."""
    steps = 10_000
    low, high = 0, steps
    if rows_needed(1.0, discordance=discordance) > rows:
        return None
    # More rows show less: the least step of 1e-4 that they are enough for.
    while high - low > 1:
        middle = (low + high) // 2
        if rows_needed(middle / steps, discordance=discordance) <= rows:
            high = middle
        else:
            low = middle
    return high / steps


def require_resolution(sweep: SweepConfig, rows: int) -> str:
    """Return what differences the validation rows can show. Raises InputError `few_validation_rows`.

    Refused are no rows at all, and with sweep.resolution rows too few for it.
    """
    if rows == 0:
        raise InputError(
            "there are no validation rows: a campaign chooses its trials by them",
            kind="few_validation_rows",
            given=rows,
            allowed="one row or more",
            hint="Set data.validation to a share of the training rows, or to a file.",
            path="data.validation",
        )
    if sweep.resolution is not None and rows < (needed := rows_needed(sweep.resolution)):
        raise InputError(
            f"{rows} validation rows cannot show a difference of {sweep.resolution:g} in accuracy",
            kind="few_validation_rows",
            given={"resolution": sweep.resolution, "validation_rows": rows},
            allowed=f"{needed:,} validation rows or more",
            hint="Hold out more rows by data.validation, or set sweep.resolution higher, or remove it.",
            path="sweep.resolution",
        )
    seen = validation_resolution(rows)
    what = "no difference between two trials" if seen is None else f"differences of {100 * seen:.2g} points or more"
    note = f"{rows:,} validation rows can show {what}"
    if seen is None or seen > GOAL:
        note += f"; {100 * GOAL:g} points need {rows_needed(GOAL):,} rows"
    return f"{note} (in accuracy, 8 times in 10)."
