"""The two sides of the comparison: trials in one bank, and trials as PEFT models one after the other."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from ftray.data.collate import collate
from ftray.data.tokenization import TokenizedExample
from ftray.evaluate.generate import generate
from ftray.model import attention
from ftray.model.bank import Bank
from ftray.model.config import MethodConfig
from ftray.train.bank_engine import BankEngine
from ftray.train.engine import autocast

LEARNING_RATE = 1e-4
MAX_GRAD_NORM = 1.0


def make_base(shape: dict[str, int], *, device: str, precision: str, seed: int) -> Any:
    """Return a Llama of this shape with random weights."""
    attention.register()
    config = LlamaConfig(
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        intermediate_size=shape["feed_forward"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["key_value_heads"],
        vocab_size=shape["vocabulary"],
        max_position_embeddings=32768,
        use_cache=False,
        attn_implementation=attention.NAME,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    return model.to(torch.bfloat16 if precision == "bf16" else torch.float32).eval()


def load_of(text: str) -> tuple[int, int]:
    """Return rows and tokens of a load such as 4x128."""
    rows, tokens = text.split("x")
    return int(rows), int(tokens)


def examples(load: str, vocabulary: int, *, seed: int) -> list[TokenizedExample]:
    """Return one trial's step: random tokens, all of them learned but the first."""
    rows, tokens = load_of(load)
    generator = np.random.default_rng(seed)
    return [
        TokenizedExample(
            tokens=generator.integers(3, vocabulary, size=tokens).astype(np.int32),
            is_label=np.arange(tokens) >= 1,
            prompt_length=1,
            dataset="bench",
            row=row,
            digest=f"{seed}-{row}",
        )
        for row in range(rows)
    ]


class Packed:
    """K trials in one bank."""

    def __init__(self, base: Any, *, ranks: Sequence[int], slots: int, load: str, precision: str) -> None:
        self.bank = Bank(base, slots=slots, rank=max(ranks))
        self.engine = BankEngine(self.bank, precision=precision)
        self.trials = range(1, slots + 1)
        for slot in self.trials:
            rank = ranks[(slot - 1) % len(ranks)]
            self.engine.join(slot, MethodConfig(rank=rank, alpha=2.0 * rank), seed=slot, weight_decay=0.0)
        vocabulary = base.config.vocab_size
        rows = {slot: examples(load, vocabulary, seed=slot) for slot in self.trials}
        self.batch = collate([row for slot in self.trials for row in rows[slot]], "flat").to(self.bank.device)
        self.slots = [slot for slot in self.trials for _ in rows[slot]]
        labels = sum(len(row.tokens) - 1 for row in rows[1])
        self.normalisers = dict.fromkeys(self.trials, float(labels))

    def step(self) -> dict[int, float]:
        """Train every trial for one step; return their losses."""
        sums = self.engine.accumulate(self.batch, self.slots, normalisers=self.normalisers)
        self.engine.step(dict.fromkeys(self.trials, LEARNING_RATE), max_grad_norm=MAX_GRAD_NORM)
        return {slot: sums[slot] / self.normalisers[slot] for slot in self.trials}


class Separate:
    """Trials as PEFT models of their own, each with its own base, optimizer and padding-free batch.

    With no `models`, one that takes the given base instead of a copy.
    """

    def __init__(self, base: Any, *, ranks: Sequence[int], models: int, load: str, precision: str) -> None:
        self.precision = precision
        self.device = base.device
        self.models = []
        for index in range(max(1, models)):
            rank = ranks[index % len(ranks)]
            config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
            torch.manual_seed(index + 1)
            model: Any = get_peft_model(copy.deepcopy(base) if models else base, config)
            model.get_base_model().set_attn_implementation("sdpa")
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
            rows = examples(load, base.config.vocab_size, seed=index + 1)
            tokens = torch.from_numpy(np.stack([row.tokens for row in rows]).astype(np.int64)).to(self.device)
            self.models.append((model, parameters, optimizer, tokens))
        self.turn = 0

    def step(self) -> float:
        """Train one trial for one step; return its loss."""
        model, parameters, optimizer, tokens = self.models[self.turn % len(self.models)]
        self.turn += 1
        with autocast(self.precision, self.device):
            logits: Tensor = model(input_ids=tokens, use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()


def seconds_of(work: Callable[[], Any], *, least: float) -> float:
    """Return the mean seconds of a call, called for at least so many seconds."""
    synchronise()
    started, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - started < least:
        work()
        calls += 1
        synchronise()
    return (time.perf_counter() - started) / calls


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_training(
    base: Any,
    *,
    ranks: Sequence[int],
    slots: int,
    load: str,
    precision: str,
    models: int,
    repeats: int,
    seconds: float,
) -> dict[str, Any]:
    """Return milliseconds of a trial's step on both sides, after showing that both start from the same losses.

    In alternation where each side has a base of its own, else one side after the other.
    """
    what: dict[str, Any] = {"ranks": ranks, "load": load, "precision": precision}
    separate = Separate(base, models=min(slots, models), **what) if models else None
    packed = Packed(base, slots=slots, **what)
    first = packed.step()
    losses = losses_of(separate) if separate is not None else []
    bank_seconds, peft_seconds = [], []
    for _ in range(repeats):
        bank_seconds.append(seconds_of(packed.step, least=seconds) / slots)
        if separate is not None:
            peft_seconds.append(seconds_of(separate.step, least=seconds))
    assert packed.step()[1] < first[1], "training lowers the loss of what it sees again and again"
    if separate is None:
        packed.bank.detach()
        packed.bank.gradients = None
        separate = Separate(base, models=0, **what)
        losses = losses_of(separate)
        peft_seconds = [seconds_of(separate.step, least=seconds) for _ in range(repeats)]
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for slot, loss in enumerate(losses, start=1):
        assert abs(first[slot] - loss) < tolerance * loss, f"slot {slot} starts at {first[slot]}, PEFT at {loss}"
    ratios = [theirs / ours for ours, theirs in zip(bank_seconds, peft_seconds, strict=True)]
    return {
        "bank_ms": 1e3 * statistics.median(bank_seconds),
        "peft_ms": 1e3 * statistics.median(peft_seconds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def losses_of(separate: Separate) -> list[float]:
    """Return the first loss of every model."""
    return [separate.step() for _ in separate.models]


def measure_serving(
    base: Any, *, ranks: Sequence[int], rows: int, tokens: int, new_tokens: int, repeats: int, seconds: float
) -> dict[str, Any]:
    """Return what a batch of different adapters costs over the base alone, and generation on all sides."""
    bank = Bank(copy.deepcopy(base), slots=rows, rank=max(ranks))
    bank.model.eval()
    for slot in range(1, rows + 1):
        rank = ranks[(slot - 1) % len(ranks)]
        bank.join(slot, MethodConfig(rank=rank, alpha=2.0 * rank), seed=slot)
        # Fresh adapters answer as the base; these do not.
        factors = {layer: (a, torch.randn_like(b) * 0.02) for layer, (a, b) in bank.take(slot).items()}
        bank.put(slot, bank.adapters[slot], factors)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, base.config.vocab_size, (rows, tokens), generator=generator).to(bank.device)
    mixed = list(range(1, rows + 1))

    def forward(slots: Sequence[int]) -> None:
        with torch.no_grad(), bank.asking(slots, [tokens] * rows):
            bank.model(input_ids=prompts, attention_mask=torch.ones_like(prompts), logits_to_keep=1)

    def base_forward() -> None:
        with torch.no_grad():
            base(input_ids=prompts, attention_mask=torch.ones_like(prompts), logits_to_keep=1)

    def answer(slots: Sequence[int]) -> list[list[int]]:
        return generate(
            bank.model,  # type: ignore[arg-type]
            prompts.tolist(),
            max_new_tokens=new_tokens,
            stop_token_ids=(),
            pad_token_id=2,
            asking=lambda indices, lengths: bank.asking([slots[index] for index in indices], lengths),
        )

    peft = _peft_with_all(base, bank, ranks, rows)
    names = [f"slot{slot}" for slot in mixed]
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "use_cache": True}

    def peft_mixed() -> Tensor:
        return peft.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), adapter_names=names, **settings
        )

    def peft_one_by_one() -> list[Tensor]:
        answers = []
        for row, name in enumerate(names):
            peft.set_adapter(name)
            one = prompts[row : row + 1]
            answers.append(peft.generate(input_ids=one, attention_mask=torch.ones_like(one), **settings))
        return answers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [answer[0, tokens:].tolist() for answer in peft_one_by_one()]
        ours = answer(mixed)
        equal = sum(one == other for one, other in zip(ours, expected, strict=True))
        base_seconds, mixed_seconds, same_seconds, over, generation = [], [], [], [], []
        for _ in range(repeats):
            base_seconds.append(seconds_of(base_forward, least=seconds))
            mixed_seconds.append(seconds_of(lambda: forward(mixed), least=seconds))
            same_seconds.append(seconds_of(lambda: forward([1] * rows), least=seconds))
            over.append(mixed_seconds[-1] / base_seconds[-1] - 1.0)
        for _ in range(max(1, repeats // 2)):
            generation.append(
                {
                    "base": seconds_of(lambda: answer([0] * rows), least=0.0),
                    "bank": seconds_of(lambda: answer(mixed), least=0.0),
                    "peft_mixed": seconds_of(peft_mixed, least=0.0),
                    "peft_one_by_one": seconds_of(peft_one_by_one, least=0.0),
                }
            )
    produced = rows * new_tokens
    return {
        "rows": rows,
        "tokens": tokens,
        "new_tokens": new_tokens,
        "forward_ms": {
            "base": 1e3 * statistics.median(base_seconds),
            "mixed": 1e3 * statistics.median(mixed_seconds),
            "one adapter": 1e3 * statistics.median(same_seconds),
        },
        "mixed_over_base": statistics.median(over),
        "tokens_per_second": {
            side: produced / statistics.median(run[side] for run in generation) for side in generation[0]
        },
        "equal_answers": equal,
    }


def _peft_with_all(base: Any, bank: Bank, ranks: Sequence[int], rows: int) -> Any:
    """Return one PEFT model that holds every slot's adapter."""
    model: Any = None
    plain = copy.deepcopy(base)
    plain.set_attn_implementation("sdpa")
    for slot in range(1, rows + 1):
        rank = ranks[(slot - 1) % len(ranks)]
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        if model is None:
            model = get_peft_model(plain, config, adapter_name=f"slot{slot}")
        else:
            model.add_adapter(f"slot{slot}", config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for slot in range(1, rows + 1):
            for layer, (a, b) in bank.take(slot).items():
                parameters[f"base_model.model.{layer}.lora_A.slot{slot}.weight"].copy_(a)
                parameters[f"base_model.model.{layer}.lora_B.slot{slot}.weight"].copy_(b)
    return model.eval()
