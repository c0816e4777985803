"""The endpoint's HTTP API, OpenAI-compatible: one table of routes over an engine, a store and a catalogue.

It knows no Ray: what it is given may be in this process or behind handles.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from ftray import __version__
from ftray.config import Config
from ftray.endpoint import KeepAnswers
from ftray.errors import FtrayError
from ftray.observe.measures import Instruments
from ftray.serve.api import problems
from ftray.serve.api.access import NEEDS, Access, GuardedRoute, Need, scoped
from ftray.serve.api.adapters_api import AdaptersApi
from ftray.serve.api.answers import Answers
from ftray.serve.api.background import repeat
from ftray.serve.api.catalogue import Catalogue
from ftray.serve.api.completions import Completions
from ftray.serve.api.experiments_api import ExperimentList, ExperimentsApi, ExperimentView, Page
from ftray.serve.api.feedback_api import FeedbackApi, Taken
from ftray.serve.api.keys import Keyring
from ftray.serve.api.limits import Limits, Rate
from ftray.serve.api.metrics import MEDIA_TYPE, Meters
from ftray.serve.api.models_api import ModelList, ModelsApi, ModelView
from ftray.serve.api.openai_answers import ChatCompletion, TextCompletion
from ftray.serve.api.problems import spelled, unavailable
from ftray.serve.api.router import Router
from ftray.serve.api.tracker import Tracker
from ftray.serve.api.watch import Watch
from ftray.serve.asking import Engine, EngineLost
from ftray.serve.outcomes.async_outcomes import AsyncOutcomes

log = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
"""How often aliases that were moved from elsewhere are followed."""
PURGE_SECONDS = 60.0
DRAIN_SECONDS = 5.0
BEARER = "key"
TITLE = "ftray"
EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {"type": "string", "description": "A chunk, or an error, as JSON; [DONE] after the last chunk."}
    },
}
STREAMED = {200: {"content": {"text/event-stream": {"itemSchema": EVENT}}}}
PAGE = {200: {"content": {"text/html": {"schema": {"type": "string"}}}}}
TEXT = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
Ready = Callable[[], str | None]


class ErrorDetail(Config):
    """What went wrong."""

    message: str
    """For people."""
    type: str
    """invalid_request_error, permission_error, rate_limit_error or server_error."""
    param: str | None
    """Which parameter."""
    code: str | None
    """For programs."""


class ErrorBody(Config):
    """An error, in OpenAI's shape."""

    error: ErrorDetail
    """What went wrong."""


class Health(Config):
    """How the process is."""

    status: Literal["ok", "ready"]
    """ok: it lives. ready: it answers questions."""


def make_api(
    *,
    engine: Engine,
    outcomes: AsyncOutcomes,
    catalogue: Catalogue,
    keys: Keyring,
    limits: Limits | None = None,
    keep: KeepAnswers | None = None,
    page: Page | None = None,
    why_not_ready: Ready = lambda: None,
    instruments: Instruments | None = None,
) -> FastAPI:
    """Return the application. Who has made the parts starts and closes them; it only uses them.

    `page` renders a report as HTML. `why_not_ready` says why no question can be answered yet; None when they can.
    `instruments`: where numbers go beside /metrics.
    """
    limits = limits or Limits()
    meters = Meters(engine, instruments)
    router = Router(catalogue, outcomes)
    watch = Watch(catalogue, outcomes, changed=router.forget)
    tracker = Tracker(engine, outcomes, meters, watch, keep=keep, shadows=limits.shadows)
    answers = Answers(engine, outcomes, router, meters, why_not_ready=why_not_ready)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await _restore(catalogue, outcomes)
        # What had been decided when the last process ended is carried out.
        watch.poke()
        housekeeping = asyncio.create_task(_keep_house(catalogue, outcomes))
        try:
            yield
        finally:
            housekeeping.cancel()
            await asyncio.gather(housekeeping, return_exceptions=True)
            await tracker.background.drain(DRAIN_SECONDS)
            await watch.close()

    app = FastAPI(
        title=TITLE,
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    problems.install(app)
    routes = _Routes(app, Access(keys, Rate(limits), limits), meters)
    completions = Completions(answers, tracker, limits, positions=engine.positions())
    models = ModelsApi(catalogue, outcomes)
    feedback = FeedbackApi(outcomes, watch)
    experiments = ExperimentsApi(outcomes, catalogue, router, watch, page=page)
    adapters = AdaptersApi(catalogue)

    get, post = routes.get, routes.post
    get("/v1/models", models.list_all, "infer", ModelList)
    get("/v1/models/{model}", models.show, "infer", ModelView, 404)
    post("/v1/chat/completions", completions.chat, "infer", ChatCompletion, 404, 409, 422, extra=STREAMED)
    post("/v1/completions", completions.complete, "infer", TextCompletion, 404, 409, 422, extra=STREAMED)
    post("/v1/feedback", feedback.feedback, "feedback", Taken, 404, 409, 422)
    post("/v1/preferences", feedback.prefer, "feedback", Taken, 404, 409, 422)
    post("/v1/experiments", experiments.create, "admin", ExperimentView, 404, 409, 422, status=201)
    get("/v1/experiments", experiments.list_all, "admin", ExperimentList)
    get("/v1/experiments/{name}", experiments.show, "admin", ExperimentView, 404)
    post("/v1/experiments/{name}/weights", experiments.reweigh, "admin", ExperimentView, 404, 409, 422)
    post("/v1/experiments/{name}/stop", experiments.stop, "admin", ExperimentView, 404, 409)
    get("/v1/experiments/{name}/report", experiments.report, "admin", dict[str, Any], 404, extra=PAGE)
    get("/v1/adapters", adapters.list_all, "admin", dict[str, Any])
    post("/v1/adapters/{alias}/promote", adapters.promote, "admin", dict[str, Any], 404, 409)
    post("/v1/adapters/{alias}/rollback", adapters.rollback, "admin", dict[str, Any], 404, 409)

    async def healthz() -> Health:
        """Say that the process lives."""
        return Health(status="ok")

    async def readyz() -> Health:
        """Say whether questions are answered."""
        why = why_not_ready()
        if why is not None:
            raise unavailable(why, code="not_ready")
        return Health(status="ready")

    async def metrics() -> Response:
        """Return the counts, for Prometheus."""
        return Response(meters.text(), media_type=MEDIA_TYPE)

    async def openapi() -> Response:
        """Return the OpenAPI document."""
        return Response(spelled(document(app)), media_type="application/json")

    get("/healthz", healthz, "open", Health)
    get("/readyz", readyz, "open", Health)
    get("/metrics", metrics, "metrics", None, extra=TEXT)
    get("/openapi.json", openapi, "any", None, include_in_schema=False)
    return app


async def _restore(catalogue: Catalogue, outcomes: AsyncOutcomes) -> None:
    """Know where the aliases point, and load what the running experiments ask, as they fixed it when they began."""
    await catalogue.refresh()
    for experiment in await outcomes.experiments():
        if experiment.status != "running":
            continue
        for arm, digest in experiment.digests.items():
            if digest is None:
                continue
            try:
                await catalogue.restore(digest)
            except (FtrayError, EngineLost) as error:
                log.error("arm %s of the experiment %s cannot answer: %s", arm, experiment.spec.name, error)


async def _keep_house(catalogue: Catalogue, outcomes: AsyncOutcomes) -> None:
    """Follow the aliases, and delete kept texts whose time is over."""
    purged_at = -math.inf

    async def once() -> None:
        nonlocal purged_at
        await catalogue.refresh()
        if time.monotonic() - purged_at > PURGE_SECONDS:
            purged_at = time.monotonic()
            await outcomes.purge(time.time())

    await repeat(once, "housekeeping failed", seconds=REFRESH_SECONDS)


class _Routes:
    """Adds routes that all say what they need, what they answer and how they fail."""

    def __init__(self, app: FastAPI, access: Access, meters: Meters) -> None:
        self._app = app
        self._classes: dict[Need, type[GuardedRoute]] = {need: scoped(access, need, meters) for need in NEEDS}

    def get(self, path: str, endpoint: Any, need: Need, model: Any, *statuses: int, **options: Any) -> None:
        self._add("GET", path, endpoint, need, model, (400, *statuses), options)

    def post(self, path: str, endpoint: Any, need: Need, model: Any, *statuses: int, **options: Any) -> None:
        self._add("POST", path, endpoint, need, model, (400, 408, 413, *statuses), options)

    def _add(
        self,
        method: str,
        path: str,
        endpoint: Any,
        need: Need,
        model: Any,
        statuses: tuple[int, ...],
        options: dict[str, Any],
    ) -> None:
        guarded = () if need == "open" else (401, 403, 429)
        errors: dict[int | str, dict[str, Any]] = {
            status: {"model": ErrorBody} for status in sorted({*statuses, *guarded, 503})
        }
        self._app.router.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=model,
            status_code=options.pop("status", 200),
            responses={**errors, **options.pop("extra", {})},
            route_class_override=self._classes[need],
            **options,
        )


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document: FastAPI's, without the errors that are not ours, and with the keys."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = found["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        found["components"]["securitySchemes"] = {BEARER: {"type": "http", "scheme": "bearer"}}
        for path in found["paths"].values():
            for operation in path.values():
                responses = operation["responses"]
                if "HTTPValidationError" in str(responses.get("422")):
                    del responses["422"]
                if "401" in responses:
                    operation["security"] = [{BEARER: []}]
        app.openapi_schema = found
    return app.openapi_schema
