"""What the endpoint counts, for Prometheus: per experiment, arm and model, and what the engine says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ftray.serve.asking import Engine

MEDIA_TYPE = CONTENT_TYPE_LATEST
MOST_SERIES = 200
"""Combinations of experiment, arm and model with series of their own; what comes later is counted as `other`."""
OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
NAMES = ("experiment", "arm", "model")


@dataclass(frozen=True, slots=True)
class Who:
    """Whose answer it is. The model is a digest's beginning, or `base`."""

    experiment: str
    arm: str
    model: str


class Meters:
    """All series of one process of the API."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        self._seen: set[Who] = set()
        registry.register(_EngineCollector(engine))

        def seconds(name: str, text: str, labels: tuple[str, ...]) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=SECONDS)

        self._first = seconds("ftray_time_to_first_token_seconds", "From the request to its first token.", NAMES)
        self._between = seconds("ftray_inter_token_seconds", "Between the pieces of one answer.", NAMES)
        self._whole = seconds("ftray_answer_seconds", "From the request to the end of its last answer.", NAMES)
        self._prompt = Counter("ftray_prompt_tokens", "Tokens of prompts.", NAMES, registry=registry)
        self._completion = Counter("ftray_completion_tokens", "Tokens of answers.", NAMES, registry=registry)
        self._ends = Counter("ftray_answers", "Answers by how they ended.", (*NAMES, "end"), registry=registry)
        self._shadows = Counter("ftray_shadow_answers", "Answers of shadow arms.", (*NAMES, "end"), registry=registry)
        self._requests = Counter(
            "ftray_requests", "Requests by route and status.", ("route", "status"), registry=registry
        )
        self._moves = Counter(
            "ftray_reassigned", "Requests first asked of an arm that was not their unit's.", ("experiment",),
            registry=registry,
        )  # fmt: skip

    def request(self, route: str, status: int) -> None:
        """Count a request. `route` is a route's pattern, not a path."""
        self._requests.labels(route, str(status)).inc()

    def first_piece(self, who: Who, seconds: float) -> None:
        """Note when an answer began."""
        self._first.labels(*self._labels(who)).observe(seconds)

    def next_piece(self, who: Who, seconds: float) -> None:
        """Note the time since the piece before."""
        self._between.labels(*self._labels(who)).observe(seconds)

    def answered(
        self, who: Who, seconds: float, *, prompt_tokens: int, completion_tokens: int, ends: list[str]
    ) -> None:
        """Note a request whose answers are all there."""
        labels = self._labels(who)
        self._whole.labels(*labels).observe(seconds)
        self._prompt.labels(*labels).inc(prompt_tokens)
        self._completion.labels(*labels).inc(completion_tokens)
        for end in ends:
            self._ends.labels(*labels, end).inc()

    def broken(self, who: Who, end: str) -> None:
        """Note a request whose answers did not come to their end: `cancelled`, or an error's code."""
        self._ends.labels(*self._labels(who), end).inc()

    def shadow(self, who: Who, end: str) -> None:
        """Note a shadow's answer: `answered`, `shed` or `failed`."""
        self._shadows.labels(*self._labels(who), end).inc()

    def reassigned(self, experiment: str) -> None:
        """Note that the store knew a unit under another arm than its hash says."""
        self._moves.labels(experiment).inc()

    def text(self) -> bytes:
        """Return everything in Prometheus's format."""
        return generate_latest(self._registry)

    def _labels(self, who: Who) -> tuple[str, str, str]:
        if who not in self._seen:
            if len(self._seen) >= MOST_SERIES:
                return OTHER, OTHER, OTHER
            self._seen.add(who)
        return who.experiment, who.arm, who.model


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        # The engine need not have started when it is registered.
        return iter(())

    def collect(self) -> Iterator[Metric]:
        state = self._engine.state()
        gauges = {
            "running": (state.running, "Answers that are being generated."),
            "waiting": (state.waiting, "Answers that wait for a slot."),
            "slots": (state.slots, "Answers that can be generated at a time."),
            "adapters": (len(state.digests), "Adapters that are loaded."),
        }
        for name, (value, text) in gauges.items():
            yield GaugeMetricFamily(f"ftray_engine_{name}", text, value=value)
        counters = {
            "steps": (state.steps, "Forward passes."),
            "prompt_tokens": (state.prompt_tokens, "Tokens of prompts, shadows' too."),
            "completion_tokens": (state.completion_tokens, "Tokens of answers, shadows' too."),
        }
        for name, (value, text) in counters.items():
            yield CounterMetricFamily(f"ftray_engine_{name}", text, value=value)
