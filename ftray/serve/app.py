"""The endpoint on Ray Serve: an ingress with the API, engines, and the one writer of outcomes.

`build` is what a Serve configuration names (`import_path: ftray.serve.app:build`). Every replica opens the registry by
itself: an engine that starts loads what is promised, and one that is asked for an adapter it does not have yet, loads
it then; digests never change what they stand for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray import serve

from ftray.errors import FtrayError, InputError
from ftray.observe.ray_measures import RayInstruments
from ftray.serve.api.background import repeat
from ftray.serve.api.metrics import EngineMeters
from ftray.serve.asking import AdapterSource, Ask, Engine, EngineState, Loaded, Piece, UnknownAdapter
from ftray.serve.plan import Serving, serving_of_job
from ftray.train.secrecy import Secrets

log = logging.getLogger(__name__)

ENGINE, INGRESS, OUTCOMES = "engine", "api", "outcomes"
NAME = "ftray"
"""Of the Serve application."""
DRAIN_SECONDS = 18.0
"""Longest time that answers under way have once the endpoint is told to stop."""
TELL_SECONDS = 5.0
"""How often an engine tells its counts to Ray's metrics, which are read less often."""
SPARE_CALLS = 32
"""Calls of one engine beside its answers: loads and counts."""
QUIET = {"log_level": "WARNING", "enable_access_log": False}
HEAD = {"node:__internal_head__": 0.001}


class EngineReplica:
    """One engine, and the adapters that it should have."""

    def __init__(self, serving: Serving, secrets: Secrets) -> None:
        secrets.set()
        self._serving = serving
        self._registry = serving.registry()
        self._engine: Engine
        self._refused: dict[str, FtrayError] = {}
        self._loading: dict[str, asyncio.Task[Loaded]] = {}
        self._starting: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    async def start(self) -> dict[str, FtrayError]:
        """Load base and adapters, once; return the adapters that were refused, with the reason."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(self._forget_failed)
        # Who asks first and goes again does not break it off for the others.
        await asyncio.shield(self._starting)
        return self._refused

    def _forget_failed(self, start: asyncio.Task[None]) -> None:
        """Start anew when somebody asks again."""
        if start.cancelled() or start.exception() is not None:
            self._starting = None

    async def _start(self) -> None:
        # Not in the constructor: what is wrong would come out as a replica that Serve starts again and again.
        self._engine = make_engine(self._serving)
        try:
            await self._engine.start()
        except BaseException:
            await self._engine.stop()
            raise
        for adapter in self._serving.adapters:
            try:
                await self._engine.load(await asyncio.to_thread(self._serving.source, self._registry, adapter))
            except FtrayError as error:
                log.error("%s is not served: %s", adapter, error.message)
                self._refused[adapter] = error
        meters = EngineMeters(RayInstruments())

        async def tell() -> None:
            meters.tell(self._engine.state())

        telling = repeat(tell, "the engine's counts could not be told", seconds=TELL_SECONDS)
        self._telling = asyncio.create_task(telling)

    async def check_health(self) -> None:
        """Raise where the engine has died: Serve then starts another replica."""
        starting = self._starting
        is_up = starting is not None and starting.done() and not starting.cancelled() and starting.exception() is None
        if is_up and not self._engine.is_alive():
            raise RuntimeError("the engine has died")

    async def __del__(self) -> None:
        """End what the engine has started."""
        if self._telling is not None:
            self._telling.cancel()
        if hasattr(self, "_engine"):
            await self._engine.stop()

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Yield an answer as it grows, or in one piece where nobody sees it grow."""
        await self.start()
        if ask.digest is not None and ask.digest not in self._engine.state().digests:
            await self._fetch(ask.digest)
        if ask.is_streamed:
            async for piece in self._engine.generate(ask):
                yield piece
        else:
            yield joined([piece async for piece in self._engine.generate(ask)])

    async def load(self, source: AdapterSource) -> Loaded:
        """Load an adapter and prove it. Two loads of one adapter are one."""
        await self.start()
        task = self._loading.get(source.digest)
        if task is None:
            task = self._loading[source.digest] = asyncio.create_task(self._engine.load(source))
            task.add_done_callback(lambda done: self._loading.pop(source.digest, None))
        return await asyncio.shield(task)

    async def _fetch(self, digest: str) -> None:
        """Load an adapter that others have: this replica began before it was loaded, and was not told."""
        records = await asyncio.to_thread(self._registry.list)
        record = next((one for one in records if one["digest"] == digest), None)
        if record is None:
            raise UnknownAdapter(digest)
        await self.load(await asyncio.to_thread(self._serving.source, self._registry, f"{record['name']}@{digest}"))

    async def unload(self, digest: str) -> None:
        """Forget an adapter."""
        await self.start()
        await self._engine.unload(digest)

    async def state(self) -> EngineState:
        """Return the counts."""
        await self.start()
        return self._engine.state()


def joined(pieces: list[Piece]) -> Piece:
    """Return the pieces of an answer as one."""
    assert pieces, "an answer has a last piece"
    return Piece(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        logprobs=tuple(one for piece in pieces for one in piece.logprobs),
        finish_reason=pieces[-1].finish_reason,
        prompt_tokens=pieces[-1].prompt_tokens,
        completion_tokens=pieces[-1].completion_tokens,
    )


def make_engine(serving: Serving) -> Engine:
    """Return the engine that the job asks for, not started."""
    if serving.config.engine == "vllm":
        from ftray.serve.engine.vllm_engine import VllmEngine

        return VllmEngine(serving.model, slots=serving.config.slots, queue=serving.config.queue)
    from ftray.serve.engine.bank_engine import BankEngine

    return BankEngine(serving.model, slots=serving.config.slots, queue=serving.config.queue)


class OutcomesReplica:
    """The one writer of exposures and outcomes; its calls wait in threads and share commits."""

    def __init__(self, serving: Serving) -> None:
        from ftray.serve.outcomes.store import open_outcomes

        self._outcomes: Any = open_outcomes(serving.config.store, serving.storage)
        self._pool = ThreadPoolExecutor(SPARE_CALLS, thread_name_prefix="outcomes")

    async def call(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a method of the store."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: getattr(self._outcomes, method)(*arguments, **named))


class Ingress:
    """The API before engines and store."""

    def __init__(self, serving: Serving, engine: Any, outcomes: Any, secrets: Secrets) -> None:
        secrets.set()
        self._serving, self._engine, self._outcomes = serving, engine, outcomes
        self._door: Any = None

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application, for Serve to call when this replica starts."""
        from ftray.serve.drain import Drain
        from ftray.serve.handles import HandleEngine, HandleOutcomes
        from ftray.serve.service import make_service

        config = self._serving.config
        most = config.replicas * (config.slots + config.queue)
        engine = HandleEngine(self._engine, positions=self._serving.positions, most=most)
        outcomes = HandleOutcomes(self._outcomes)
        self._door = Drain(make_service(self._serving, engine, outcomes, instruments=RayInstruments()))
        return self._door

    async def close(self) -> int:
        """Take no more requests; return how many are under way."""
        return int(self._door.close())


def build_app(
    serving: Serving, *, engine_cpus: float, engine_gpus: float, grace_seconds: float = DRAIN_SECONDS
) -> serve.Application:
    """Return the Serve application of an endpoint.

    `grace_seconds`: what answers under way have when it is deleted; none where it has been drained before.
    """
    from ftray.train.launch import own_secrets, worker_environment

    # What it returns for a class is typed as what it returns without one.
    deployment: Any = serve.deployment
    config = serving.config
    most = config.slots + config.queue
    vllm = {name: value for name, value in os.environ.items() if name.startswith("FTRAY_VLLM_")}
    environment, secrets = worker_environment(has_gpu=engine_gpus > 0) | vllm, own_secrets()
    engines = deployment(
        EngineReplica,
        name=ENGINE,
        num_replicas=config.replicas,
        # What is too much is refused by the engine itself, which says when to come again.
        max_ongoing_requests=2 * most + SPARE_CALLS,
        max_queued_requests=-1,
        graceful_shutdown_timeout_s=grace_seconds,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2.0,
        max_constructor_retry_count=2,
        logging_config=QUIET,
        ray_actor_options={
            "num_cpus": engine_cpus,
            "num_gpus": engine_gpus,
            "runtime_env": {"env_vars": environment},
        },
    ).bind(serving, secrets)
    outcomes = deployment(
        OutcomesReplica,
        name=OUTCOMES,
        num_replicas=1,
        max_ongoing_requests=1024,
        graceful_shutdown_timeout_s=grace_seconds,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2.0,
        logging_config=QUIET,
        ray_actor_options={"num_cpus": 0, "resources": HEAD, "runtime_env": {"env_vars": environment}},
    ).bind(serving)
    api = deployment(
        serve.ingress()(Ingress),
        name=INGRESS,
        num_replicas=1,
        max_ongoing_requests=config.replicas * 4 * most + SPARE_CALLS,
        graceful_shutdown_timeout_s=grace_seconds,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2.0,
        logging_config=QUIET,
        # Where the file of keys is, and a registry that is a folder.
        ray_actor_options={"num_cpus": 0, "resources": HEAD, "runtime_env": {"env_vars": environment}},
    )
    app: serve.Application = api.bind(serving, engines, outcomes, secrets)
    return app


def build(args: dict[str, str]) -> serve.Application:
    """Return the application that a Serve configuration describes.

    `args`: `job` (a job file), `storage` (stronger than the job's), `adapters` (names, separated by commas),
    `engine_cpus`, `engine_gpus`, and `without_keys: "yes"` for a Serve that listens on loopback only: who builds an
    application is not told where. Raises InputError for what cannot be served.
    """
    from ftray.job import load_job

    known = {"job", "storage", "adapters", "engine_cpus", "engine_gpus", "without_keys"}
    if "job" not in args or set(args) - known:
        raise InputError(
            "the application needs the argument `job`"
            if "job" not in args
            else "there are arguments without a meaning",
            kind="bad_value",
            given=sorted(args),
            allowed=sorted(known),
            hint="Correct args in the Serve configuration.",
        )
    loaded = load_job(Path(args["job"]), storage=args.get("storage"))
    if loaded.job.serve.keys_file is None and args.get("without_keys") != "yes":
        raise InputError(
            "a Serve configuration may listen anywhere, and the job has no API keys",
            kind="open_to_all",
            given={"serve.keys_file": None},
            allowed='a file of keys (ftray keys add); or without_keys: "yes", where Serve listens on loopback only',
            hint="Set serve.keys_file in the job; every node must have the file.",
            path="serve.keys_file",
        )
    adapters = [name.strip() for name in args.get("adapters", "").split(",") if name.strip()]
    serving = serving_of_job(loaded, adapters=adapters)
    gpus = float(args.get("engine_gpus", loaded.job.compute.gpus_per_worker))
    return build_app(serving, engine_cpus=float(args.get("engine_cpus", 1)), engine_gpus=gpus)


def with_config(serving: Serving, **changes: Any) -> Serving:
    """Return the same endpoint with other settings."""
    return dataclasses.replace(serving, config=serving.config.model_copy(update=changes))
