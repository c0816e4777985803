"""The bank engine with real tiny models: who asks gets what PEFT answers, and what is not live is not there."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_world import PROBE, World, first_difference, greedy, make_base, make_world, source_of
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ftray.errors import InputError
from ftray.model.base import load_model
from ftray.serve.asking import (
    AdapterSource,
    Ask,
    DeadlinePassed,
    EngineFull,
    EngineLost,
    Piece,
    Sampling,
    UnknownAdapter,
)
from ftray.serve.engine.bank_engine import BankEngine

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
GREEDY = Sampling(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@asynccontextmanager
async def running(world: World, *arms: int, **limits: Any) -> AsyncIterator[BankEngine]:
    """Return an engine with these arms loaded."""
    engine = BankEngine(str(world.base), **limits)
    await engine.start()
    try:
        for number in arms:
            await engine.load(world.sources[number])
        yield engine
    finally:
        await engine.stop()


def ask(world: World, number: int = 0, *, prompt: Any = (5, 9, 17), sampling: Sampling = GREEDY, **more: Any) -> Ask:
    digest = world.sources[number].digest if number else None
    return Ask(request_id="r", digest=digest, prompt=prompt, sampling=sampling, **more)


async def answer(engine: BankEngine, asked: Ask) -> list[Piece]:
    return [piece async for piece in engine.generate(asked)]


def tokens_of(pieces: list[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


async def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        await asyncio.sleep(0.002)


def run(work: Awaitable[None]) -> None:
    async def whole() -> None:
        await work

    asyncio.run(whole())


def never_ends(world: World, number: int = 0) -> Ask:
    """Return an ask for an answer of 128 tokens."""
    return ask(world, number, sampling=Sampling(temperature=0.0, max_tokens=128))


# Answers


def test_arms_that_come_and_go_answer_as_peft_answers_alone(world: World) -> None:
    async def work() -> None:
        async with running(world, 1, 2, 3, slots=5, prefill_tokens=8) as engine:
            chance = random.Random(0)

            async def one(index: int) -> tuple[int, list[int], list[int], int]:
                await asyncio.sleep(chance.random() * 0.2)
                prompt = tuple(chance.randrange(3, 250) for _ in range(chance.randint(1, 40)))
                limit = chance.choice([2, 9, 30])
                sampling = Sampling(temperature=0.0, max_tokens=limit)
                pieces = await answer(engine, ask(world, index % 4, prompt=prompt, sampling=sampling))
                assert pieces[-1].prompt_tokens == len(prompt)
                assert pieces[-1].completion_tokens == len(tokens_of(pieces))
                return index % 4, list(prompt), tokens_of(pieces), limit

            answers = await asyncio.gather(*(one(index) for index in range(28)))
            found = [first_difference(world.models[arm], prompt, tokens) for arm, prompt, tokens, _ in answers]
            assert "different" not in found
            assert found.count("tie") <= 1
            wrong = [
                first_difference(world.models[(arm + 1) % 4], prompt, tokens) for arm, prompt, tokens, _ in answers
            ]
            assert wrong.count("different") > 20, "another arm's answers are others"
            assert engine.state().running == engine.state().waiting == 0

    run(work())


def test_text_messages_and_tokens_are_the_same_prompt(world: World) -> None:
    async def work() -> None:
        async with running(world) as engine:
            tokenizer = engine._started().vocabulary.tokenizer
            messages = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Grüße 🙂"})
            text = "system: Be kind.\nuser: Grüße 🙂\nassistant:"
            tokens = tuple(tokenizer(text)["input_ids"])
            by_messages = await answer(engine, Ask(request_id="a", messages=messages, sampling=GREEDY))
            by_text = await answer(engine, ask(world, prompt=text))
            by_tokens = await answer(engine, ask(world, prompt=tokens))
            assert tokens_of(by_messages) == tokens_of(by_text) == tokens_of(by_tokens)
            assert by_text[-1].prompt_tokens == len(tokens)
            whole = tokenizer.decode(tokens_of(by_text), skip_special_tokens=True)
            assert "".join(piece.text for piece in by_text) == whole

    run(work())


def test_an_adapter_is_spoken_to_in_its_own_format(world: World) -> None:
    async def work() -> None:
        async with running(world) as engine:
            source = world.sources[1]
            template = {"name": "own", "source": "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"}
            special = replace(source, record={**source.record, "template": template, "stop_token_ids": [250]})
            await engine.load(special)
            asked = Ask(
                request_id="a", digest=source.digest, messages=({"role": "user", "content": "ab"},), sampling=GREEDY
            )
            pieces = await answer(engine, asked)
            by_text = await answer(engine, replace(asked, messages=None, prompt="<ab>"))
            assert tokens_of(pieces) == tokens_of(by_text)
            own = {"name": "tokenizer", "source": None}
            await engine.load(replace(source, digest="1" * 64, record={**source.record, "template": own}))
            pieces = await answer(engine, replace(asked, digest="1" * 64))
            text = "user: ab\nassistant:"
            by_text = await answer(engine, replace(asked, digest="1" * 64, messages=None, prompt=text))
            assert tokens_of(pieces) == tokens_of(by_text)
            resident = engine._residents[source.digest]
            assert resident.format.stops == {250}
            assert engine._base is not None
            assert engine._base.format.stops == {engine._started().vocabulary.tokenizer.eos_token_id}

    run(work())


def test_a_seed_gives_the_same_answer_in_any_company(world: World) -> None:
    async def work() -> None:
        async with running(world, 1, 2, slots=8) as engine:
            drawn = ask(world, 1, sampling=Sampling(temperature=1.2, top_p=0.95, max_tokens=30, seed=11))
            alone = await answer(engine, drawn)
            company = [ask(world, n % 3, sampling=Sampling(max_tokens=20 + n)) for n in range(6)]
            shared, *_ = await asyncio.gather(answer(engine, drawn), *(answer(engine, one) for one in company))
            assert tokens_of(shared) == tokens_of(alone)
            second = await answer(engine, replace(drawn, index=1))
            assert tokens_of(second) != tokens_of(alone), "choices of one request differ"
            free = [await answer(engine, replace(drawn, sampling=replace(drawn.sampling, seed=None))) for _ in range(2)]
            assert tokens_of(free[0]) != tokens_of(free[1])

    run(work())


def test_a_short_answer_overtakes_and_the_first_piece_comes_early(world: World) -> None:
    async def work() -> None:
        async with running(world, 1) as engine:
            begun, first, ended = time.monotonic(), 0.0, {}

            async def long() -> None:
                nonlocal first
                async for _ in engine.generate(never_ends(world)):
                    first = first or time.monotonic()
                ended["long"] = time.monotonic()

            async def short() -> None:
                await until(lambda: first > 0.0)
                await answer(engine, ask(world, 1, sampling=Sampling(temperature=0.0, max_tokens=4)))
                ended["short"] = time.monotonic()

            await asyncio.gather(long(), short())
            assert ended["short"] < ended["long"]
            assert first - begun < (ended["long"] - begun) / 4

    run(work())


def test_a_stop_text_ends_the_answer_before_it(world: World) -> None:
    async def work() -> None:
        async with running(world) as engine:
            plain = await answer(engine, ask(world, sampling=Sampling(temperature=0.0, max_tokens=40)))
            whole = "".join(piece.text for piece in plain)
            stop = whole[7:10]
            pieces = await answer(engine, ask(world, sampling=Sampling(temperature=0.0, max_tokens=40, stop=(stop,))))
            assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
            assert pieces[-1].finish_reason == "stop"

    run(work())


def test_nobody_watching_means_one_piece(world: World) -> None:
    async def work() -> None:
        async with running(world) as engine:
            (piece,) = await answer(engine, ask(world, is_streamed=False))
            assert piece.text == "".join(one.text for one in await answer(engine, ask(world)))

    run(work())


# What cannot be asked


@pytest.mark.parametrize(
    ("asked", "kind", "path"),
    [
        ({"prompt": (5,) * 257}, "prompt_too_long", "prompt"),
        ({"prompt": (5,) * 200, "sampling": Sampling(max_tokens=100)}, "max_tokens_too_large", "max_tokens"),
        ({"prompt": ()}, "empty_prompt", "prompt"),
        ({"prompt": (5, 99999)}, "unknown_token", "prompt"),
        ({"prompt": None, "messages": ({"role": "user", "content": "word " * 400},)}, "prompt_too_long", "messages"),
    ],
)
def test_what_the_model_cannot_read_is_refused(world: World, asked: dict[str, Any], kind: str, path: str) -> None:
    async def work() -> None:
        async with running(world) as engine:
            assert engine.positions() == 256
            with pytest.raises(InputError) as refused:
                await answer(engine, Ask(request_id="a", **asked))
            assert (refused.value.kind, refused.value.path) == (kind, path)
            assert engine.state().running == engine.state().waiting == 0
            assert len(tokens_of(await answer(engine, ask(world)))) == 12, "it goes on"

    run(work())


def test_an_answer_ends_where_the_positions_end(world: World) -> None:
    async def work() -> None:
        async with running(world) as engine:
            pieces = await answer(engine, ask(world, prompt=(5,) * 250, sampling=Sampling(temperature=0.0)))
            assert len(tokens_of(pieces)) <= 7
            if len(tokens_of(pieces)) == 7:
                assert pieces[-1].finish_reason == "length"

    run(work())


def test_a_template_that_refuses_says_so(world: World) -> None:
    async def work() -> None:
        async with running(world) as engine:
            source = world.sources[1]
            template = {"name": "strict", "source": "{{ raise_exception('only users may speak') }}"}
            await engine.load(replace(source, record={**source.record, "template": template, "stop_token_ids": [1]}))
            with pytest.raises(InputError, match="only users may speak") as refused:
                await answer(
                    engine, Ask(request_id="a", digest=source.digest, messages=({"role": "user", "content": "a"},))
                )
            assert refused.value.path == "messages"

    run(work())


# Too many, too late, gone


def test_a_full_queue_refuses_and_says_when_to_come_again(world: World) -> None:
    async def work() -> None:
        async with running(world, slots=2, queue=1) as engine:
            tasks = [asyncio.create_task(answer(engine, never_ends(world))) for _ in range(3)]
            await until(lambda: engine.state().running == 2 and engine.state().waiting == 1)
            with pytest.raises(EngineFull) as full:
                await answer(engine, ask(world))
            assert full.value.retry_after_seconds > 0
            for task in tasks:
                assert len(tokens_of(await task)) <= 128
            assert tokens_of(await answer(engine, ask(world)))

    run(work())


def test_shadows_are_shed_first(world: World) -> None:
    async def work() -> None:
        async with running(world, slots=1, queue=1) as engine:
            shadows = [
                asyncio.create_task(answer(engine, replace(never_ends(world), is_shadow=True))) for _ in range(2)
            ]
            await until(lambda: engine.state().waiting == 1)
            awaited = asyncio.create_task(answer(engine, ask(world)))
            with pytest.raises(EngineFull):
                await shadows[1]
            with pytest.raises(EngineFull):
                await answer(engine, replace(ask(world), is_shadow=True))
            await awaited
            assert not shadows[0].done(), "it gave way to the one that is waited for"
            assert len(tokens_of(await shadows[0])) > 12

    run(work())


def test_who_leaves_frees_the_slot_at_once(world: World) -> None:
    async def work() -> None:
        async with running(world, slots=1) as engine:
            gone = asyncio.create_task(answer(engine, never_ends(world)))
            await until(lambda: engine.state().running == 1)
            waits = asyncio.create_task(answer(engine, ask(world)))
            await until(lambda: engine.state().waiting == 1)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert tokens_of(await waits)
            await until(lambda: engine.state().running == 0)
            stream = engine.generate(never_ends(world))
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            await until(lambda: engine.state().running == 0)
            steps = engine.state().steps
            await asyncio.sleep(0.05)
            assert engine.state().steps == steps, "an idle engine does nothing"

    run(work())


def test_a_deadline_ends_an_answer_and_one_that_waits(world: World) -> None:
    async def work() -> None:
        async with running(world, slots=1) as engine:
            with pytest.raises(DeadlinePassed):
                await answer(engine, replace(ask(world), deadline=time.time() - 1))
            long = asyncio.create_task(answer(engine, replace(never_ends(world), deadline=time.time() + 0.05)))
            await until(lambda: engine.state().running == 1)
            waits = asyncio.create_task(answer(engine, replace(ask(world), deadline=time.time() + 0.01)))
            for task in (waits, long):
                with pytest.raises(DeadlinePassed):
                    await task
            assert tokens_of(await answer(engine, ask(world)))

    run(work())


def test_stopping_ends_what_runs(world: World) -> None:
    async def work() -> None:
        async with running(world) as engine:
            task = asyncio.create_task(answer(engine, never_ends(world)))
            await until(lambda: engine.state().running == 1)
            await engine.stop()
            with pytest.raises(EngineLost):
                await task
            with pytest.raises(EngineLost):
                await answer(engine, ask(world))

    run(work())


# Adapters


def test_unknown_adapters_are_unknown(world: World) -> None:
    async def work() -> None:
        async with running(world, 1) as engine:
            assert engine.state().digests == (world.sources[1].digest,)
            with pytest.raises(UnknownAdapter):
                await answer(engine, ask(world, 2))

    run(work())


def test_loading_proves_and_loading_again_proves_again(world: World) -> None:
    async def work() -> None:
        async with running(world) as engine:
            loaded = await engine.load(world.sources[2])
            expected = world.sources[2].record["fingerprint"]["max_abs_difference_from_base"]
            assert loaded.max_abs_difference_from_base == pytest.approx(expected, rel=1e-3)
            assert loaded.max_abs_difference_from_fingerprint < 1e-3
            assert loaded.digest == world.sources[2].digest
            again = await engine.load(world.sources[2])
            assert again.max_abs_difference_from_base == pytest.approx(expected, rel=1e-3)
            assert len(engine._started().bank.adapters) == 1  # type: ignore[union-attr]

    run(work())


def changed(source: AdapterSource, folder: Path, name: str, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Any:
    """Return a copy of an adapter with other numbers and the same record."""
    place = folder / name
    place.mkdir()
    tensors = load_file(source.folder / "adapter_model.safetensors")
    save_file(
        {key: change(key, tensor).contiguous() for key, tensor in tensors.items()}, place / "adapter_model.safetensors"
    )
    (place / "adapter_config.json").write_text((source.folder / "adapter_config.json").read_text())
    return replace(source, folder=place, digest=f"{len(name):064x}")


def test_what_is_not_live_is_not_there(world: World, tmp_path: Path) -> None:
    async def work() -> None:
        async with running(world, 1) as engine:
            source = world.sources[2]
            zeroed = changed(source, tmp_path, "zeroed", lambda key, t: torch.zeros_like(t) if "lora_B" in key else t)
            swapped = replace(source, folder=world.sources[3].folder, digest="5" * 64)
            broken = changed(source, tmp_path, "broken-", lambda key, t: t * float("nan") if "lora_B" in key else t)
            unproven = replace(source, record={}, digest="6" * 64)
            for wrong in (zeroed, swapped, broken, unproven):
                with pytest.raises(InputError) as refused:
                    await engine.load(wrong)
                assert refused.value.kind == "not_live"
                with pytest.raises(UnknownAdapter):
                    await answer(engine, Ask(request_id="a", digest=wrong.digest, prompt=(5, 9), sampling=GREEDY))
            bank = engine._started().bank
            await until(lambda: bank is not None and len(bank.adapters) == 1)
            pieces = await answer(engine, ask(world, 1))
            assert first_difference(world.models[1], [5, 9, 17], tokens_of(pieces)) != "different"

    run(work())


def test_adapters_that_the_bank_cannot_hold_are_refused(world: World, tmp_path: Path) -> None:
    async def work() -> None:
        async with running(world, 1) as engine:
            dora = tmp_path / "dora"
            dora.mkdir()
            for file in world.sources[2].folder.iterdir():
                (dora / file.name).write_bytes(file.read_bytes())
            config = json.loads((dora / "adapter_config.json").read_text())
            (dora / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
            with pytest.raises(InputError) as refused:
                await engine.load(replace(world.sources[2], folder=dora, digest="7" * 64))
            assert refused.value.kind == "unsupported_adapter"
            with pytest.raises(InputError):
                await engine.load(replace(world.sources[2], folder=tmp_path / "nowhere", digest="8" * 64))

    run(work())


def test_the_bank_grows_while_it_answers(world: World, tmp_path: Path) -> None:
    """More adapters than the first slots, and one of a larger rank, come while an answer runs; all answer right."""
    plain = world.models[0]
    extra = {}
    for number in range(4, 8):
        config = LoraConfig(
            task_type="CAUSAL_LM", r=20 if number == 6 else 4, lora_alpha=16, target_modules="all-linear"
        )  # type: ignore[arg-type]
        model: Any = get_peft_model(load_model(str(world.base)), config)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        model.eval().save_pretrained(tmp_path / str(number))
        extra[number] = (model, source_of(tmp_path / str(number), tuned=model, base=plain, name=f"extra-{number}"))

    async def work() -> None:
        async with running(world, 1, 2, 3, slots=12) as engine:
            longs = [asyncio.create_task(answer(engine, never_ends(world, number))) for number in range(4)]
            await until(lambda: engine.state().running == 4)
            for _, source in extra.values():
                await engine.load(source)
            bank = engine._started().bank
            assert bank is not None
            assert (bank.slots, bank.rank) == (8, 32)
            for number, task in enumerate(longs):
                assert first_difference(world.models[number], [5, 9, 17], tokens_of(await task)) != "different"
            for model, source in extra.values():
                pieces = await answer(
                    engine, Ask(request_id="a", digest=source.digest, prompt=(5, 9, 17), sampling=GREEDY)
                )
                assert tokens_of(pieces) == greedy(model, [5, 9, 17], 12)

    run(work())


def test_answers_go_on_while_an_adapter_is_loaded(world: World) -> None:
    async def work() -> None:
        async with running(world) as engine:
            during, loading = 0, asyncio.Event()

            async def long() -> list[int]:
                nonlocal during
                tokens: list[int] = []
                async for piece in engine.generate(never_ends(world)):
                    tokens += piece.token_ids
                    during += loading.is_set()
                return tokens

            task = asyncio.create_task(long())
            await until(lambda: engine.state().running == 1)
            loading.set()
            steps = engine.state().steps
            for number in (1, 2, 3):
                await engine.load(world.sources[number])
            assert engine.state().steps - steps > 3, "there are steps beside those of the three probes"
            loading.clear()
            tokens = await task
            assert during > 1
            assert first_difference(world.models[0], [5, 9, 17], tokens) != "different"

    run(work())


def test_unloading_waits_for_running_answers(world: World) -> None:
    async def work() -> None:
        async with running(world, 1, 2) as engine:
            bank = engine._started().bank
            assert bank is not None
            task = asyncio.create_task(answer(engine, never_ends(world, 1)))
            await until(lambda: engine.state().running == 1)
            await engine.unload(world.sources[1].digest)
            assert engine.state().digests == (world.sources[2].digest,)
            with pytest.raises(UnknownAdapter):
                await answer(engine, ask(world, 1))
            assert len(bank.adapters) == 2
            assert first_difference(world.models[1], [5, 9, 17], tokens_of(await task)) != "different"
            await until(lambda: len(bank.adapters) == 1)
            # The slot is another's now.
            await engine.load(world.sources[3])
            pieces = await answer(engine, ask(world, 3))
            assert tokens_of(pieces) == world.greedy(3, [5, 9, 17], 12)
            await engine.unload("0" * 64)

    run(work())


def test_a_full_fine_tune_is_served_as_its_own_base(world: World, tmp_path: Path) -> None:
    other = make_base(tmp_path / "tuned", seed=9)
    tuned = load_model(str(other)).eval()
    source = source_of(other, tuned=tuned, base=world.models[0], name="tuned", kind="model")

    async def work() -> None:
        async with running(world, 1) as engine:
            await engine.load(source)
            base, model, arm = await asyncio.gather(
                answer(engine, ask(world)),
                answer(engine, Ask(request_id="a", digest=source.digest, prompt=(5, 9, 17), sampling=GREEDY)),
                answer(engine, ask(world, 1)),
            )
            for number, pieces in ((0, base), (1, arm)):
                assert first_difference(world.models[number], [5, 9, 17], tokens_of(pieces)) != "different"
            assert first_difference(tuned, [5, 9, 17], tokens_of(model)) != "different"
            assert tokens_of(model) != tokens_of(base)
            same = replace(source, folder=world.base, digest="9" * 64)
            with pytest.raises(InputError) as refused:
                await engine.load(same)
            assert refused.value.kind == "not_live"
            await engine.unload(source.digest)
            await until(lambda: len(engine._loop.batchers) == 1)

    run(work())


def test_a_probe_is_part_of_the_vocabulary(world: World) -> None:
    async def work() -> None:
        async with running(world) as engine:
            source = world.sources[1]
            record = {"fingerprint": {**source.record["fingerprint"], "probe_tokens": [*PROBE, 4096]}}
            with pytest.raises(InputError, match="vocabulary"):
                await engine.load(replace(source, record=record))

    run(work())


def test_a_base_that_is_not_there_is_said(tmp_path: Path) -> None:
    async def work() -> None:
        engine = BankEngine(str(tmp_path / "nothing"))
        with pytest.raises(InputError) as refused:
            await engine.start()
        assert refused.value.kind == "missing_model"
        await engine.stop()

    run(work())


def test_peft_models_of_this_world_differ(world: World) -> None:
    answers = [tuple(world.greedy(number, [5, 9, 17], 12)) for number in range(4)]
    assert len(set(answers)) == 4
