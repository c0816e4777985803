"""The official `openai` client, unmodified, against a real server with a real tiny model and its adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from api_server import Server, serving
from fastapi import FastAPI
from serve_world import ServeWorld, make_world

from ftray.model.base import identify
from ftray.registry.registry import open_registry
from ftray.serve.api.application import make_api
from ftray.serve.api.keys import Keyring, add_key
from ftray.serve.api.local_catalogue import LocalCatalogue
from ftray.serve.engine.bank_engine import BankEngine
from ftray.serve.outcomes.async_outcomes import ThreadedOutcomes
from ftray.serve.outcomes.store import open_outcomes
from ftray.serve.plan import source_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
USER: Any = [{"role": "user", "content": "Which way is it?"}]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> ServeWorld:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def key(here: ServeWorld) -> str:
    return add_key(here.folder / "keys.json", name="root", scopes=["admin"])[1]


@pytest.fixture(scope="module")
def server(here: ServeWorld, key: str) -> Iterator[Server]:
    @asynccontextmanager
    async def parts() -> AsyncIterator[tuple[FastAPI, BankEngine]]:
        engine = BankEngine(str(here.base), slots=8)
        await engine.start()
        outcomes = ThreadedOutcomes(open_outcomes("sqlite", here.storage))
        catalogue = LocalCatalogue(
            open_registry(here.storage), engine, base="tiny", base_digest=identify(str(here.base)).digest,
            source_of=source_of,
        )  # fmt: skip
        try:
            for name in ("one", "two"):
                await catalogue.admit(f"tiny:{name}")
            keys = Keyring(here.folder / "keys.json")
            yield make_api(engine=engine, outcomes=outcomes, catalogue=catalogue, keys=keys), engine
        finally:
            await outcomes.close()
            await engine.stop()

    with serving(parts) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Server, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as made:
        yield made


def test_models(client: openai.OpenAI, here: ServeWorld) -> None:
    found = [model.id for model in client.models.list()]
    assert found[0] == "tiny"
    assert {"tiny:one", "tiny:two", f"tiny:one@{here.digest('one')[:12]}"} <= set(found)
    assert client.models.retrieve("tiny:one").owned_by == "ftray"


def test_a_chat_of_base_and_adapters(client: openai.OpenAI, here: ServeWorld) -> None:
    said = {}
    for model in ("tiny", "tiny:one", "tiny:two"):
        answer = client.chat.completions.create(model=model, messages=USER, temperature=0, max_tokens=12)
        said[model] = answer.choices[0].message.content
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 0
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        who = "base" if model == "tiny" else here.digest(model.partition(":")[2])[:12]
        assert answer.system_fingerprint == who
    assert len(set(said.values())) == 3, "each is its own"


def test_streaming_says_the_same(client: openai.OpenAI) -> None:
    wanted: Any = {
        "model": "tiny:one",
        "messages": USER,
        "temperature": 0,
        "max_tokens": 12,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**wanted)
    chunks = list(client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.choices[0].logprobs is not None
    tokens = whole.choices[0].logprobs.content
    assert tokens is not None
    assert whole.usage is not None
    assert len(tokens) == whole.usage.completion_tokens
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
    assert all(token.token == token.top_logprobs[0].token for token in tokens), "greedy takes the likeliest"


def test_n_seeds_and_stops(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "tiny:two", "messages": USER, "max_tokens": 10, "n": 3, "seed": 2**62}
    first, again = client.chat.completions.create(**wanted), client.chat.completions.create(**wanted)
    texts = [choice.message.content or "" for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    with_stop = next(text for text in texts if len(text) > 4)
    stop = with_stop[2:4]
    cut = client.chat.completions.create(**wanted, stop=[stop])
    found = cut.choices[texts.index(with_stop)]
    assert found.message.content == with_stop[: with_stop.index(stop)]
    assert found.finish_reason == "stop"


def test_completions(client: openai.OpenAI) -> None:
    wanted: Any = {
        "model": "tiny:one",
        "prompt": ["User: hello", "Bot"],
        "temperature": 0,
        "max_tokens": 6,
        "logprobs": 2,
    }
    whole = client.completions.create(**wanted)
    assert [choice.index for choice in whole.choices] == [0, 1]
    texts = ["", ""]
    for chunk in client.completions.create(**wanted, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == 6


def test_errors_are_the_client_s_own(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="tiny:none", messages=USER)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=USER, presence_penalty=1)
    assert refused.value.param == "presence_penalty"
    with pytest.raises(openai.BadRequestError) as overlong:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 5000}])
    assert overlong.value.code
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_the_asynchronous_client_and_one_that_goes(server: Server, key: str) -> None:
    async def story() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:

            async def one(number: int) -> str:
                model = ("tiny", "tiny:one", "tiny:two")[number % 3]
                answer = await client.chat.completions.create(model=model, messages=USER, temperature=0, max_tokens=8)
                return answer.choices[0].message.content or ""

            said = await asyncio.gather(*(one(number) for number in range(12)))
            assert len(set(said)) == 3
            assert said[:3] * 4 == said
            stream = await client.chat.completions.create(
                model="tiny", messages=USER, max_tokens=200, stream=True, seed=1
            )
            async for chunk in stream:
                assert chunk.choices
                break
            await stream.close()
            for _ in range(100):
                if server.parts.state().running == 0:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("it still runs")

    asyncio.run(story())


def test_an_experiment_through_the_client(client: openai.OpenAI) -> None:
    arms = [{"name": "base", "model": "tiny"}, {"name": "tuned", "model": "tiny:one"}]
    body: Any = {"name": "through", "arms": arms, "control": "base"}
    assert client.post("/experiments", body=body, cast_to=dict)["status"] == "running"
    answer = client.chat.completions.create(model="exp:through", messages=USER, max_tokens=4, user="u1")
    assert answer.model == "exp:through"
    assert answer.system_fingerprint is None
    outcome: Any = {"response_id": answer.id, "value": True, "idempotency_key": answer.id}
    assert client.post("/feedback", body=outcome, cast_to=dict) == {"status": "recorded"}
    raw = client.chat.completions.with_raw_response.create(
        model="exp:through", messages=USER, max_tokens=4, extra_headers={"X-Ftray-Unit": "u2"}
    )
    assert raw.headers["x-ftray-experiment"] == "through"
    assert raw.headers["x-ftray-arm"] in ("base", "tuned"), "this key is an admin's"
