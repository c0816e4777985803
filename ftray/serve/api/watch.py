"""What an experiment's verdict sets off: promotion of a winner, the end and the rollback at a guardrail.

The decision is a pure function of the report. Acting on it twice, or on two replicas at once, comes to the same: an
alias moves by compare-and-swap, and an experiment ends once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ftray.errors import FtrayError
from ftray.serve.api.background import logged
from ftray.serve.api.catalogue import Catalogue
from ftray.serve.asking import EngineLost
from ftray.serve.experiment.spec import Experiment, ExperimentSpec, Status
from ftray.serve.outcomes.async_outcomes import AsyncOutcomes

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
"""Between two looks, however many outcomes come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """How a running experiment ends."""

    status: Status
    reason: str
    promote: str | None = None
    """The arm that the alias of `promote` is to point at."""
    roll_back: tuple[str, ...] = ()
    """Arms that the alias must not point at."""


def decide(report: Mapping[str, Any], spec: ExperimentSpec) -> Action | None:
    """Return how an experiment ends by its report; None where it goes on, or people decide."""
    if report["status"] != "running":
        return None
    if report["verdict"] == "stopped_guardrail":
        tripped = [rail for rail in report["guardrails"] if rail["tripped"]]
        arms = tuple(dict.fromkeys(rail["arm"] for rail in tripped if rail["action"] == "rollback"))
        return Action(status="stopped", reason=report["reason"], roll_back=arms if spec.promote else ())
    if report["verdict"] == "winner" and spec.promote is not None:
        return Action(status="promoted", reason=report["reason"], promote=report["winner"])
    return None


class Watch:
    """Looks at the experiments that end by themselves, whenever outcomes have come in."""

    def __init__(
        self,
        catalogue: Catalogue,
        outcomes: AsyncOutcomes,
        *,
        changed: Callable[[str], None] = lambda name: None,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        """`changed` is told the name of an experiment that has ended."""
        self._catalogue, self._outcomes, self._changed = catalogue, outcomes, changed
        self._every_seconds = every_seconds
        self._is_due = False
        self._task: asyncio.Task[None] | None = None

    def poke(self) -> None:
        """Look soon: at once, or when the time since the last look is over. A look that fails is made again."""
        self._is_due = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._is_due:
            self._is_due = False
            if not await logged(self.look(), "the experiments could not be looked at"):
                self._is_due = True
            await asyncio.sleep(self._every_seconds)

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Act on every running experiment whose end is not people's alone."""
        for experiment in await self._outcomes.experiments():
            spec = experiment.spec
            if experiment.status == "running" and (spec.promote is not None or spec.guardrails):
                await self.act_on(experiment)

    async def act_on(self, experiment: Experiment) -> Action | None:
        """Look at one experiment, and end it where its report says so; return what was done."""
        spec = experiment.spec
        action = decide(await self._outcomes.report(spec.name), spec)
        if action is None:
            return None
        status, reason = action.status, action.reason
        try:
            if action.promote is not None:
                status, reason = await self._promote(experiment, action)
            for arm in action.roll_back:
                await self._roll_back(experiment, arm, reason)
        except (FtrayError, EngineLost) as error:
            said = error.message if isinstance(error, FtrayError) else str(error)
            if action.promote is not None:
                # Another look finds the alias where it is then.
                log.error("experiment %s: %s", spec.name, said)
                return None
            # The arm that does harm gets nobody any more, wherever the alias is.
            log.error("experiment %s: its alias could not be rolled back: %s", spec.name, said)
            reason = f"{reason} The alias stays: {said}."
        await self._outcomes.stop(spec.name, reason=reason, status=status)
        self._changed(spec.name)
        return action

    async def _promote(self, experiment: Experiment, action: Action) -> tuple[Status, str]:
        assert experiment.spec.promote is not None
        assert action.promote is not None
        alias, digest = experiment.spec.promote.alias, experiment.digests[action.promote]
        if digest is None:
            return "stopped", f"{action.reason} It is the base, which no alias can point at: {alias} stays as it is."
        present = await self._catalogue.alias(alias)
        if present is None or present["digest"] != digest:
            model = await self._catalogue.restore(digest)
            assert model.name is not None
            why = f"winner of the experiment {experiment.spec.name}: {action.reason}"
            await self._catalogue.promote(
                alias,
                name=model.name,
                digest=digest,
                generation=present["generation"] if present else None,
                by=f"experiment {experiment.spec.name}",
                reason=why,
                # Its verdict is this one.
                force=why,
            )
        return "promoted", action.reason

    async def _roll_back(self, experiment: Experiment, arm: str, reason: str) -> None:
        assert experiment.spec.promote is not None
        alias = experiment.spec.promote.alias
        present = await self._catalogue.alias(alias)
        if present is None or present["digest"] != experiment.digests[arm]:
            return
        await self._catalogue.rollback(
            alias, generation=present["generation"], by=f"experiment {experiment.spec.name}", reason=reason
        )
