"""The cases of the `serve` section: what an endpoint of the job does, of the parts that it is made of, without Ray."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from api_world import WordEngine, client_of
from leaf_case import Case

from ftray.artifacts import digest_of
from ftray.job import LoadedJob
from ftray.serve.api.keys import add_key
from ftray.serve.app import build_app, make_engine
from ftray.serve.asking import Ask, Engine, EngineFull, EngineState, Sampling
from ftray.serve.outcomes.async_outcomes import ThreadedOutcomes
from ftray.serve.outcomes.store import open_outcomes
from ftray.serve.plan import Serving, serving_of_job
from ftray.serve.run import http_options
from ftray.serve.service import make_service


class CountedWords(WordEngine):
    """An engine whose counts can be asked for, as those behind handles."""

    async def refresh(self) -> EngineState:
        return self.state()

    def why_not_ready(self) -> str | None:
        return None


def listening(loaded: LoadedJob, folder: Path) -> Any:
    return http_options(serving_of_job(loaded))


def engine_of(loaded: LoadedJob, folder: Path) -> Any:
    return type(make_engine(serving_of_job(loaded))).__name__


def slots_of(loaded: LoadedJob, folder: Path) -> Any:
    async def story(engine: Engine) -> int:
        await engine.start()
        slots = engine.state().slots
        await engine.stop()
        return slots

    return asyncio.run(story(make_engine(serving_of_job(loaded))))


def refused_of_eight(loaded: LoadedJob, folder: Path) -> Any:
    """Return how many of eight questions at once are sent away."""

    async def one(engine: Engine, number: int) -> bool:
        ask = Ask(request_id=str(number), prompt="the sea", sampling=Sampling(max_tokens=30, temperature=0))
        try:
            async for _ in engine.generate(ask):
                pass
        except EngineFull:
            return True
        return False

    async def story(engine: Engine) -> int:
        await engine.start()
        sent_away = await asyncio.gather(*(one(engine, number) for number in range(8)))
        await engine.stop()
        return sum(sent_away)

    return asyncio.run(story(make_engine(serving_of_job(loaded))))


def loaded_first(loaded: LoadedJob, folder: Path) -> Any:
    return serving_of_job(loaded).adapters


def engines(loaded: LoadedJob, folder: Path) -> Any:
    api = build_app(serving_of_job(loaded), engine_cpus=1, engine_gpus=0)._bound_deployment
    return api.init_args[1]._bound_deployment.num_replicas


def stored_where(loaded: LoadedJob, folder: Path) -> Any:
    serving = serving_of_job(loaded)
    place = folder / serving.config.store.partition(":")[0] / str(len(serving.config.store))
    place.mkdir(parents=True)
    open_outcomes(serving.config.store.replace("FOLDER", str(place)), place).close()
    return sorted(path.name for path in place.iterdir())


def asked_without_a_key(loaded: LoadedJob, folder: Path) -> Any:
    serving = serving_of_job(loaded)
    if serving.config.keys_file is not None and not Path(serving.config.keys_file).exists():
        add_key(Path(serving.config.keys_file), name="somebody", scopes=["infer"])

    async def story(folder: Path) -> int:
        async with service(serving, folder) as client:
            return int((await client.get("/v1/models")).status_code)

    return asyncio.run(story(folder))


def kept_hours(loaded: LoadedJob, folder: Path) -> Any:
    """Return for how many hours an experiment's answer is kept; None for not at all."""
    serving = serving_of_job(loaded)

    async def story() -> int | None:
        async with service(serving, folder) as client:
            arms = [{"name": "left", "model": serving.base}, {"name": "right", "model": serving.base}]
            await client.post("/v1/experiments", json={"name": "keeping", "arms": arms, "control": "left"})
            body = {"model": "exp:keeping", "prompt": "the sea", "user": "someone"}
            response = (await client.post("/v1/completions", json=body)).json()["id"]
        # The application has ended, and what it does in the background with it.
        store = open_outcomes("sqlite", folder / digest(serving))
        found = store.answers(response)
        store.close()
        return round((found[0]["until"] - time.time()) / 3600) if found else None

    return asyncio.run(story())


def digest(serving: Serving) -> str:
    return f"store-{digest_of(serving.config.model_dump(mode='json'))[:12]}"


def service(serving: Serving, folder: Path) -> Any:
    place = folder / digest(serving)
    place.mkdir(exist_ok=True)
    outcomes = ThreadedOutcomes(open_outcomes("sqlite", place))
    return client_of(make_service(serving, CountedWords(), outcomes))


SERVE_CASES: dict[str, Case] = {
    "serve.host": Case(values=("127.0.0.1", "127.0.0.2"), effect=listening),
    "serve.port": Case(values=(8000, 8001), effect=listening),
    "serve.deadline_seconds": Case(values=(60.0, 120.0), effect=listening),
    "serve.engine": Case(values=("bank", "vllm"), effect=engine_of),
    "serve.slots": Case(values=(2, 3), effect=slots_of),
    "serve.queue": Case(values=(2, 5), effect=refused_of_eight, given=("serve.slots=1",)),
    "serve.adapters": Case(values=([], ["nobody"]), effect=loaded_first),
    "serve.replicas": Case(values=(1, 2), effect=engines),
    "serve.keys_file": Case(values=(None, "./keys.json"), effect=asked_without_a_key),
    "serve.store": Case(values=("sqlite", "sqlite:///FOLDER/other.sqlite"), effect=stored_where),
    "serve.keep_answers": Case(values=(None, {"hours": 2}), effect=kept_hours),
    "serve.keep_answers.hours": Case(values=(2, 4), effect=kept_hours),
}
