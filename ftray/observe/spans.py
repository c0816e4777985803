"""Spans for OpenTelemetry where its own variables say where they go; elsewhere nothing is imported and nothing costs.

A trace crosses process borders as the variable TRACEPARENT: from `ftray submit` to the command on the cluster, from
there to workers and trainers, each of whose spans has the sender's as its parent.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import TracebackType
from typing import Any, Protocol

from ftray.errors import InputError

EXPORTER = "OTEL_TRACES_EXPORTER"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
DISABLED = "OTEL_SDK_DISABLED"
EXPORTERS = ("otlp", "console", "none")
OTLP_PACKAGE = "opentelemetry.exporter.otlp.proto.http"
PARENT = "TRACEPARENT"
SERVICE = "ftray"
FLUSH_SECONDS = 3.0
"""How long a process that ends waits for its spans to be taken: a collector that is down delays nobody for longer."""

Attribute = str | int | float | bool


class Span(Protocol):
    """A stretch of work that has a name, a beginning and an end."""

    def __enter__(self) -> Span:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; an error is noted."""

    def set(self, **attributes: Attribute | None) -> None:
        """Say more about it. What is None is left out."""


class _Nothing:
    """The span of a process that traces nothing."""

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def set(self, **attributes: Attribute | None) -> None:
        return None


NOTHING = _Nothing()


class _Recorded:
    """A span that is exported."""

    def __init__(
        self,
        tracer: Any,
        name: str,
        attributes: Mapping[str, Attribute | None],
        *,
        is_root: bool,
        parent: str | None = None,
        blames: Callable[[BaseException], bool] = lambda error: True,
    ) -> None:
        self._tracer, self._name, self._attributes = tracer, name, attributes
        self._is_root, self._parent, self._blames = is_root, parent, blames
        self._manager: Any = None
        self._span: Any = None

    def __enter__(self) -> _Recorded:
        context = _inherited() if self._is_root else _context_of(self._parent)
        self._manager = self._tracer.start_as_current_span(self._name, context=context)
        self._span = self._manager.__enter__()
        self.set(**self._attributes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self._blames(error):
            kind = error = trace = None
        self._manager.__exit__(kind, error, trace)
        if self._is_root:
            # Workers are killed when they have returned: what waits to be sent would be lost.
            _flush()

    def set(self, **attributes: Attribute | None) -> None:
        for name, value in _named(attributes):
            self._span.set_attribute(name, value)


def span(
    name: str,
    *,
    parent: str | None = None,
    blames: Callable[[BaseException], bool] = lambda error: True,
    **attributes: Attribute | None,
) -> Span:
    """Return a span below the one under way in this thread or task, or below `parent`, a traceparent (W3C).

    `blames`: whether an error that passes through is one of the work's. Attributes get the prefix `ftray.`;
    OpenTelemetry's own names have dots, written as `__`.
    """
    if not is_configured():
        return NOTHING
    return _Recorded(_tracer(), name, attributes, is_root=False, parent=parent, blames=blames)


def root(name: str, **attributes: Attribute | None) -> Span:
    """Return the first span of a process, below the one that started the process; its end sends what is left."""
    return _Recorded(_tracer(), name, attributes, is_root=True) if is_configured() else NOTHING


def past(name: str, seconds: float, *, parent: str | None = None, **attributes: Attribute | None) -> None:
    """Record a span that ends now, of work that nobody was inside of: a trial, an answer that was streamed.

    `parent`: as `span` has it.
    """
    if not is_configured():
        return
    end = time.time_ns()
    recorded = _tracer().start_span(name, context=_context_of(parent), start_time=end - int(seconds * 1e9))
    for key, value in _named(attributes):
        recorded.set_attribute(key, value)
    recorded.end(end_time=end)


def _named(attributes: Mapping[str, Attribute | None]) -> Iterator[tuple[str, Attribute]]:
    """Yield what there is to say, by its whole name."""
    for name, value in attributes.items():
        if value is not None:
            yield (name.replace("__", ".") if "__" in name else f"ftray.{name}"), value


def carrier() -> dict[str, str]:
    """Return the environment that tells another process which span it works for; empty where there is none."""
    if not is_configured():
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(found)
    return {PARENT: found["traceparent"]} if "traceparent" in found else {}


@cache
def is_configured() -> bool:
    """Return whether this process exports spans."""
    return names_exporter(os.environ)


def names_exporter(environment: Mapping[str, str]) -> bool:
    """Return whether these variables say where spans go."""
    if environment.get(DISABLED, "").lower() == "true" or environment.get(EXPORTER) == "none":
        return False
    return bool(environment.get(EXPORTER)) or any(environment.get(name) for name in ENDPOINTS)


def require_exporter(environment: Mapping[str, str]) -> None:
    """Raise InputError, before anything starts, where spans are asked for and cannot be exported."""
    if not names_exporter(environment):
        return
    exporter = environment.get(EXPORTER, "otlp")
    if exporter not in EXPORTERS:
        raise InputError(
            f"{EXPORTER}={exporter} is no exporter that ftray knows",
            kind="bad_value",
            given=exporter,
            allowed=list(EXPORTERS),
            hint=f"otlp sends spans to {ENDPOINTS[1]} over HTTP; console prints them on standard error.",
        )
    needed = OTLP_PACKAGE if exporter == "otlp" else "opentelemetry.sdk"
    if not _has_module(needed):
        raise InputError(
            "OpenTelemetry is configured, and its exporter is not installed",
            kind="missing_package",
            given=next((f"{name}={environment[name]}" for name in ENDPOINTS if environment.get(name)), exporter),
            allowed="the package opentelemetry-exporter-otlp-proto-http, or OTEL_TRACES_EXPORTER=none",
            hint='Install it: pip install "ftray[otel]", or unset the OTEL_ variables.',
        )


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _inherited() -> Any:
    """Return the context of the span that started this process, unless one of its own is under way."""
    from opentelemetry import trace

    return None if trace.get_current_span().get_span_context().is_valid else _context_of(os.environ.get(PARENT))


def _context_of(parent: str | None) -> Any:
    """Return what a traceparent stands for; None for the span under way."""
    if not parent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _tracer() -> Any:
    return _provider().get_tracer(SERVICE)


def _flush() -> None:
    """Send what is left. In a thread: the exporter has its own idea of how long a dead collector is worth."""
    sending = threading.Thread(target=_provider().force_flush, daemon=True)
    sending.start()
    sending.join(FLUSH_SECONDS)


@cache
def _provider() -> Any:
    """Return where this process's spans go. Not OpenTelemetry's global one: that is the user's, or Ray's."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", SERVICE)})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(_exporter()))
    return provider


def _exporter() -> Any:
    require_exporter(os.environ)
    if os.environ.get(EXPORTER, "otlp") == "console":
        import sys

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr, formatter=lambda one: one.to_json(indent=None) + "\n")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
