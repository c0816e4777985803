"""GET /v1/models: what can be asked here."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Literal

from fastapi import Path

from ftray.config import Config
from ftray.serve.api.catalogue import EXPERIMENTS, Catalogue, Model, experiment_name
from ftray.serve.api.problems import no_model
from ftray.serve.experiment.spec import UnknownResponse
from ftray.serve.outcomes.async_outcomes import AsyncOutcomes

OWNER = "ftray"


class ModelView(Config):
    """A model, as OpenAI's API has it."""

    id: str
    """What requests name."""
    object: Literal["model"]
    """What it is."""
    created: int
    """Seconds since the epoch."""
    owned_by: str
    """ftray."""


class ModelList(Config):
    """All models."""

    object: Literal["list"]
    """What it is."""
    data: list[ModelView]
    """The base first."""


class ModelsApi:
    """The routes of models."""

    def __init__(self, catalogue: Catalogue, outcomes: AsyncOutcomes) -> None:
        self._catalogue, self._outcomes = catalogue, outcomes
        self._started_at = int(time.time())

    async def list_all(self) -> ModelList:
        """List the models: base, adapters, aliases, running experiments."""
        data = [self._view(model.id, model) for model in await self._catalogue.models()]
        for experiment in await self._outcomes.experiments():
            if experiment.status == "running":
                data.append(self._view(f"{EXPERIMENTS}:{experiment.spec.name}", experiment.created_at))
        return ModelList(object="list", data=data)

    async def show(self, model: Annotated[str, Path(max_length=256)]) -> ModelView:
        """Show one model."""
        name = experiment_name(model)
        if name is None:
            return self._view(model, await self._catalogue.resolve(model))
        try:
            return self._view(model, (await self._outcomes.experiment(name)).created_at)
        except UnknownResponse as error:
            raise no_model(model) from error

    def _view(self, id: str, since: Model | str) -> ModelView:
        at = since.created_at if isinstance(since, Model) else since
        created = self._started_at if at is None else int(datetime.fromisoformat(at).timestamp())
        return ModelView(id=id, object="model", created=created, owned_by=OWNER)
