"""Ship, do not ship, or inconclusive, and the sentences that say why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ftray.evaluate.compare import TaskComparison
from ftray.evaluate.config import EvaluateConfig
from ftray.evaluate.intervals import Estimate
from ftray.evaluate.record import evaluation_record
from ftray.evaluate.verdict import decide, measure_forgetting


def about(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def comparison(base: float, tuned: float, *, p_value: float = 1e-6, **changes: Any) -> TaskComparison:
    lower = changes.get("metric") == "bits_per_byte"
    harm = tuned - base if lower else base - tuned
    fields: dict[str, Any] = {
        "name": "task", "role": "task", "metric": "exact_match", "higher_is_better": not lower, "n": 100,
        "base": about(base), "tuned": about(tuned), "difference": about(tuned - base), "paired": None,
        "p_value": p_value, "bits_per_byte_change": harm if lower else None, "collapse": None,
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
        (GOOD, [probe("facts", 0.6, 0.5)], "do_not_ship", "lost 10.0%"),
        (GOOD, [probe("stories", 0.67, 1.19, "bits_per_byte")], "do_not_ship", "'stories' rose by 0.520 bits"),
        (GOOD, [probe("stories", 0.67, 0.7, "bits_per_byte")], "ship", "+0.030 bits per byte"),
        (comparison(0.5, 0.4), [], "do_not_ship", "worse than the base's 50.0%"),
        (comparison(0.5, 0.52, p_value=0.4), [], "inconclusive", "not distinguishable from noise on 100 rows"),
        (comparison(0.5, 0.48, p_value=0.4), [], "inconclusive", "not distinguishable"),
        (comparison(0.5, 0.52, p_value=0.4), [probe("facts", 0.6, 0.5)], "do_not_ship", "lost 10.0%"),
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


def test_gains_count_against_losses_but_a_fallen_probe_is_named() -> None:
    forgetting = measure_forgetting([GOOD, probe("up", 0.4, 0.5), probe("down", 0.6, 0.5)], EvaluateConfig())
    assert forgetting is not None
    assert forgetting.passed
    assert forgetting.to_record() == {
        "score": pytest.approx(0.0), "low": pytest.approx(-0.014, abs=0.003), "high": pytest.approx(0.014, abs=0.003),
        "unit": "score", "n": 200, "degraded": 1, "limit": 0.05, "passed": True,
    }  # fmt: skip
    assert "Probe 'down' fell from 60.0% to 50.0%." in forgetting.reasons


def test_likelihood_probes_make_the_score_only_where_there_are_no_others() -> None:
    stories = probe("stories", 0.6, 0.9, "bits_per_byte")
    alone = measure_forgetting([GOOD, stories], EvaluateConfig())
    mixed = measure_forgetting([GOOD, stories, probe("facts", 0.6, 0.6)], EvaluateConfig())
    assert alone is not None
    assert mixed is not None
    assert (alone.unit, alone.score.value, alone.limit) == ("bits_per_byte", pytest.approx(0.3), 0.10)
    assert (mixed.unit, mixed.score.value, mixed.limit, mixed.n) == ("score", pytest.approx(0.0), 0.05, 100)
    assert not alone.passed
    assert not mixed.passed
    generous = EvaluateConfig(max_bits_per_byte_increase=0.4)
    assert measure_forgetting([GOOD, stories], generous).passed  # type: ignore[union-attr]


def test_the_record_has_the_contracts_keys() -> None:
    record = evaluation_record(
        [GOOD, probe("facts", 0.6, 0.58)],
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
        "memorised_share", "prefix_validity", "verdict",
    }  # fmt: skip
    assert record["schema"] == "ftray/evaluation/1"
    assert record["selection_biased"] is True
    assert [task["role"] for task in record["tasks"]] == ["task", "general"]
    assert set(record["forgetting"]) >= {"score", "low", "high", "n", "degraded", "limit", "passed"}
    assert record["verdict"]["decision"] == "inconclusive"
