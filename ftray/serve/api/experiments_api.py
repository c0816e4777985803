"""/v1/experiments: begin, re-weight, end and report experiments. For the admin scope: here the arms are named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from pydantic import Field
from starlette.responses import HTMLResponse, Response

from ftray.config import Config
from ftray.serve.api.catalogue import Catalogue, experiment_name
from ftray.serve.api.problems import Problem, refused, spelled
from ftray.serve.api.router import Router
from ftray.serve.api.watch import Watch
from ftray.serve.experiment.spec import Arm, Experiment, ExperimentSpec, Slug
from ftray.serve.outcomes.async_outcomes import AsyncOutcomes

SCHEMA = "ftray/experiment/1"
Page = Callable[[dict[str, Any], Sequence[dict[str, Any]]], str]
"""Renders a report and its history as HTML."""


class WeightsRequest(Config):
    """New weights."""

    weights: Annotated[dict[Slug, float], Field(min_length=1, max_length=16)]
    """For all arms; units that have an arm keep it."""


class StopRequest(Config):
    """The end of an experiment."""

    reason: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")] | None = None
    """Why; shown in the report."""


class ArmView(Arm):
    """An arm, with what its model stands for."""

    digest: str | None
    """Fixed when the experiment began; null is the base."""


class ExperimentView(ExperimentSpec):
    """An experiment as it stands."""

    record: Literal["ftray/experiment/1"] = Field(alias="schema")
    """What this is."""
    arms: Annotated[list[ArmView], Field(min_length=2)]  # type: ignore[assignment]
    """Its sides."""
    shadow: list[ArmView] = []  # type: ignore[assignment]
    """Models that answer unseen."""
    weights: dict[str, float]
    """As they are now."""
    status: Literal["running", "stopped", "promoted"]
    """running; stopped: its requests get the control; promoted: they get the winner."""
    reason: str
    """Why it ended."""
    created_at: str
    """When it began."""


class ExperimentList(Config):
    """All experiments."""

    object: Literal["list"]
    """What it is."""
    data: list[ExperimentView]
    """The oldest first."""


def view(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment as the API shows it; not its salt, which would tell who gets what."""
    spec = experiment.spec.model_dump(mode="json")
    for arm in (*spec["arms"], *spec["shadow"]):
        arm["digest"] = experiment.digests[arm["name"]]
    return {
        "schema": SCHEMA,
        **spec,
        "weights": experiment.weights,
        "status": experiment.status,
        "reason": experiment.reason,
        "created_at": experiment.created_at,
    }


class ExperimentsApi:
    """The routes of experiments."""

    def __init__(
        self, outcomes: AsyncOutcomes, catalogue: Catalogue, router: Router, watch: Watch, *, page: Page | None
    ) -> None:
        self._outcomes, self._catalogue, self._router, self._watch = outcomes, catalogue, router, watch
        self._page = page

    async def create(self, spec: ExperimentSpec) -> Response:
        """Begin an experiment. The same again is the same one."""
        if spec.promote is not None:
            taken = {model.name for model in await self._catalogue.models()}
            if spec.promote.alias in taken:
                raise refused(f"{spec.promote.alias!r} is an adapter's name.", param="promote.alias")
        digests: dict[str, str | None] = {}
        for place, arms in (("arms", spec.arms), ("shadow", spec.shadow)):
            for number, arm in enumerate(arms):
                digests[arm.name] = await self._digest(arm, param=f"{place}[{number}].model")
        return _json(view(await self._outcomes.create(spec, digests)), status=201)

    async def _digest(self, arm: Arm, *, param: str) -> str | None:
        if experiment_name(arm.model) is not None:
            raise refused("An arm is a model, not another experiment.", param=param)
        try:
            return (await self._catalogue.admit(arm.model)).digest
        except Problem as problem:
            problem.param = param
            raise

    async def list_all(self) -> Response:
        """List all experiments."""
        return _json({"object": "list", "data": [view(one) for one in await self._outcomes.experiments()]})

    async def show(self, name: Slug) -> Response:
        """Show an experiment."""
        return _json(view(await self._outcomes.experiment(name)))

    async def reweigh(self, name: Slug, wanted: WeightsRequest) -> Response:
        """Change the weights for units that come from now on."""
        experiment = await self._outcomes.reweigh(name, wanted.weights)
        self._router.forget(name)
        return _json(view(experiment))

    async def stop(self, name: Slug, wanted: StopRequest | None = None) -> Response:
        """End an experiment: its requests get the control from now on."""
        # What its verdict sets off comes first: after its end nothing is promoted any more.
        await self._watch.act_on(await self._outcomes.experiment(name))
        reason = (wanted.reason if wanted else None) or "stopped by hand"
        experiment = await self._outcomes.stop(name, reason=reason)
        self._router.forget(name)
        return _json(view(experiment))

    async def report(
        self,
        request: Request,
        name: Slug,
        form: Annotated[
            Literal["json", "html"] | None, Query(alias="format", description="json, or html for people.")
        ] = None,
    ) -> Response:
        """Say how it stands; looking changes nothing."""
        report = await self._outcomes.report(name)
        if form != "html" and (form == "json" or not _wants_html(request)):
            return _json(dict(report))
        if self._page is None:
            raise refused("This endpoint has no pages: ask for format=json.", param="format")
        history = await self._outcomes.history(name)
        # Drawing takes as long as many answers' steps.
        return HTMLResponse(await asyncio.to_thread(self._page, dict(report), history))


def _wants_html(request: Request) -> bool:
    accepted = [one.partition(";")[0].strip() for one in request.headers.get("accept", "").split(",")]
    return "text/html" in accepted and "application/json" not in accepted


def _json(document: dict[str, Any], *, status: int = 200) -> Response:
    return Response(spelled(document), status_code=status, media_type="application/json")
