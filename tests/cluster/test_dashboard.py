"""The Grafana dashboard asks only for metrics that exist: Ray's own dashboards, ftray's /metrics and its measures."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

import pytest
from cluster_files import KUBERAY
from prometheus_client.parser import text_string_to_metric_families

from ftray.observe.measures import ALL, Measure
from ftray.serve.api.metrics import ENGINE_COUNTERS, ENGINE_GAUGES, Meters, Who
from ftray.serve.asking import EngineState

DASHBOARD: dict[str, Any] = json.loads((KUBERAY / "grafana" / "ftray.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
NAME = re.compile(r"\b(?:ftray|ray|autoscaler)_\w+")
ROOMS = ("default", "serve", "serve_deployment", "train", "data")


class Idle:
    """An engine that has answered once; the meters only ask for its state."""

    def state(self) -> EngineState:
        return EngineState(digests=("a",), running=1, waiting=0, slots=4, steps=2, prompt_tokens=3, completion_tokens=4)


def ray_metrics() -> set[str]:
    """Return the names that the installed Ray's own dashboards ask for."""
    names: set[str] = set()
    for room in ROOMS:
        module = importlib.import_module(f"ray.dashboard.modules.metrics.dashboards.{room}_dashboard_panels")
        configs = [value for name, value in vars(module).items() if name.endswith("dashboard_config")]
        assert configs
        for config in configs:
            panels = [*config.panels, *(panel for row in config.rows or [] for panel in row.panels)]
            names |= {name for panel in panels for target in panel.targets for name in NAME.findall(target.expr)}
    return names


def labels_of(expression: str) -> set[str]:
    """Return the labels that an expression keeps."""
    return {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}


@pytest.fixture(scope="module")
def samples() -> dict[str, set[str]]:
    """Return each series of ftray's /metrics with its labels, after a request of every kind."""
    meters = Meters(Idle())  # type: ignore[arg-type]
    who = Who("e", "a", "m")
    meters.request("/v1/models", 200)
    meters.first_piece(who, 0.1)
    meters.next_piece(who, 0.1)
    meters.answered(who, 0.2, prompt_tokens=1, completion_tokens=1, ends=["stop"])
    meters.shadow(who, "answered")
    meters.reassigned("e")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(meters.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("expression", [one for one in EXPRESSIONS if "ftray_" not in one])
def test_ray_has_what_is_asked_of_it(expression: str) -> None:
    asked = set(NAME.findall(expression)) - {"ray_io_cluster"}
    assert asked
    assert asked <= ray_metrics()


@pytest.mark.parametrize("expression", [one for one in EXPRESSIONS if re.search(r"\bftray_", one)])
def test_ftray_has_what_is_asked_of_it(expression: str, samples: dict[str, set[str]]) -> None:
    asked = re.findall(r"\bftray_\w+", expression)
    assert asked
    assert set(asked) <= set(samples)
    labels = labels_of(expression)
    for name in asked:
        assert labels <= samples[name]


def test_everything_the_endpoint_counts_is_shown(samples: dict[str, set[str]]) -> None:
    shown = {name for expression in EXPRESSIONS for name in re.findall(r"\bftray_\w+", expression)}
    counted = {name for name in samples if not name.endswith(("_sum", "_count", "_created"))}
    # Of prompts and loaded adapters there is nothing to watch.
    quiet = {"ftray_prompt_tokens_total", "ftray_engine_prompt_tokens_total", "ftray_engine_adapters"}
    assert counted - shown == quiet


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    for target in panel["targets"]:
        for opening, closing in ("()", "{}", "[]"):
            assert target["expr"].count(opening) == target["expr"].count(closing)
        labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        grouped = labels_of(target["expr"])
        assert not grouped or labels <= grouped, "a legend of a label that the sum has lost is empty"


def test_panels_do_not_lie_on_each_other() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        taken |= cells


def test_every_expression_of_ray_can_be_narrowed_to_a_cluster() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "cluster"}
    for expression in EXPRESSIONS:
        assert "ftray_" in expression or '$cluster"' in expression


BY_RAY = {
    f"ray_{one.name}{'_total' if one.kind == 'counter' else ''}": {*one.labels, "WorkerId", "ray_io_cluster"}
    for one in (*ALL, *(Measure(f"ftray_engine_{name}", "", ()) for name in ENGINE_GAUGES),
                *(Measure(f"ftray_engine_{name}", "", (), "counter") for name in ENGINE_COUNTERS))
}  # fmt: skip
"""What ftray tells Ray's metrics, as Prometheus reads it, with its labels."""


@pytest.mark.parametrize("expression", [one for one in EXPRESSIONS if "ray_ftray_" in one])
def test_ftray_tells_ray_what_is_asked_of_it(expression: str) -> None:
    (name,) = re.findall(r"\bray_ftray_\w+", expression)
    assert labels_of(expression) <= BY_RAY[name]


def test_every_measure_of_runs_and_campaigns_is_shown() -> None:
    asked = {name for expression in EXPRESSIONS for name in re.findall(r"\bray_ftray_\w+", expression)}
    of_runs = {name for name in BY_RAY if "_train_" in name or "_sweep_" in name or "_validation_" in name}
    unseen = {"ray_ftray_train_epoch", "ray_ftray_train_tokens", "ray_ftray_trial_validation_loss"}
    unseen |= {"ray_ftray_trial_train_loss"}
    assert of_runs - asked == unseen, "what is counted is shown, or named here"
