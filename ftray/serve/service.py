"""The API with its parts put together: the registry, the keys and the limits of one endpoint."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from ftray.observe.measures import Instruments
from ftray.serve.api.application import make_api
from ftray.serve.api.background import repeat
from ftray.serve.api.keys import Keyring
from ftray.serve.api.limits import Limits
from ftray.serve.api.local_catalogue import LocalCatalogue
from ftray.serve.outcomes.async_outcomes import AsyncOutcomes
from ftray.serve.plan import Serving, source_of

if TYPE_CHECKING:
    from ftray.serve.handles import HandleEngine

_drawing = threading.Lock()
COUNT_SECONDS = 1.0
"""How often the engines are asked for their counts, for /metrics."""


def make_service(
    serving: Serving, engine: HandleEngine, outcomes: AsyncOutcomes, *, instruments: Instruments | None = None
) -> FastAPI:
    """Return the application of an endpoint. Raises InputError for a file of keys that cannot be used."""
    config = serving.config
    registry = serving.registry()
    catalogue = LocalCatalogue(
        registry, engine, base=serving.base, base_digest=serving.base_digest, source_of=source_of
    )
    for adapter in serving.adapters:
        catalogue.know(registry.resolve(adapter).record)
    app = make_api(
        engine=engine,
        outcomes=outcomes,
        catalogue=catalogue,
        keys=Keyring(Path(config.keys_file) if config.keys_file is not None else None),
        limits=Limits(deadline_seconds=config.deadline_seconds),
        keep=config.keep_answers,
        page=_page,
        why_not_ready=engine.why_not_ready,
        instruments=instruments,
    )
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: FastAPI) -> AsyncIterator[None]:
        # A replica that is being replaced says nothing; the others' counts are read again soon.
        counts = repeat(
            engine.refresh, "the engines' counts could not be read", seconds=COUNT_SECONDS, level=logging.WARNING
        )
        counting = asyncio.create_task(counts)
        try:
            async with inner(running):
                yield
        finally:
            counting.cancel()
            await asyncio.gather(counting, return_exceptions=True)

    app.router.lifespan_context = lifespan
    return app


def _page(report: dict[str, Any], history: Sequence[dict[str, Any]]) -> str:
    """Return a report as a page, one at a time: what draws has settings of the whole process.

    It is loaded by the first who asks.
    """
    from ftray.report.experiment_render import render_experiment

    with _drawing:
        return render_experiment(report, history)
