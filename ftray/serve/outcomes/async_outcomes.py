"""The store of exposures and outcomes as the API reaches it: the same calls, awaited.

In one process they run in threads of their own; across processes a handle takes this one's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from ftray.serve.experiment.spec import Experiment, ExperimentSpec, Exposure, Outcomes, Recorded, Status

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")
THREADS = 16
"""Calls that wait for the disk at a time: those that come while one commits share the next commit."""


class StoreLost(Exception):
    """The store does not answer: 503. What was not acknowledged may be sent again with the same key."""


class AsyncOutcomes(Protocol):
    """`Outcomes`, awaited: its methods, arguments and errors."""

    async def create(self, spec: ExperimentSpec, digests: dict[str, str | None]) -> Experiment: ...

    async def experiment(self, name: str) -> Experiment: ...

    async def experiments(self) -> list[Experiment]: ...

    async def reweigh(self, name: str, weights: dict[str, float]) -> Experiment: ...

    async def stop(self, name: str, *, reason: str, status: Status = "stopped") -> Experiment: ...

    async def expose(self, name: str, *, unit: str, arm: str, propensity: float, response_id: str) -> Exposure: ...

    async def feedback(
        self, *, key: str, metric: str, value: float, response_id: str | None, experiment: str | None, unit: str | None
    ) -> Recorded: ...

    async def prefer(
        self, *, key: str, experiment: str, unit: str, chosen: str, rejected: str, is_tie: bool
    ) -> Recorded: ...

    async def measure(self, response_id: str, values: dict[str, float]) -> None: ...

    async def keep(self, response_id: str, *, arm: str, prompt: str, answer: str, until: float) -> None: ...

    async def purge(self, now: float) -> int: ...

    async def report(self, name: str) -> dict[str, object]: ...

    async def history(self, name: str) -> list[dict[str, Any]]: ...

    async def close(self) -> None: ...


class ThreadedOutcomes(AsyncOutcomes):
    """A store of this process, called in threads."""

    def __init__(self, outcomes: Outcomes, *, threads: int = THREADS) -> None:
        self._outcomes = outcomes
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="outcomes")

    async def _run(
        self, call: Callable[Parameters, Answer], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(call, *arguments, **named))

    async def create(self, spec: ExperimentSpec, digests: dict[str, str | None]) -> Experiment:
        return await self._run(self._outcomes.create, spec, digests)

    async def experiment(self, name: str) -> Experiment:
        return await self._run(self._outcomes.experiment, name)

    async def experiments(self) -> list[Experiment]:
        return await self._run(self._outcomes.experiments)

    async def reweigh(self, name: str, weights: dict[str, float]) -> Experiment:
        return await self._run(self._outcomes.reweigh, name, weights)

    async def stop(self, name: str, *, reason: str, status: Status = "stopped") -> Experiment:
        return await self._run(self._outcomes.stop, name, reason=reason, status=status)

    async def expose(self, name: str, *, unit: str, arm: str, propensity: float, response_id: str) -> Exposure:
        return await self._run(
            self._outcomes.expose, name, unit=unit, arm=arm, propensity=propensity, response_id=response_id
        )

    async def feedback(
        self, *, key: str, metric: str, value: float, response_id: str | None, experiment: str | None, unit: str | None
    ) -> Recorded:
        return await self._run(
            self._outcomes.feedback,
            key=key,
            metric=metric,
            value=value,
            response_id=response_id,
            experiment=experiment,
            unit=unit,
        )

    async def prefer(
        self, *, key: str, experiment: str, unit: str, chosen: str, rejected: str, is_tie: bool
    ) -> Recorded:
        return await self._run(
            self._outcomes.prefer,
            key=key,
            experiment=experiment,
            unit=unit,
            chosen=chosen,
            rejected=rejected,
            is_tie=is_tie,
        )

    async def measure(self, response_id: str, values: dict[str, float]) -> None:
        await self._run(self._outcomes.measure, response_id, values)

    async def keep(self, response_id: str, *, arm: str, prompt: str, answer: str, until: float) -> None:
        await self._run(self._outcomes.keep, response_id, arm=arm, prompt=prompt, answer=answer, until=until)

    async def purge(self, now: float) -> int:
        return await self._run(self._outcomes.purge, now)

    async def report(self, name: str) -> dict[str, object]:
        return await self._run(self._outcomes.report, name)

    async def history(self, name: str) -> list[dict[str, Any]]:
        return await self._run(self._outcomes.history, name)

    async def close(self) -> None:
        """Close the store and end the threads."""
        await self._run(self._outcomes.close)
        self._pool.shutdown(wait=False)
