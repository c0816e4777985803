"""A tiny base with a tokenizer, adapters of it in PEFT's form with their records, and what PEFT alone answers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bank_world import METHODS, peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ftray.model.base import load_model
from ftray.registry.fingerprint import fingerprint
from ftray.serve.asking import AdapterSource

POSITIONS = 256
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
PROBE = [5, 9, 17, 33, 8, 4, 60, 21]
TEXTS = [
    "Once upon a time there was a little girl, and she said: it's 12:30, isn't it?",
    "Grüße aus Köln, 日本語のテキスト, и ещё немного текста; emoji 🙂🚀 too.",
    "def f(x):\n    return x ** 2  # two blanks\n",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with an end token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", chat_template=TEMPLATE
    )


def make_base(folder: Path, *, seed: int = 0, positions: int = POSITIONS) -> Path:
    """Save a random Llama with its tokenizer."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, initializer_range=0.3, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A base, and adapters 1 to 3 of different ranks."""

    base: Path
    models: dict[int, Any]
    """What PEFT alone would answer with; 0 is the base."""
    sources: dict[int, AdapterSource]

    def greedy(self, number: int, prompt: Sequence[int], tokens: int) -> list[int]:
        """Return the next tokens, each from a whole forward pass without a cache."""
        return greedy(self.models[number], prompt, tokens)


def make_world(folder: Path) -> World:
    """Save base and adapters."""
    base = make_base(folder / "base")
    plain: Any = load_model(str(base)).eval()
    peft_models: dict[int, Any] = {number: peft_model(plain, number) for number in METHODS}
    sources = {}
    for number, model in peft_models.items():
        place = folder / f"adapter-{number}"
        model.save_pretrained(place)
        sources[number] = source_of(place, tuned=model, base=plain, name=f"arm-{number}")
    return World(base=base, models={0: plain, **peft_models}, sources=sources)


def source_of(folder: Path, *, tuned: Any, base: Any, name: str, kind: Any = "adapter", **record: Any) -> AdapterSource:
    """Return a saved adapter with its record, as a registry has it."""
    written = fingerprint(logits_after(tuned, PROBE), logits_after(base, PROBE), PROBE, dtype="float32")
    digest = f"{abs(hash((name, str(folder)))):064x}"
    return AdapterSource(name=name, digest=digest, kind=kind, folder=folder, record={"fingerprint": written, **record})


@torch.no_grad()
def logits_after(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Return the logits [V] after some tokens."""
    logits: torch.Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0, -1]
    return logits


def greedy(model: Any, prompt: Sequence[int], tokens: int) -> list[int]:
    """Return the likeliest next tokens, each from a whole forward pass without a cache."""
    row = list(prompt)
    for _ in range(tokens):
        row.append(int(logits_after(model, row).argmax()))
    return row[len(prompt) :]


def first_difference(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """Return how an answer compares with the model's greedy one: equal, tie (within 1e-4) or different."""
    whole = [*prompt, *answer]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([whole]), use_cache=False).logits[0]
    for position in range(len(prompt) - 1, len(whole) - 1):
        best = logits[position].max()
        chosen = logits[position, whole[position + 1]]
        if best != chosen and best - chosen > 1e-4:
            return "different"
        if best != chosen:
            return "tie"
    return "equal"


def copies(model: Any) -> Any:
    """Return a copy that may be changed."""
    return copy.deepcopy(model)
