"""Who answers a request: a model by its name, or the arm that its unit has in an experiment."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from ftray.serve.api.catalogue import Catalogue, experiment_name, fingerprint
from ftray.serve.api.metrics import Who
from ftray.serve.api.problems import no_model, refused
from ftray.serve.experiment.assignment import assign
from ftray.serve.experiment.spec import Experiment, Exposure, UnknownResponse
from ftray.serve.outcomes.async_outcomes import AsyncOutcomes

FRESH_SECONDS = 1.0
"""How long an experiment's weights and status are believed before they are looked up again."""
MOST_UNITS = 100_000
"""Units whose arms are remembered, so that their requests start at the right arm at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Who is asked, and what is noted of it."""

    model: str
    """As the request names it, and the answer."""
    digest: str | None
    experiment: Experiment | None = None
    arm: str | None = None
    propensity: float = 1.0
    is_counted: bool = False
    """Whether the unit's exposure and outcomes belong to the experiment."""

    @property
    def who(self) -> Who:
        """Return the labels of its series."""
        name = self.experiment.spec.name if self.experiment else ""
        return Who(name, self.arm or "", fingerprint(self.digest))

    @property
    def fingerprint(self) -> str | None:
        """Return the system_fingerprint; an experiment shows none, which would name the arm."""
        return None if self.experiment else fingerprint(self.digest)

    def as_exposed(self, exposure: Exposure) -> Target:
        """Return the target with the arm that the unit has for good."""
        assert self.experiment is not None
        digest = self.experiment.digests[exposure.arm]
        return replace(self, arm=exposure.arm, propensity=exposure.propensity, digest=digest)


class Router:
    """Finds targets. It remembers what it has looked up; the store has the last word."""

    def __init__(
        self, catalogue: Catalogue, outcomes: AsyncOutcomes, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalogue, self._outcomes, self._clock = catalogue, outcomes, clock
        self._experiments: dict[str, tuple[float, asyncio.Future[Experiment]]] = {}
        self._winners: dict[str, str] = {}
        self._units: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()

    async def target(self, model: str, unit: str | None) -> Target:
        """Return who answers. Raises Problem: 404 for an unknown model, 400 for an experiment without a unit."""
        name = experiment_name(model)
        if name is None:
            return Target(model=model, digest=(await self._catalogue.resolve(model)).digest)
        try:
            experiment = await self.experiment(name)
        except UnknownResponse as error:
            raise no_model(model) from error
        if experiment.status != "running":
            return await self._after_its_end(model, experiment)
        if unit is None:
            raise refused(
                "An experiment needs to know whose request it is: the header X-Ftray-Unit, `user` or an API key.",
                param="user",
                code="missing_unit",
            )
        return self._arm(model, experiment, unit)

    def _arm(self, model: str, experiment: Experiment, unit: str) -> Target:
        place = (experiment.spec.name, unit)
        known = self._units.get(place)
        if known is not None:
            self._units.move_to_end(place)
            arm, propensity = known
            is_counted = True
        else:
            assigned = assign(experiment, unit)
            arm, propensity, is_counted = assigned.arm, assigned.propensity, assigned.is_included
        return Target(
            model=model,
            digest=experiment.digests[arm],
            experiment=experiment,
            arm=arm,
            propensity=propensity,
            is_counted=is_counted,
        )

    async def _after_its_end(self, model: str, experiment: Experiment) -> Target:
        """Return who answers for an experiment that is over: the arm that was promoted, else the control."""
        name, arm = experiment.spec.name, experiment.spec.control
        if experiment.status == "promoted":
            if name not in self._winners:
                winner = (await self._outcomes.report(name)).get("winner")
                self._winners[name] = str(winner) if winner in experiment.digests else arm
            arm = self._winners[name]
        return Target(model=model, digest=experiment.digests[arm], experiment=experiment, arm=arm)

    async def experiment(self, name: str) -> Experiment:
        """Return an experiment, as it was a moment ago at the most. Raises UnknownResponse."""
        found = self._experiments.get(name)
        if found is None or (found[1].done() and self._clock() - found[0] > FRESH_SECONDS):
            found = (self._clock(), asyncio.ensure_future(self._outcomes.experiment(name)))
            found[1].add_done_callback(lambda done: self._forget_failed(name, done))
            self._experiments[name] = found
        # Several requests wait for one look-up; none of them ends it for the others.
        return await asyncio.shield(found[1])

    def _forget_failed(self, name: str, look: asyncio.Future[Experiment]) -> None:
        if look.cancelled() or look.exception() is not None:
            known = self._experiments.get(name)
            if known is not None and known[1] is look:
                self.forget(name)

    def forget(self, name: str) -> None:
        """Look an experiment up anew next time: it has changed."""
        self._experiments.pop(name, None)

    def know(self, exposure: Exposure) -> None:
        """Remember a unit's arm."""
        self._units[(exposure.experiment, exposure.unit)] = (exposure.arm, exposure.propensity)
        if len(self._units) > MOST_UNITS:
            self._units.popitem(last=False)
