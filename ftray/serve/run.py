"""Start an endpoint on Ray Serve, say when it is ready, and end it without breaking off an answer."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from ftray.errors import FtrayError, InputError, RunError, is_out_of_memory
from ftray.serve.app import DRAIN_SECONDS, ENGINE, INGRESS, NAME, build_app
from ftray.serve.handles import LOAD_SECONDS, unwrapped
from ftray.serve.plan import Serving, require_free_port
from ftray.train.address import ray_address

POLL_SECONDS = 0.1
CALL_SECONDS = 5.0
GRACE_SECONDS = 0.5
"""What Serve waits beyond our own draining."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An endpoint that answers."""

    serving: Serving
    models: list[str]

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.serving.url

    def ready_record(self) -> dict[str, Any]:
        """Return the first line that `ftray serve --json` prints."""
        return {"event": "ready", "url": self.url, "models": self.models}


@contextmanager
def running(serving: Serving, *, say: Say = lambda text: None) -> Iterator[Running]:
    """Serve inside this block; at its end answers under way have `DRAIN_SECONDS`.

    Raises InputError `port_taken`, `no_cluster`, `not_live` (an adapter that answers as its base, or otherwise than its
    fingerprint says), RunError where Serve could not start.
    """
    from ftray.train.cluster import connect

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    joins = ray_address() is not None or ray.is_initialized()
    if not joins:
        require_free_port(serving.config)
    say("Starting Ray Serve")
    started_here = connect()
    starts_serve = not serve.status().proxies
    try:
        if starts_serve and joins:
            require_free_port(serving.config)
        if not starts_serve:
            _require_place_beside(serving)
        cpus, gpus = _engine_resources(serving)
        _start_proxy(serving)
        app = build_app(serving, engine_cpus=cpus, engine_gpus=gpus, grace_seconds=GRACE_SECONDS)
        say(f"Loading {serving.base} and {len(serving.adapters)} adapters")
        try:
            serve.run(app, name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise RunError(
                f"the endpoint could not start: {_last_line(error)}",
                kind="unknown",
                given=serving.model,
                hint="The replica's log says more: ray logs, or the folder serve/ of the Ray session.",
            ) from error
        try:
            _require_live(serve.get_deployment_handle(ENGINE, NAME))
            yield Running(serving=serving, models=_models(serving))
        finally:
            _drain(say)
            serve.delete(NAME)
    finally:
        with _hushed():
            if starts_serve:
                serve.shutdown()
            if started_here:
                ray.shutdown()


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep this process still while Ray is shut down: it complains that its own actors are gone.

    Its processes do so on standard error, a thread of this one by printing.
    """
    sys.stderr.flush()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        saved = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def http_options(serving: Serving) -> dict[str, Any]:
    """Return where Serve's proxy listens, and when it gives a request up: after the API would have, in any case."""
    config = serving.config
    return {
        "host": config.host,
        "port": config.port,
        "request_timeout_s": config.deadline_seconds + LOAD_SECONDS,
    }


def _start_proxy(serving: Serving) -> None:
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options=http_options(serving),
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )
    except RuntimeError as error:
        raise RunError(
            f"Ray Serve could not start: {_last_line(error)}",
            kind="unknown",
            given=serving.url,
            hint="Look whether somebody else listens there; or take another port: --port N.",
        ) from error


def _require_place_beside(serving: Serving) -> None:
    """Raise InputError where the cluster's Serve, which runs already, is not for this endpoint; nothing is touched."""
    from ftray.serve.client import Endpoint

    if NAME in serve.status().applications:
        raise InputError(
            "this cluster serves an endpoint of ftray already",
            kind="serve_taken",
            given=serving.url,
            allowed="one endpoint for a cluster",
            hint="End it first (serve shutdown), or serve on another cluster.",
        )
    if serving.config.keys_file is None:
        raise InputError(
            "this cluster's Serve may listen anywhere, and the endpoint has no API keys",
            kind="open_to_all",
            given={"serve.keys_file": None},
            allowed="a file of keys",
            hint="Make one with ftray keys add, and name it: --keys FILE, or serve.keys_file.",
            path="serve.keys_file",
        )
    try:
        with Endpoint(serving.url) as endpoint:
            endpoint.text("/-/healthz")
    except FtrayError as error:
        raise InputError(
            f"Ray Serve runs on this cluster already, and does not listen at {serving.url}",
            kind="serve_elsewhere",
            given=serving.url,
            allowed="the address that it was started with",
            hint="Give its --host and --port, or end it: serve shutdown.",
            path="serve.port",
        ) from error


def _engine_resources(serving: Serving) -> tuple[float, float]:
    """Return the CPUs and GPUs of one engine. Raises InputError where the cluster can never hold all of them."""
    replicas, total = serving.config.replicas, ray.cluster_resources()
    cpus, gpus = float(total.get("CPU", 0)), float(total.get("GPU", 0))
    wants_gpu = gpus > 0
    if wants_gpu and replicas > gpus:
        raise InputError(
            f"{replicas} engines need a GPU each, and there are {gpus:g}",
            kind="too_few_resources",
            given=replicas,
            allowed=f"1 to {gpus:g}",
            hint="Lower serve.replicas.",
            path="serve.replicas",
        )
    # On CPUs engines share what there is: a machine's cores where Ray is ours, a core each at most elsewhere.
    share = cpus / replicas
    return (share if ray_address() is None else min(1.0, share)), (1.0 if wants_gpu else 0.0)


def _require_live(engine: Any) -> None:
    """Wait for every engine's base and adapters; raise what one of them could not start or was refused for."""
    refused: dict[str, FtrayError] = {}
    try:
        for one in engine.broadcast("start").results():
            refused |= one
    except (ray.exceptions.RayError, RayServeException) as raised:
        cause = unwrapped(raised)
        if isinstance(cause, FtrayError):
            raise cause from None
        raise RunError(
            f"an engine could not start: {_last_line(cause)}",
            kind="oom" if is_out_of_memory(str(raised)) else "node",
            hint="Too little memory is the usual reason: fewer replicas (serve.replicas) or slots need less.",
        ) from raised
    if not refused:
        return
    name, error = next(iter(refused.items()))
    raise InputError(
        f"{name.partition('@')[0]} cannot be served: {error.message}",
        kind=error.kind,
        given=sorted(refused),
        allowed=error.allowed,
        hint=error.hint or "Register it again, or serve others.",
    )


def _models(serving: Serving) -> list[str]:
    """Return the names that can be asked; with keys those that were loaded, where nobody gives one that may ask."""
    from ftray.serve.client import Endpoint

    names = [adapter.partition("@")[0] for adapter in serving.adapters]
    loaded = [serving.base, *(f"{serving.base}:{name}" for name in dict.fromkeys(names))]
    if serving.config.keys_file is not None and "FTRAY_API_KEY" not in os.environ:
        return loaded
    try:
        with Endpoint(serving.url) as endpoint:
            return [model["id"] for model in endpoint.get("/v1/models")["data"]]
    except InputError:
        return loaded


def _drain(say: Say) -> None:
    """Close the door, and wait until nobody is inside."""
    ingress = serve.get_deployment_handle(INGRESS, NAME)
    deadline = time.monotonic() + DRAIN_SECONDS
    try:
        while (under_way := sum(ingress.broadcast("close").results(timeout_s=CALL_SECONDS))) > 0:
            if time.monotonic() > deadline:
                say(f"{under_way} answers are broken off")
                return
            time.sleep(POLL_SECONDS)
    except (ray.exceptions.RayError, RuntimeError, TimeoutError) as error:
        say(f"the endpoint could not be drained: {_last_line(error)}")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
