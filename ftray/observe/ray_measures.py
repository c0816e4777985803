"""Numbers through Ray's metrics: every node's agent has them for Prometheus, with Ray's own labels and `ray_` before.

Ray may start after whoever counts, and not at all: then there is nobody to tell.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ftray.observe.measures import Measure


class RayInstruments:
    """Instruments of the Ray that this process is connected to."""

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}

    def set(self, measure: Measure, value: float, labels: Mapping[str, str]) -> None:
        metric = self._metric(measure)
        if metric is not None:
            metric.set(value, tags=dict(labels))

    def add(self, measure: Measure, by: float, labels: Mapping[str, str]) -> None:
        metric = self._metric(measure)
        if metric is not None:
            metric.inc(by, tags=dict(labels))

    def observe(self, measure: Measure, value: float, labels: Mapping[str, str]) -> None:
        metric = self._metric(measure)
        if metric is not None:
            # Ray refuses what is not above zero; clocks may say that nothing has passed.
            metric.observe(max(value, 1e-9), tags=dict(labels))

    def _metric(self, measure: Measure) -> Any:
        # Who has not imported Ray has not started it: seconds that a run in this process need not wait.
        if "ray" not in sys.modules:
            return None
        import ray
        from ray.util import metrics

        if not ray.is_initialized():
            return None
        if measure.name not in self._metrics:
            make: dict[str, Any] = {"gauge": metrics.Gauge, "counter": metrics.Counter, "histogram": metrics.Histogram}
            options: dict[str, Any] = {"boundaries": list(measure.buckets)} if measure.kind == "histogram" else {}
            self._metrics[measure.name] = make[measure.kind](
                measure.name, description=measure.text, tag_keys=measure.labels, **options
            )
        return self._metrics[measure.name]
