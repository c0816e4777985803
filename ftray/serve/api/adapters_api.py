"""/v1/adapters: what is registered, and where the aliases point. For the admin scope."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Request
from pydantic import Field
from starlette.responses import Response

from ftray.artifacts import jsonable
from ftray.config import Config
from ftray.serve.api.access import caller_of
from ftray.serve.api.catalogue import Catalogue
from ftray.serve.api.problems import spelled
from ftray.serve.experiment.spec import Slug

Reason = Annotated[str, Field(min_length=1, max_length=1000)]
Generation = Annotated[int, Field(ge=0, lt=2**53)]


class PromoteRequest(Config):
    """Where an alias is to point."""

    name: Slug
    """The adapter's name."""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")]
    """Its digest, or 12 characters or more of it."""
    generation: Generation | None = None
    """The alias's, as you know it (0: there is none yet); 409 where it has moved since. Null: wherever it is."""
    reason: Reason | None = None
    """Recorded."""
    force: Reason | None = None
    """Why it is promoted without a passing verdict; recorded."""


class RollbackRequest(Config):
    """Where an alias was."""

    generation: Generation | None = None
    """The alias's, as you know it; 409 where it has moved since. Null: wherever it is."""
    reason: Reason | None = None
    """Recorded."""


class AdaptersApi:
    """The routes of adapters and aliases."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def list_all(self) -> Response:
        """List the registered adapters and the aliases."""
        return _json(await self._catalogue.adapters())

    async def promote(self, request: Request, alias: Slug, wanted: PromoteRequest) -> Response:
        """Point an alias at an adapter, once every engine has loaded it."""
        record = await self._catalogue.promote(
            alias,
            name=wanted.name,
            digest=wanted.digest,
            generation=wanted.generation,
            by=_who(request),
            reason=wanted.reason,
            force=wanted.force,
        )
        return _json(dict(record))

    async def rollback(self, request: Request, alias: Slug, wanted: RollbackRequest | None = None) -> Response:
        """Point an alias at what it pointed at before."""
        wanted = wanted or RollbackRequest()
        record = await self._catalogue.rollback(
            alias, generation=wanted.generation, by=_who(request), reason=wanted.reason
        )
        return _json(dict(record))


def _who(request: Request) -> str:
    name = caller_of(request).name
    return "api" if name is None else f"key {name}"


def _json(document: dict[str, Any]) -> Response:
    return Response(spelled(jsonable(document)), media_type="application/json")
