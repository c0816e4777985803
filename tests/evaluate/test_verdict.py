"""Ship, do not ship, or inconclusive, and the sentences that say why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ftray.evaluate.compare import TaskComparison
from ftray.evaluate.config import EvaluateConfig
from ftray.evaluate.forgetting import measure_forgetting
from ftray.evaluate.intervals import Estimate
from ftray.evaluate.outputs import Outputs
from ftray.evaluate.record import evaluation_record
from ftray.evaluate.verdict import decide


def about(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def comparison(base: float, tuned: float, *, p_value: float = 1e-6, **changes: Any) -> TaskComparison:
    lower = changes.get("metric") == "bits_per_byte"
    harm = tuned - base if lower else base - tuned
    fields: dict[str, Any] = {
        "name": "task", "role": "task", "metric": "exact_match", "higher_is_better": not lower, "n": 100,
        "base": about(base), "tuned": about(tuned), "difference": about(tuned - base), "paired": None,
        "p_value": p_value, "bits_per_byte_change": harm if lower else None, "collapse": None,
        "grading": "likelihood" if lower else "right_or_wrong", "degraded": round(100 * max(0, harm)), "ended": None,
        "resampled_harm": np.random.default_rng(0).normal(harm, 0.01, size=2000),
    }  # fmt: skip
    return TaskComparison(**(fields | changes))


def probe(name: str, base: float, tuned: float, metric: str = "exact_match") -> TaskComparison:
    return comparison(base, tuned, role="general", name=name, metric=metric)


GOOD = comparison(0.0, 0.97)


@pytest.mark.parametrize(
    ("task", "probes", "decision", "words"),
    [
        (GOOD, [], "ship", "Forgetting was not measured"),
        (GOOD, [probe("facts", 0.6, 0.58)], "ship", "within their limits"),
        (GOOD, [probe("facts", 0.6, 0.5)], "do_not_ship", "10 were right before and are wrong now"),
        (GOOD, [probe("stories", 0.67, 1.19, "bits_per_byte")], "do_not_ship", "'stories' rose by 0.520 bits"),
        (GOOD, [probe("stories", 0.67, 0.7, "bits_per_byte")], "ship", "'stories' +0.030 bits per byte, limit 0.1"),
        (comparison(0.5, 0.4), [], "do_not_ship", "worse than the base's 50.0%"),
        (comparison(0.5, 0.52, p_value=0.4), [], "inconclusive", "not distinguishable from noise on 100 rows"),
        (comparison(0.5, 0.48, p_value=0.4), [], "inconclusive", "not distinguishable"),
        (
            comparison(0.5, 0.52, p_value=0.4),
            [probe("facts", 0.6, 0.5)],
            "do_not_ship",
            "10 were right before and are wrong now",
        ),
        (comparison(1.0, 0.8, metric="bits_per_byte"), [], "ship", "better than the base's 1.000"),
        (comparison(0.8, 1.0, metric="bits_per_byte"), [], "do_not_ship", "worse than"),
    ],
)
def test_the_verdict_on_the_test_split(
    task: TaskComparison, probes: list[TaskComparison], decision: str, words: str
) -> None:
    forgetting = measure_forgetting([task, *probes], EvaluateConfig())
    verdict = decide(task, forgetting, split="test")
    assert verdict.decision == decision
    assert words in " ".join(verdict.reasons)
    assert "On 100 test rows" in verdict.reasons[0]


def test_without_a_test_split_nothing_is_certain() -> None:
    verdict = decide(GOOD, None, split="validation")
    assert verdict.decision == "inconclusive"
    assert "biased" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("beside", "decision", "words"),
    [
        ({"role": "format", "base": about(0.1), "tuned": about(0.9)}, "ship", "90.0% (89.0% to 91.0%) keep the format"),
        ({"role": "format", "base": about(0.9), "tuned": about(0.8)}, "do_not_ship", "significantly fewer than"),
        ({"role": "format", "base": about(0.9), "tuned": about(0.8), "p_value": 0.2}, "ship", ", fewer than the base"),
        ({"role": "instruction", "base": about(0.6), "tuned": about(0.4)}, "do_not_ship", "instructions of 'rules'"),
        (
            {"role": "instruction", "base": about(0.6), "tuned": about(0.6), "p_value": 1.0},
            "ship",
            "as many as the base",
        ),
    ],
)
def test_format_and_instructions_are_named_and_must_not_get_worse(
    beside: dict[str, Any], decision: str, words: str
) -> None:
    base, tuned = beside.pop("base").value, beside.pop("tuned").value
    verdict = decide(GOOD, None, split="test", beside=[comparison(base, tuned, name="rules", **beside)])
    assert verdict.decision == decision
    assert words in verdict.reasons[1]


def test_the_record_has_the_contracts_keys() -> None:
    record = evaluation_record(
        [GOOD, probe("facts", 0.6, 0.58)],
        Outputs(prefix_validity=(1.0, 0.5), memorised_share=0.25),
        config=EvaluateConfig(),
        split="validation",
        run_id="abc",
        base_name="tiny",
        base_digest="0" * 64,
        tuned_step=40,
        tuned_digest="1" * 64,
    )
    assert set(record) == {
        "schema", "run_id", "split", "selection_biased", "base", "tuned", "tasks", "forgetting", "collapse",
        "memorised_share", "prefix_validity", "prefix_validity_base", "format", "verdict",
    }  # fmt: skip
    assert (record["prefix_validity"], record["prefix_validity_base"]) == ([1.0, 0.5], None)
    assert (record["memorised_share"], record["format"]) == (0.25, None)
    assert record["schema"] == "ftray/evaluation/1"
    assert record["selection_biased"] is True
    assert [task["role"] for task in record["tasks"]] == ["task", "general"]
    assert set(record["forgetting"]) >= {"score", "low", "high", "n", "degraded", "limit", "passed"}
    assert record["verdict"]["decision"] == "inconclusive"


def test_many_questions_are_judged_together() -> None:
    """One p-value of 0.03 among ten is what chance gives."""
    odd = comparison(0.5, 0.45, p_value=0.03, name="rules-0", role="instruction")
    even = [comparison(0.5, 0.5, p_value=1.0, name=f"rules-{i}", role="instruction") for i in range(1, 10)]
    assert decide(GOOD, None, split="test", beside=[odd]).decision == "do_not_ship"
    assert decide(GOOD, None, split="test", beside=[odd, *even]).decision == "ship"
