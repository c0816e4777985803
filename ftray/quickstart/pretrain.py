"""Make the quickstart's base model: a small Llama trained from nothing on the corpus.

The result is an ordinary Hugging Face folder. It depends on the seed, the number of steps and the number of threads,
never on the clock. Shapes: B rows a step, T tokens a row, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ftray.quickstart.corpus import documents
from ftray.quickstart.tokenizer import render, train_tokenizer

DEFAULT_STEPS = 700
MAX_LENGTH = 256
_ROW_TOKENS = 128

Progress = Callable[[int, int, float], None]
"""Called after every step with (steps done, steps in all, loss)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseReport:
    """What was made, and what it took."""

    path: Path
    parameters: int
    steps: int
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Size of the model and of its training."""

    vocabulary: int = 1024
    hidden: int = 160
    layers: int = 3
    heads: int = 5
    feed_forward: int = 448
    rows_per_step: int = 8
    initial_deviation: float = 0.06  # wider than Llama's 0.02: so small a model learns its facts much sooner
    learning_rate: float = 4e-3
    warmup_steps: int = 30
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0


BASE = Recipe()
TINY = Recipe(vocabulary=512, hidden=64, layers=2, heads=2, feed_forward=128, rows_per_step=4, warmup_steps=4)


def make_base(
    folder: Path, *, seed: int = 0, steps: int = DEFAULT_STEPS, on_progress: Progress | None = None
) -> BaseReport:
    """Pretrain the quickstart's base model and save it to `folder`: about a minute on two CPU cores."""
    return pretrain(folder, recipe=BASE, seed=seed, steps=steps, on_progress=on_progress)


def tiny_base(folder: Path, *, seed: int = 0, on_progress: Progress | None = None) -> BaseReport:
    """Save a model of about 100,000 parameters that has barely learned anything: seconds, for tests."""
    return pretrain(folder, recipe=TINY, seed=seed, steps=20, on_progress=on_progress)


def pretrain(folder: Path, *, recipe: Recipe, seed: int, steps: int, on_progress: Progress | None = None) -> BaseReport:
    """Train a tokenizer and a model of this recipe and save both to `folder`."""
    if steps < 1:
        raise AssertionError(f"pretraining needs at least one step, not {steps}")
    started = time.monotonic()
    tokenizer = train_tokenizer(seed=seed, vocabulary=recipe.vocabulary, max_length=MAX_LENGTH)
    model = build_model(recipe, tokenizer, seed=seed)
    batches = _batches(tokenizer, seed=seed, rows=recipe.rows_per_step)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
    )
    loss = math.nan
    model.train()
    for step, rows in enumerate(itertools.islice(batches, steps)):  # rows [B, T + 1]
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, steps, recipe.warmup_steps)
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits  # [B, T, V]
        step_loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        step_loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss = step_loss.item()
        if on_progress is not None:
            on_progress(step + 1, steps, loss)
    model.eval()
    # The weights last: a folder that has them is complete.
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return BaseReport(
        path=folder, parameters=model.num_parameters(), steps=steps, loss=loss, seconds=time.monotonic() - started
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """Return an untrained Llama; the global random state is left as it was."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=recipe.initial_deviation,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _batches(tokenizer: PreTrainedTokenizerFast, *, seed: int, rows: int) -> Iterator[Tensor]:
    """Yield [rows, T + 1] token ids: documents end to end, cut into rows; a row's last token starts the next row."""
    stream: list[int] = []
    needed = rows * _ROW_TOKENS
    source = documents(seed)
    while True:
        texts = [render(document) for document in itertools.islice(source, 64)]
        for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
            stream.extend(encoding.ids)
        while len(stream) > needed:
            flat = torch.tensor(stream[: needed + 1])
            yield flat.unfold(0, _ROW_TOKENS + 1, _ROW_TOKENS)
            del stream[:needed]


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Return the factor on the learning rate: linear warm-up, then a cosine down to a twentieth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
