"""What the engine is compared with: PEFT one request after the other, and PEFT's mixed batch; and what each takes."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ftray.registry.fingerprint import fingerprint
from ftray.serve.asking import AdapterSource, Ask, Piece, Sampling
from ftray.serve.engine.bank_engine import BankEngine

PROBE = list(range(5, 21))
TIE = 1e-4
BASE = "__base__"
"""How PEFT's mixed batch calls the base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One of the requests that come at the same time."""

    arm: int
    prompt: tuple[int, ...]
    new_tokens: int


def make_requests(settings: dict[str, Any], new_tokens: Sequence[int]) -> list[Request]:
    """Return requests with random tokens, arms in turn."""
    chance = random.Random(settings["seed"])
    return [
        Request(
            arm=index % settings["arms"],
            prompt=tuple(chance.randrange(3, 4000) for _ in range(chance.randint(*settings["prompt_tokens"]))),
            new_tokens=chance.randint(*new_tokens),
        )
        for index in range(settings["requests"])
    ]


class World:
    """A base and adapters in a folder, and what PEFT makes of them."""

    def __init__(self, folder: Path, shape: dict[str, int], *, ranks: Sequence[int], real: Path, seed: int) -> None:
        """Save a base (with the weights in `real`, where they are) and adapters that change its answers."""
        self.base = folder / "base"
        _save_base(self.base, shape, real, seed)
        self.plain = self._load()
        self.models: list[Any] = [self.plain]
        self.sources: list[AdapterSource] = []
        for number, rank in enumerate(ranks, start=1):
            model = self._tuned(rank, number)
            place = folder / f"arm-{number}"
            model.save_pretrained(place)
            self.models.append(model)
            written = fingerprint(_logits(model, PROBE)[-1], _logits(self.plain, PROBE)[-1], PROBE, dtype="float32")
            record = {"fingerprint": written, "stop_token_ids": []}
            source = AdapterSource(
                name=f"arm-{number}", digest=f"{number:064x}", kind="adapter", folder=place, record=record
            )
            self.sources.append(source)
        self.ranks = ranks

    def _load(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval()

    def _tuned(self, rank: int, seed: int) -> Any:
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")  # type: ignore[arg-type]
        model: Any = get_peft_model(self._load(), config)
        _randomise(model, seed)
        return model.eval()

    def mixed(self) -> Any:
        """Return one PEFT model that holds all adapters."""
        model: Any = None
        for number, (rank, source) in enumerate(zip(self.ranks, self.sources, strict=True), start=1):
            if model is None:
                config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")  # type: ignore[arg-type]
                model = get_peft_model(self._load(), config, adapter_name=f"arm-{number}")
                model.delete_adapter(f"arm-{number}")
            model.load_adapter(str(source.folder), f"arm-{number}")
        return model.eval()


def one_by_one(world: World, requests: Sequence[Request]) -> list[list[int]]:
    """Answer requests one after the other, each with its own adapter's model."""
    return [_generate(world.models[one.arm], [one], one.new_tokens)[0] for one in requests]


def static_batch(model: Any, requests: Sequence[Request]) -> list[list[int]]:
    """Answer requests in one batch of PEFT's, which runs until its longest answer has ended."""
    names = [BASE if one.arm == 0 else f"arm-{one.arm}" for one in requests]
    longest = max(one.new_tokens for one in requests)
    answers = _generate(model, requests, longest, adapter_names=names)
    return [answer[: one.new_tokens] for answer, one in zip(answers, requests, strict=True)]


def _generate(model: Any, requests: Sequence[Request], new_tokens: int, **more: Any) -> list[list[int]]:
    width = max(len(one.prompt) for one in requests)
    ids = torch.tensor([[0] * (width - len(one.prompt)) + list(one.prompt) for one in requests])
    mask = torch.tensor([[0] * (width - len(one.prompt)) + [1] * len(one.prompt) for one in requests])
    answers = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None,
        pad_token_id=0, use_cache=True, **more,
    )  # fmt: skip
    return [answer[width:].tolist() for answer in answers]


async def ask_all(engine: BankEngine, world: World, requests: Sequence[Request]) -> list[list[int]]:
    """Answer requests that come at once, each of them streamed."""
    return await asyncio.gather(*(_ask(engine, world, one) for one in requests))


async def _ask(engine: BankEngine, world: World, one: Request) -> list[int]:
    pieces = [piece async for piece in engine.generate(_asked(world, one))]
    return [token for piece in pieces for token in piece.token_ids]


def _asked(world: World, one: Request) -> Ask:
    return Ask(
        request_id="bench",
        digest=None if one.arm == 0 else world.sources[one.arm - 1].digest,
        prompt=one.prompt,
        sampling=Sampling(temperature=0.0, max_tokens=one.new_tokens),
    )


def measure_throughput(world: World, requests: Sequence[Request], *, repeats: int) -> dict[str, Any]:
    """Return each side's seconds for the same requests, after showing that all answers are the same."""
    mixed, tokens = world.mixed(), sum(one.new_tokens for one in requests)
    seconds: dict[str, list[float]] = {"engine": [], "static": [], "one_by_one": []}

    async def work() -> list[list[int]]:
        engine = await _started(world, len(requests))
        answers = await ask_all(engine, world, requests)
        for _ in range(repeats):
            started = time.perf_counter()
            await ask_all(engine, world, requests)
            seconds["engine"].append(time.perf_counter() - started)
            seconds["static"].append(_seconds(lambda: static_batch(mixed, requests)))
            seconds["one_by_one"].append(_seconds(lambda: one_by_one(world, requests)))
        await engine.stop()
        return answers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = asyncio.run(work())
        ties = _require_equal(world, requests, answers)
    ratios = {
        side: statistics.median(theirs / ours for ours, theirs in zip(seconds["engine"], seconds[side], strict=True))
        for side in ("static", "one_by_one")
    }
    speeds = {side: tokens / statistics.median(times) for side, times in seconds.items()}
    return {"tokens": tokens, "tokens_per_second": speeds, "ratios": ratios, "seconds": seconds, "ties": ties}


def measure_adapters(world: World, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a batch of mixed arms takes beside the base alone with the same prompts."""
    requests = make_requests(settings, [settings["adapters"]["new_tokens"]] * 2)
    base = [Request(arm=0, prompt=one.prompt, new_tokens=one.new_tokens) for one in requests]
    seconds: dict[str, list[float]] = {"base": [], "mixed": []}

    async def work() -> None:
        engine = await _started(world, len(requests))
        _require_equal(world, requests, await ask_all(engine, world, requests))
        for _ in range(settings["repeats"] + 1):
            for side, asked in (("base", base), ("mixed", requests)):
                started = time.perf_counter()
                await ask_all(engine, world, asked)
                seconds[side].append(time.perf_counter() - started)
        await engine.stop()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(work())
    over = [mixed / base - 1.0 for base, mixed in zip(seconds["base"], seconds["mixed"], strict=True)]
    return {"mixed_over_base": statistics.median(over), "all": over, "seconds": seconds}


def measure_hot_load(world: World, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what loading an adapter takes while all slots answer, and how long the answers stood still for it."""
    how = settings["hot_load"]
    requests = [
        Request(arm=0, prompt=one.prompt, new_tokens=how["new_tokens"]) for one in make_requests(settings, [1, 1])
    ]
    source = world.sources[0]
    loads: list[dict[str, float]] = []

    async def work() -> None:
        engine = await _started(world, len(requests), adapters=False)
        arrived: list[float] = []

        async def long(one: Request) -> None:
            async for piece in engine.generate(_asked(world, one)):
                _note(arrived, piece)

        for _ in range(how["loads"]):
            tasks = [asyncio.create_task(long(one)) for one in requests]
            while len(arrived) < 10 * len(requests):
                await asyncio.sleep(0.005)
            started = time.perf_counter()
            loaded = await engine.load(source)
            ended = time.perf_counter()
            seen = len(arrived)
            while len(arrived) < seen + 5 * len(requests):
                await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            loads.append({"seconds": loaded.seconds, **_stall(arrived, started, ended)})
            await engine.unload(source.digest)
            arrived.clear()
        await engine.stop()

    asyncio.run(work())
    weights = source.folder / "adapter_model.safetensors"
    return {
        "bytes": weights.stat().st_size,
        "rows": len(requests),
        "seconds": statistics.median(one["seconds"] for one in loads),
        "longest_seconds": max(one["seconds"] for one in loads),
        "step_seconds": statistics.median(one["step"] for one in loads),
        "stall_steps": statistics.median(one["stall"] / one["step"] for one in loads),
        "loads": loads,
    }


def _note(arrived: list[float], piece: Piece) -> None:
    if piece.token_ids:
        arrived.append(time.perf_counter())


def _stall(arrived: Sequence[float], started: float, ended: float) -> dict[str, float]:
    """Return the usual time between two steps, and how much longer the longest one around the load was."""
    steps = [now - before for before, now in itertools.pairwise(arrived) if now - before > 1e-3]
    usual = statistics.median(steps)
    around = [now - before for before, now in itertools.pairwise(arrived) if now >= started and before <= ended + usual]
    return {"step": usual, "stall": max(0.0, max(around) - usual), "steps_during": sum(gap > 1e-3 for gap in around)}


async def _started(world: World, slots: int, *, adapters: bool = True) -> BankEngine:
    engine = BankEngine(str(world.base), slots=slots)
    await engine.start()
    for source in world.sources if adapters else ():
        await engine.load(source)
    return engine


def _require_equal(world: World, requests: Sequence[Request], answers: Sequence[Sequence[int]]) -> int:
    """Return how many answers part from the model's own at a tie; stop where one is another answer."""
    ties = 0
    for one, answer in zip(requests, answers, strict=True):
        assert len(answer) == one.new_tokens, f"{len(answer)} tokens instead of {one.new_tokens}"
        whole = [*one.prompt, *answer]
        logits = _logits(world.models[one.arm], whole)[len(one.prompt) - 1 : -1]
        behind = logits.max(dim=-1).values - logits[torch.arange(len(answer)), list(answer)]
        assert float(behind.max()) <= TIE, f"an answer of arm {one.arm} is not its model's: {float(behind.max()):.2g}"
        ties += int((behind > 0).any())
    return ties


@torch.no_grad()
def _logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
    return logits


def _randomise(model: Any, seed: int) -> None:
    """Give an adapter factors that change answers; fresh ones answer as the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            elif "lora_A" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)


def _save_base(folder: Path, shape: dict[str, int], real: Path, seed: int) -> None:
    """Save the base with a tokenizer whose end nobody says, so that answers are as long as they are asked to be."""
    folder.mkdir(parents=True)
    if real.is_dir():
        for file in real.iterdir():
            shutil.copyfile(file, folder / file.name)
        (folder / "generation_config.json").unlink(missing_ok=True)
        for name, ends in (("tokenizer_config.json", {"eos_token": "</s>"}), ("config.json", {"eos_token_id": None})):
            config = json.loads((folder / name).read_text(encoding="utf-8"))
            (folder / name).write_text(json.dumps({**config, **ends}), encoding="utf-8")
        return
    torch.manual_seed(seed)
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape["hidden"], num_hidden_layers=shape["layers"], intermediate_size=shape["feed_forward"],
            num_attention_heads=shape["heads"], num_key_value_heads=shape["key_value_heads"],
            vocab_size=shape["vocabulary"], max_position_embeddings=shape["positions"], bos_token_id=None,
            eos_token_id=None, pad_token_id=0,
        )
    ).save_pretrained(folder)  # fmt: skip
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(shape["vocabulary"])}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0").save_pretrained(folder)


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
