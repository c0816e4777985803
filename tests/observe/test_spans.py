"""Spans: nothing without configuration, the whole trace over OTLP with it, across process borders."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from otlp_collector import Collector, attributes

from ftray.errors import InputError
from ftray.observe import spans

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "TRACEPARENT"))}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=False
    )


def test_without_configuration_nothing_is_imported() -> None:
    code = """
import sys
from ftray.observe import spans
with spans.root("run", job="j") as told, spans.span("check"):
    told.set(status="done")
    spans.past("trial", 1.0)
    assert spans.carrier() == {}
assert not [name for name in sys.modules if name.startswith("opentelemetry")], "it costs nothing"
"""
    assert run(code).returncode == 0
    assert run(code, OTEL_TRACES_EXPORTER="none", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1").returncode == 0
    assert run(code, OTEL_SDK_DISABLED="true", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1").returncode == 0


def test_a_trace_goes_on_in_other_processes(collector: Collector) -> None:
    worker = """
from ftray.observe import spans
with spans.root("worker", worker=1):
    with spans.span("load"):
        pass
import os
os._exit(9)  # as Ray ends workers: nothing is sent after this
"""
    driver = f"""
import os, subprocess, sys
from ftray.observe import spans
with spans.root("run", job="router", nothing=None) as told:
    with spans.span("workers"):
        subprocess.run([sys.executable, "-c", {worker!r}], env={{**os.environ, **spans.carrier()}})
    spans.past("trial", 2.5, trial="abc", gen_ai__usage__output_tokens=3)
    told.set(status="completed")
    # A root inside another belongs to it.
    with spans.root("inner"):
        pass
"""
    done = run(driver, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, TRACEPARENT=PARENT)
    assert done.returncode == 0, done.stderr
    assert {one.trace_id.hex() for one in collector.spans} == {TRACE}
    ids = {one.name: one.span_id for one in collector.spans}
    parents = {one.name: one.parent_span_id for one in collector.spans}
    assert parents["run"].hex() == "00f067aa0ba902b7"
    assert (parents["workers"], parents["trial"], parents["inner"]) == (ids["run"],) * 3
    assert (parents["worker"], parents["load"]) == (ids["workers"], ids["worker"])
    assert attributes(collector.named("run")) == {"ftray.job": "router", "ftray.status": "completed"}
    trial = collector.named("trial")
    assert attributes(trial) == {"ftray.trial": "abc", "gen_ai.usage.output_tokens": 3}
    assert trial.end_time_unix_nano - trial.start_time_unix_nano == 2_500_000_000


def test_an_error_is_noted(collector: Collector) -> None:
    code = """
from ftray.observe import spans
with spans.root("run"):
    raise ValueError("no more")
"""
    assert run(code, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url).returncode == 1
    span = collector.named("run")
    assert span.status.code == 2
    assert [event.name for event in span.events] == ["exception"]


def test_a_collector_that_is_down_ends_nothing() -> None:
    code = "from ftray.observe import spans\nwith spans.root('run'): pass\nprint('done')"
    done = run(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_spans_can_be_printed() -> None:
    done = run("from ftray.observe import spans\nwith spans.root('run'): pass", OTEL_TRACES_EXPORTER="console")
    assert '"name": "run"' in done.stderr
    assert done.stdout == ""


def test_what_cannot_be_exported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as caught:
        spans.require_exporter({"OTEL_TRACES_EXPORTER": "zipkin"})
    assert (caught.value.kind, caught.value.allowed) == ("bad_value", ["otlp", "console", "none"])
    monkeypatch.setattr(spans, "OTLP_PACKAGE", "opentelemetry.exporter.nowhere")
    with pytest.raises(InputError) as caught:
        spans.require_exporter({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
    assert caught.value.kind == "missing_package"
    spans.require_exporter({})
