"""The forgetting score counts items; each kind of probe has its own limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ftray.evaluate.compare import Grading, TaskComparison
from ftray.evaluate.config import EvaluateConfig
from ftray.evaluate.forgetting import measure_forgetting
from ftray.evaluate.intervals import Estimate, wilson


def probe(
    name: str, base: float, tuned: float, *, degraded: int, grading: Grading = "right_or_wrong", role: Any = "general"
) -> TaskComparison:
    bits = grading == "likelihood"
    harm = tuned - base if bits else base - tuned
    ends = {one: Estimate(value=value, low=value, high=value) for one, value in (("base", base), ("tuned", tuned))}
    return TaskComparison(
        name=name, role=role, metric="bits_per_byte" if bits else "exact_match", higher_is_better=not bits, n=100,
        difference=Estimate(value=tuned - base, low=0, high=0), paired=None, p_value=1.0,
        bits_per_byte_change=harm if bits else None, collapse=None, grading=grading, degraded=degraded, ended=None,
        resampled_harm=np.random.default_rng(0).normal(harm, 0.01, size=2000), **ends,
    )  # fmt: skip


def test_items_of_all_probes_are_counted() -> None:
    found = measure_forgetting(
        [
            probe("facts", 0.6, 0.65, degraded=2),
            probe("rules", 0.8, 0.74, degraded=6, role="instruction"),
            probe("stories", 0.7, 0.75, degraded=30, grading="likelihood"),
            probe("task", 0.0, 1.0, degraded=50, role="task"),
            probe("format", 1.0, 0.0, degraded=50, role="format"),
        ],
        EvaluateConfig(),
    )
    assert found is not None
    record = found.to_record()
    share = wilson(38, 300)
    assert (record["score"], record["low"], record["high"]) == (share.value, share.low, share.high)
    assert (record["n"], record["degraded"], record["unit"], record["limit"]) == (300, 38, "share", 0.05)
    assert record["parts"]["right_or_wrong"]["score"] == 8 / 200
    assert record["parts"]["likelihood"]["score"] == 0.3
    # Gains count against losses in the mean drop, never in the score.
    assert record["mean_drop"]["value"] == pytest.approx(0.005)
    assert record["mean_drop"]["low"] < 0.005 < record["mean_drop"]["high"]
    assert record["passed"] is True
    assert found.reasons == (
        "The general probes changed within their limits: 8 of 200 items forgotten, 4.0% (2.0% to 7.7%), limit 5.0%; "
        "'stories' +0.050 bits per byte, limit 0.1.",
    )


def test_without_probes_nothing_is_measured() -> None:
    assert measure_forgetting([probe("task", 0.0, 1.0, degraded=0, role="task")], EvaluateConfig()) is None


@pytest.mark.parametrize(
    ("probes", "limits", "passed", "words"),
    [
        # The mean did not move, yet a tenth of what was known is gone.
        ([probe("facts", 0.6, 0.6, degraded=10)], {}, False, "Of 100 general items 10 were right before"),
        ([probe("facts", 0.6, 0.6, degraded=10)], {"max_forgetting": 0.1}, True, "limit 10.0%"),
        ([probe("facts", 0.6, 0.5, degraded=10), probe("more", 0.5, 0.6, degraded=0)], {}, True, "10 of 200"),
        ([probe("summaries", 0.6, 0.5, degraded=40, grading="score")], {}, False, "'summaries' fell from 60.0% to 50"),
        ([probe("summaries", 0.6, 0.58, degraded=40, grading="score")], {}, True, "'summaries' -2.0%, limit -5.0%"),
        ([probe("stories", 0.6, 0.9, degraded=90, grading="likelihood")], {}, False, "rose by 0.300 bits per byte"),
        (
            [probe("stories", 0.6, 0.9, degraded=90, grading="likelihood")],
            {"max_bits_per_byte_increase": 0.4}, True, "+0.300 bits per byte, limit 0.4",
        ),
        # Several probes: each likelihood probe has to keep its limit, and all right-or-wrong items together theirs.
        (
            [probe("a", 0.6, 0.9, degraded=90, grading="likelihood"), probe("b", 0.6, 0.6, degraded=0)],
            {}, False, "Probe 'a' rose",
        ),
    ],
)  # fmt: skip
def test_the_limits_decide(probes: list[TaskComparison], limits: dict[str, float], passed: bool, words: str) -> None:
    found = measure_forgetting(probes, EvaluateConfig(**limits))  # type: ignore[arg-type]
    assert found is not None
    assert found.passed is passed
    assert words in " ".join(found.reasons)
    assert found.to_record()["mean_drop"] is None or any(one.grading != "likelihood" for one in probes)
