"""Numbers of runs and campaigns: what a dashboard sees, and what it sees through a real Ray."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.request import urlopen

import pytest

from ftray.campaign import Point, TrialResult
from ftray.observe import measures
from ftray.observe.measures import CampaignMeasures, Measure, RunMeasures
from ftray.observe.ray_measures import RayInstruments


class Noted:
    """Instruments that remember the last value of a gauge, the sum of a counter, the values of a histogram."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], Any] = {}

    def set(self, measure: Measure, value: float, labels: Mapping[str, str]) -> None:
        assert measure.kind == "gauge"
        self.values[self._key(measure, labels)] = value

    def add(self, measure: Measure, by: float, labels: Mapping[str, str]) -> None:
        assert measure.kind == "counter"
        key = self._key(measure, labels)
        self.values[key] = self.values.get(key, 0) + by

    def observe(self, measure: Measure, value: float, labels: Mapping[str, str]) -> None:
        assert measure.kind == "histogram"
        self.values.setdefault(self._key(measure, labels), []).append(value)

    def _key(self, measure: Measure, labels: Mapping[str, str]) -> tuple[str, ...]:
        assert set(labels) == set(measure.labels), f"{measure.name} has other labels"
        return measure.name, *(labels[name] for name in measure.labels)


RUN = ("router", "0123456789ab")


def run_measures(noted: Any) -> RunMeasures:
    return RunMeasures(noted, job="router", run_id="0123456789abcdef", total_steps=10)


def test_the_lines_of_a_run_are_numbers() -> None:
    noted = Noted()
    tell = run_measures(noted)
    tell({"kind": "event", "step": 0, "epoch": 0.0, "event": "started"})
    tell({"kind": "step", "step": 2, "epoch": 0.2, "train/loss": 1.5, "train/tokens": 64, "train/losses": [1.0, 1.5]})
    tell({"kind": "evaluation", "step": 2, "epoch": 0.2, "val/loss": float("nan"), "val/accuracy": 0.5})
    tell({"kind": "event", "step": 2, "epoch": 0.2, "event": "resumed at step 2"})
    tell({"kind": "event", "step": 2, "epoch": 0.2, "event": "validation loss diverges"})
    values = noted.values
    assert values["ftray_train_step", *RUN] == 2
    assert values["ftray_train_steps_planned", *RUN] == 10
    assert (values["ftray_train_loss", *RUN], values["ftray_train_tokens", *RUN]) == (1.5, 64)
    assert values["ftray_validation_value", *RUN] == 0.5
    assert ("ftray_validation_loss", *RUN) not in values
    events = {key[-1]: value for key, value in values.items() if key[0] == "ftray_train_events"}
    assert events == {"started": 1, "resumed": 1, "other": 1}


def test_time_left_is_at_the_pace_of_this_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    noted, clock = Noted(), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    tell = run_measures(noted)

    def at(seconds: float, **line: Any) -> None:
        clock[0] = seconds
        tell({"kind": "step", "epoch": 0.0, **line})

    at(0, step=1)
    at(10, step=3)
    assert noted.values["ftray_train_seconds_left", *RUN] == pytest.approx(35)
    at(20, kind="event", event="resumed at step 2", step=2)
    at(22, step=4)
    assert noted.values["ftray_train_seconds_left", *RUN] == pytest.approx(6)


def trial(trial_id: str, state: Any = "completed", value: float = 0.5, **more: Any) -> TrialResult:
    point = Point(step=4, validation_accuracy=value, validation_loss=1.0)
    return TrialResult(
        trial_id=trial_id, config={}, seed=0, state=state, reason="", steps=4, epochs=1.0, best=point, last=point,
        seconds=1.0, tokens=100, adapter=None, **more,
    )  # fmt: skip


def result(value: float, tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "step": 2, "tokens": tokens, "validation_accuracy": value, "validation_loss": 1.0, "train_loss": 1.0,
        "best_validation_accuracy": value, "prefix_of": None, **more,
    }  # fmt: skip


@pytest.mark.parametrize(("metric", "best"), [("exact_match", 0.7), ("perplexity", 0.2)])
def test_a_campaign_is_trials_by_state_and_a_best_value(metric: str, best: float) -> None:
    noted = Noted()
    told = CampaignMeasures(noted, job="router", sweep_id="0123456789abcdef", metric=metric, total=5)
    told.on_result("a", {}, result(0.3, 100))
    told.on_result("b", {}, result(0.7, 50))
    told.on_result("a", {}, result(0.2, 150))
    told.on_result("a", {}, result(0.2, 150))
    told.on_result("c", {}, result(0.7, 50, prefix_of="b"))
    told.on_end(trial("a", "pruned", 0.2))
    told.on_end(trial("seeded", role="seed", value=0.9))
    values = noted.values
    states = {key[-1]: value for key, value in values.items() if key[0] == "ftray_sweep_trials"}
    assert states == {"running": 2, "pruned": 1, "completed": 0, "diverged": 0, "failed": 0, "budget": 0}
    assert values["ftray_sweep_tokens", *RUN] == 200
    assert values["ftray_sweep_best_value", *RUN] == best
    assert values["ftray_sweep_trials_planned", *RUN] == 5
    assert values["ftray_trial_validation_value", *RUN, "b"] == 0.7


def test_series_of_trials_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MOST_TRIALS", 2)
    noted = Noted()
    told = CampaignMeasures(noted, job="router", sweep_id="0123456789abcdef", metric="exact_match", total=5)
    for name in "abcd":
        told.on_result(name, {}, result(0.3, 100))
    assert {key[-1] for key in noted.values if key[0] == "ftray_trial_step"} == {"a", "b"}
    assert noted.values["ftray_sweep_trials", *RUN, "running"] == 4


def test_every_series_has_a_name_of_its_own() -> None:
    names = [one.name for one in measures.ALL]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"ftray_[a-z_]+", one.name) and one.text.endswith(".") for one in measures.ALL)


def test_without_ray_nobody_is_told() -> None:
    import ray

    assert not ray.is_initialized()
    RayInstruments().set(measures.STEPS_PLANNED, 1, {"name": "a", "run": "b"})


@pytest.mark.ray
def test_ray_tells_prometheus() -> None:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _metrics_export_port=None)
    try:
        instruments = RayInstruments()
        run_measures(instruments)({"kind": "step", "step": 2, "epoch": 0.2, "train/loss": 1.5})
        run_measures(instruments)({"kind": "event", "step": 2, "epoch": 0.2, "event": "started"})
        waited = Measure("ftray_test_seconds", "A test.", ("arm",), "histogram", (0.1, 1.0))
        instruments.observe(waited, 0.5, {"arm": "base"})
        port = ray.nodes()[0]["MetricsExportPort"]
        deadline = time.monotonic() + 60
        wanted = [
            r'ray_ftray_train_loss\{[^}]*name="router"[^}]*\} 1\.5',
            r'ray_ftray_train_steps_planned\{[^}]*run="0123456789ab"[^}]*\} 10',
            r'ray_ftray_train_events_total\{[^}]*event="started"[^}]*\} 1',
            r'ray_ftray_test_seconds_bucket\{[^}]*le="1\.0"[^}]*\} 1',
        ]
        text = ""
        while not all(re.search(pattern, text) for pattern in wanted) and time.monotonic() < deadline:
            time.sleep(0.5)
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        told = [line for line in text.splitlines() if "ray_ftray" in line]
        assert not [pattern for pattern in wanted if not re.search(pattern, text)], told
    finally:
        ray.shutdown()
