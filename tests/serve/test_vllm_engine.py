"""The vllm engine against a stand-in of vLLM's routes over a real tiny model."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_world import World, make_world
from vllm_stand_in import BASE_NAME, StandIn, serving

from ftray.errors import InputError
from ftray.serve.asking import Ask, DeadlinePassed, EngineFull, EngineLost, Piece, Sampling, UnknownAdapter
from ftray.serve.engine.vllm_engine import VllmEngine
from ftray.serve.engine.vllm_server import KEY, URL, Server, serve_command, wait_until_up

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
GREEDY = Sampling(temperature=0.0, max_tokens=12)
PROMPT = (5, 9, 17)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@asynccontextmanager
async def running(
    world: World, *arms: int, slots: int = 16, queue: int = 64, **faults: Any
) -> AsyncIterator[tuple[VllmEngine, StandIn]]:
    """Return an engine with these arms loaded, and the server that it talks to."""
    stand_in = StandIn(base=world.base, **faults)
    with serving(stand_in) as url:
        engine = VllmEngine(str(world.base), slots=slots, queue=queue, url=url, dtype="float32")
        await engine.start()
        try:
            for number in arms:
                await engine.load(world.sources[number])
            yield engine, stand_in
        finally:
            await engine.stop()


def run(work: Awaitable[None]) -> None:
    async def whole() -> None:
        await work

    asyncio.run(whole())


def ask(world: World, number: int = 0, *, sampling: Sampling = GREEDY, **more: Any) -> Ask:
    digest = world.sources[number].digest if number else None
    return Ask(request_id="r", digest=digest, prompt=PROMPT, sampling=sampling, **more)


async def answer(engine: VllmEngine, asked: Ask) -> list[Piece]:
    return [piece async for piece in engine.generate(asked)]


def tokens_of(pieces: list[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


async def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        await asyncio.sleep(0.005)


def test_every_digest_answers_under_its_own_name(world: World) -> None:
    async def work() -> None:
        async with running(world, 1, 2) as (engine, stand_in):
            assert engine.positions() == 200
            assert set(stand_in.loras) == {f"ftray-{world.sources[number].digest}" for number in (1, 2)}
            assert set(engine.state().digests) == {world.sources[number].digest for number in (1, 2)}
            answers = await asyncio.gather(*(answer(engine, ask(world, number)) for number in range(3)))
            for number, pieces in enumerate(answers):
                assert tokens_of(pieces) == world.greedy(number, PROMPT, 12)[: len(tokens_of(pieces))]
                assert pieces[-1].finish_reason in ("length", "stop")
                assert pieces[-1].prompt_tokens == 3
                assert pieces[-1].completion_tokens == len(tokens_of(pieces))
            assert len(answers[0]) > 1, "it is streamed"
            with pytest.raises(UnknownAdapter):
                await answer(engine, ask(world, 3))
            (whole,) = await answer(engine, replace(ask(world, 1), is_streamed=False))
            assert whole.text == "".join(piece.text for piece in answers[1])

    run(work())


def test_chats_are_rendered_here_and_asked_as_tokens(world: World) -> None:
    async def work() -> None:
        async with running(world, 1) as (engine, stand_in):
            messages = ({"role": "user", "content": "Grüße"},)
            await answer(engine, replace(ask(world, 1), prompt=None, messages=messages))
            tokens = stand_in.tokenizer("user: Grüße\nassistant:")["input_ids"]
            assert stand_in.asked[-1]["prompt"] == tokens
            assert stand_in.asked[-1]["stop_token_ids"] == [stand_in.tokenizer.eos_token_id]

    run(work())


def test_sampling_is_passed_on(world: World) -> None:
    async def work() -> None:
        async with running(world) as (engine, stand_in):
            sampling = Sampling(temperature=0.7, top_p=0.9, top_k=5, seed=3, stop=("x",), max_tokens=4, logprobs=2)
            pieces = await answer(engine, ask(world, sampling=sampling))
            asked = stand_in.asked[-1]
            assert {key: asked[key] for key in ("temperature", "top_p", "top_k", "max_tokens", "logprobs", "stop")} == {
                "temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_tokens": 4, "logprobs": 2, "stop": ["x"]
            }  # fmt: skip
            told = [one for piece in pieces for one in piece.logprobs]
            assert [one.token_id for one in told] == tokens_of(pieces)
            assert all(len(one.top) == 2 and one.top[0][2] >= one.top[1][2] for one in told)
            first = asked["seed"]
            await answer(engine, ask(world, sampling=sampling))
            assert stand_in.asked[-1]["seed"] == first
            await answer(engine, replace(ask(world, sampling=sampling), index=1))
            assert stand_in.asked[-1]["seed"] != first

    run(work())


def test_a_server_that_answers_as_the_base_is_refused(world: World) -> None:
    async def work() -> None:
        async with running(world, answers_as_base=True) as (engine, stand_in):
            with pytest.raises(InputError, match="answers as its base") as refused:
                await engine.load(world.sources[1])
            assert refused.value.kind == "not_live"
            assert engine.state().digests == ()
            with pytest.raises(UnknownAdapter):
                await answer(engine, ask(world, 1))
            await until(lambda: not stand_in.loras)

    run(work())


@pytest.mark.parametrize("faults", [{"knows_token_ids": False}, {"knows_token_ids": False, "max_logprobs": 20}, {}])
def test_another_adapters_files_are_refused_whatever_the_server_tells(world: World, faults: dict[str, Any]) -> None:
    async def work() -> None:
        async with running(world, **faults) as (engine, _):
            loaded = await engine.load(world.sources[1])
            assert loaded.max_abs_difference_from_base > 0.01
            assert loaded.max_abs_difference_from_fingerprint < 0.01
            with pytest.raises(InputError) as refused:
                await engine.load(replace(world.sources[2], folder=world.sources[3].folder))
            assert refused.value.kind == "not_live"
            assert engine.state().digests == (world.sources[1].digest,)

    run(work())


def test_too_few_log_probabilities_prove_nothing(world: World) -> None:
    async def work() -> None:
        async with running(world, knows_token_ids=False, tells_of_prompts=False, max_logprobs=20) as (engine, _):
            with pytest.raises(InputError):
                await engine.load(world.sources[1])
            assert engine.state().digests == ()

    run(work())


def test_an_adapter_of_an_engine_before_is_proven_and_used(world: World) -> None:
    async def work() -> None:
        async with running(world, 1) as (engine, stand_in):
            again = VllmEngine(str(world.base), url=engine._server.url, dtype="float32")  # type: ignore[union-attr]
            await again.start()
            await again.load(world.sources[1])
            assert tokens_of(await answer(again, ask(world, 1)))
            assert len(stand_in.loras) == 1
            await again.stop()

    run(work())


def test_unloading_waits_for_running_answers(world: World) -> None:
    async def work() -> None:
        async with running(world, 1, seconds_a_token=0.01) as (engine, stand_in):
            task = asyncio.create_task(answer(engine, ask(world, 1)))
            await until(lambda: stand_in.running == 1)
            await engine.unload(world.sources[1].digest)
            assert engine.state().digests == ()
            assert len(stand_in.loras) == 1
            assert tokens_of(await task)
            await until(lambda: not stand_in.loras)

    run(work())


def test_a_server_without_runtime_adapters_says_what_to_do(world: World) -> None:
    async def work() -> None:
        async with running(world, takes_adapters=False) as (engine, _):
            with pytest.raises(InputError) as refused:
                await engine.load(world.sources[1])
            assert refused.value.kind == "unsupported_server"
            assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in refused.value.hint

    run(work())


def test_what_the_server_cannot_load_is_refused(world: World, tmp_path: Path) -> None:
    async def work() -> None:
        async with running(world) as (engine, _):
            with pytest.raises(InputError, match="No adapter found"):
                await engine.load(replace(world.sources[1], folder=tmp_path))
            with pytest.raises(InputError) as refused:
                await engine.load(replace(world.sources[1], kind="model"))
            assert refused.value.kind == "unsupported_adapter"
            with pytest.raises(InputError) as unproven:
                await engine.load(replace(world.sources[2], record={}))
            assert unproven.value.kind == "not_live"

    run(work())


def test_who_leaves_is_forgotten_by_the_server(world: World) -> None:
    async def work() -> None:
        async with running(world, seconds_a_token=0.01) as (engine, stand_in):
            stream = engine.generate(ask(world, sampling=Sampling(temperature=0.0, max_tokens=150)))
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            await until(lambda: stand_in.running == 0)
            assert engine.state().running == 0

    run(work())


def test_deadlines_and_full_queues(world: World) -> None:
    async def work() -> None:
        async with running(world, slots=1, queue=1, seconds_a_token=0.02) as (engine, stand_in):
            long = Sampling(temperature=0.0, max_tokens=100)
            with pytest.raises(DeadlinePassed):
                await answer(engine, ask(world, deadline=time.time() - 1))
            with pytest.raises(DeadlinePassed):
                await answer(engine, ask(world, sampling=long, deadline=time.time() + 0.1))
            await until(lambda: stand_in.running == 0)
            first = asyncio.create_task(answer(engine, ask(world, sampling=long)))
            shadow = asyncio.create_task(answer(engine, ask(world, sampling=long, is_shadow=True)))
            await until(lambda: stand_in.running == 2)
            with pytest.raises(EngineFull):
                await answer(engine, ask(world, is_shadow=True))
            third = asyncio.create_task(answer(engine, ask(world)))
            with pytest.raises(EngineFull):
                await shadow
            with pytest.raises(EngineFull):
                await answer(engine, ask(world))
            assert tokens_of(await third)
            first.cancel()
            await asyncio.wait({first})

    run(work())


def test_too_long_prompts_are_refused_here(world: World) -> None:
    async def work() -> None:
        async with running(world) as (engine, stand_in):
            with pytest.raises(InputError) as refused:
                await answer(engine, replace(ask(world), prompt=(5,) * 201))
            assert refused.value.path == "prompt"
            assert stand_in.asked == []

    run(work())


def test_a_server_that_goes_away_is_a_lost_engine(world: World) -> None:
    async def work() -> None:
        stand_in = StandIn(base=world.base)
        with serving(stand_in) as url:
            engine = VllmEngine(str(world.base), url=url, dtype="float32")
            await engine.start()
        with pytest.raises(EngineLost):
            await answer(engine, ask(world))
        with pytest.raises(EngineLost):
            await engine.load(world.sources[1])
        await engine.stop()
        with pytest.raises(EngineLost):
            await answer(engine, ask(world))

    run(work())


def test_address_and_key_come_from_the_environment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        stand_in = StandIn(base=world.base, key="secret")
        with serving(stand_in) as url:
            monkeypatch.setenv(URL, f"{url}/v1")
            monkeypatch.setenv(KEY, "secret")
            engine = VllmEngine(str(world.base), dtype="float32")
            await engine.start()
            assert engine._base.model == BASE_NAME
            assert tokens_of(await answer(engine, ask(world)))
            await engine.stop()

    run(work())


def test_without_vllm_and_without_an_address(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL, raising=False)
    # As on a machine where it is not installed, also on one where it is.
    monkeypatch.setitem(sys.modules, "vllm", None)

    async def work() -> None:
        engine = VllmEngine(str(world.base))
        with pytest.raises(InputError) as refused:
            await engine.start()
        assert refused.value.kind == "missing_extra"
        assert "pip install 'ftray[vllm]'" in refused.value.hint
        await engine.stop()

    run(work())


def test_a_child_that_ends_while_it_starts_is_not_waited_for(tmp_path: Path) -> None:
    import subprocess

    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    server = Server(url="http://127.0.0.1:9", key=None, process=process)

    async def work() -> None:
        async with server.client() as client:
            with pytest.raises(EngineLost, match="exit code 3"):
                await wait_until_up(server, client, seconds=20.0)

    run(work())


def test_the_child_takes_adapters_while_it_runs() -> None:
    command = serve_command("some/model", port=8123, slots=16)
    assert command[1:3] == ["serve", "some/model"]
    assert "--enable-lora" in command
    assert command[command.index("--port") + 1] == "8123"
    assert command[command.index("--host") + 1] == "127.0.0.1"
