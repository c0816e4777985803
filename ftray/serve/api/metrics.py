"""What the endpoint counts, for Prometheus: per experiment, arm and model, and what the engine says of itself.

The same series stand at /metrics and, on a cluster, among Ray's metrics (with `ray_` before their names), where each
engine also tells its own counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ftray.observe.measures import Instruments, Measure
from ftray.serve.asking import Engine, EngineState

MEDIA_TYPE = CONTENT_TYPE_LATEST
MOST_SERIES = 200
"""Combinations of experiment, arm and model with series of their own; what comes later is counted as `other`."""
OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
NAMES = ("experiment", "arm", "model")
ENGINE_GAUGES = {
    "running": "Answers that are being generated.",
    "waiting": "Answers that wait for a slot.",
    "slots": "Answers that can be generated at a time.",
    "adapters": "Adapters that are loaded.",
}
ENGINE_COUNTERS = {
    "steps": "Forward passes.",
    "prompt_tokens": "Tokens of prompts, shadows' too.",
    "completion_tokens": "Tokens of answers, shadows' too.",
}
"""What an engine says of itself, as `ftray_engine_<name>`."""


@dataclass(frozen=True, slots=True)
class Who:
    """Whose answer it is. The model is a digest's beginning, or `base`."""

    experiment: str
    arm: str
    model: str


class Meters:
    """All series of one process of the API."""

    def __init__(self, engine: Engine, instruments: Instruments | None = None) -> None:
        """`instruments`: where the numbers go beside /metrics."""
        self._registry = registry = CollectorRegistry()
        self._seen: set[Who] = set()
        registry.register(_EngineCollector(engine))

        def seconds(name: str, text: str) -> _Series:
            histogram = Histogram(name, text, NAMES, registry=registry, buckets=SECONDS)
            return _Series(histogram, Measure(name, text, NAMES, "histogram", SECONDS), instruments)

        def counter(name: str, text: str, labels: tuple[str, ...] = NAMES) -> _Series:
            counted = Counter(name, text, labels, registry=registry)
            return _Series(counted, Measure(name, text, labels, "counter"), instruments)

        self._first = seconds("ftray_time_to_first_token_seconds", "From the request to its first token.")
        self._between = seconds("ftray_inter_token_seconds", "Between the pieces of one answer.")
        self._whole = seconds("ftray_answer_seconds", "From the request to the end of its last answer.")
        self._prompt = counter("ftray_prompt_tokens", "Tokens of prompts.")
        self._completion = counter("ftray_completion_tokens", "Tokens of answers.")
        self._ends = counter("ftray_answers", "Answers by how they ended.", (*NAMES, "end"))
        self._shadows = counter("ftray_shadow_answers", "Answers of shadow arms.", (*NAMES, "end"))
        self._requests = counter("ftray_requests", "Requests by route and status.", ("route", "status"))
        self._moves = counter(
            "ftray_reassigned", "Requests first asked of an arm that was not their unit's.", ("experiment",)
        )

    def request(self, route: str, status: int) -> None:
        """Count a request. `route` is a route's pattern, not a path."""
        self._requests.inc((route, str(status)))

    def first_piece(self, who: Who, seconds: float) -> None:
        """Note when an answer began."""
        self._first.observe(self._labels(who), seconds)

    def next_piece(self, who: Who, seconds: float) -> None:
        """Note the time since the piece before."""
        self._between.observe(self._labels(who), seconds)

    def answered(
        self, who: Who, seconds: float, *, prompt_tokens: int, completion_tokens: int, ends: list[str]
    ) -> None:
        """Note a request whose answers are all there."""
        labels = self._labels(who)
        self._whole.observe(labels, seconds)
        self._prompt.inc(labels, prompt_tokens)
        self._completion.inc(labels, completion_tokens)
        for end in ends:
            self._ends.inc((*labels, end))

    def broken(self, who: Who, end: str) -> None:
        """Note a request whose answers did not come to their end: `cancelled`, or an error's code."""
        self._ends.inc((*self._labels(who), end))

    def shadow(self, who: Who, end: str) -> None:
        """Note a shadow's answer: `answered`, `shed` or `failed`."""
        self._shadows.inc((*self._labels(who), end))

    def reassigned(self, experiment: str) -> None:
        """Note that the store knew a unit under another arm than its hash says."""
        self._moves.inc((experiment,))

    def text(self) -> bytes:
        """Return everything in Prometheus's format."""
        return generate_latest(self._registry)

    def _labels(self, who: Who) -> tuple[str, str, str]:
        if who not in self._seen:
            if len(self._seen) >= MOST_SERIES:
                return OTHER, OTHER, OTHER
            self._seen.add(who)
        return who.experiment, who.arm, who.model


class _Series:
    """One series at /metrics and, where there are instruments, elsewhere."""

    def __init__(self, metric: Any, measure: Measure, instruments: Instruments | None) -> None:
        self._metric, self._measure, self._instruments = metric, measure, instruments

    def inc(self, labels: tuple[str, ...], by: int = 1) -> None:
        self._metric.labels(*labels).inc(by)
        if self._instruments is not None and by > 0:
            self._instruments.add(self._measure, by, dict(zip(self._measure.labels, labels, strict=True)))

    def observe(self, labels: tuple[str, ...], value: float) -> None:
        self._metric.labels(*labels).observe(value)
        if self._instruments is not None:
            self._instruments.observe(self._measure, value, dict(zip(self._measure.labels, labels, strict=True)))


class EngineMeters:
    """Tells what one engine says of itself; counters by what they have grown since it was last told."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._told: dict[str, int] = {}

    def tell(self, state: EngineState) -> None:
        """Tell the engine's counts as they are now."""
        for name, value in gauges_of(state).items():
            self._instruments.set(Measure(f"ftray_engine_{name}", ENGINE_GAUGES[name], ()), value, {})
        for name, text in ENGINE_COUNTERS.items():
            value, before = int(getattr(state, name)), self._told.get(name, 0)
            if value > before:
                self._instruments.add(Measure(f"ftray_engine_{name}", text, (), "counter"), value - before, {})
            self._told[name] = value


def gauges_of(state: EngineState) -> dict[str, int]:
    """Return what an engine has at this moment."""
    return {
        "running": state.running,
        "waiting": state.waiting,
        "slots": state.slots,
        "adapters": len(state.digests),
    }


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        # The engine need not have started when it is registered.
        return iter(())

    def collect(self) -> Iterator[Metric]:
        state = self._engine.state()
        for name, value in gauges_of(state).items():
            yield GaugeMetricFamily(f"ftray_engine_{name}", ENGINE_GAUGES[name], value=value)
        for name, text in ENGINE_COUNTERS.items():
            yield CounterMetricFamily(f"ftray_engine_{name}", text, value=getattr(state, name))
