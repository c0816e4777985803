"""Ask base and tuned model some probes, and make the fingerprint of where they differ most.

For adapters that come without one: imports, and winners of campaigns. A training run asks its own engine instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftray.data.collate import collate
from ftray.data.tokenization import TokenizedExample
from ftray.errors import InputError
from ftray.evaluate.mode import evaluating
from ftray.model.bank import Bank
from ftray.model.bank_peft import read_adapter
from ftray.model.base import load_model, own_device
from ftray.model.forward import label_logits, layout_for
from ftray.registry.fingerprint import LONGEST_PROBE, choose_probe, fingerprint, prove

MOST_PROBES = 8
TEXTS = (
    "The",
    "Question: What is the capital of France?\nAnswer:",
    "Once upon a time there was a little",
    "### Instruction:\nSummarise the text.\n\n### Response:\n",
    "def add(a, b):\n    return",
    "I would like to book a table for two at",
)
"""What is asked where no training prompt is known."""


def fingerprint_of_folder(
    folder: Path,
    model: str,
    *,
    kind: str,
    probes: Sequence[Sequence[int]],
    precision: str = "fp32",
    must_prove: bool = True,
) -> dict[str, Any]:
    """Return the fingerprint of the adapter, or model of its own, in `folder`, over its base `model`.

    `probes`: prompts as tokens; the one where the models differ most is kept. `precision`: what the base of an adapter
    is loaded in. Raises InputError `not_live` when no probe shows a difference beyond rounding, unless `must_prove` is
    False, and what `read_adapter` and the bank raise for adapters that they cannot hold.
    """
    assert probes, "there is something to ask"
    short = [list(probe)[-LONGEST_PROBE:] for probe in probes][:MOST_PROBES]
    if kind == "adapter":
        tuned, base = _ask_adapter(folder, model, short, precision)
        dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
    else:
        base, tuned, dtype = _ask(load_model(model), short), _ask(load_model(str(folder)), short), "float32"
        if tuned.shape != base.shape:
            raise InputError(
                f"{folder} has another vocabulary than its base",
                kind="adapter_mismatch",
                given=tuned.shape[1],
                allowed=base.shape[1],
                hint="Name the base that it was trained from: --model MODEL.",
            )
    row = choose_probe(tuned, base, short)
    made = fingerprint(tuned[row], base[row], short[row], dtype=dtype)
    if must_prove:
        prove(made, tuned[row], base[row], dtype=dtype)
    return made


def text_probes(tokenizer: Any) -> list[list[int]]:
    """Return some prompts as tokens: what may show what an adapter does when nothing is known about it."""
    texts = [*TEXTS]
    if getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": "What can you do?"}]
        texts.append(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    probes = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [probe for probe in probes if probe]


def prefixes(examples: Sequence[TokenizedExample]) -> list[list[int]]:
    """Return what stands before each label of some examples, in the order of `label_logits`' rows."""
    return [
        example.tokens[: label + 1].tolist() for example in examples for label in np.flatnonzero(example.is_label[1:])
    ]


def _ask_adapter(folder: Path, model: str, probes: list[list[int]], precision: str) -> tuple[Tensor, Tensor]:
    """Return the logits [M, V] of tuned and base, which share one batch."""
    adapter, factors = read_adapter(folder)
    base: Any = load_model(model, precision=precision).to(own_device())  # type: ignore[arg-type]
    rank = max(adapter.rank_of(layer) for layer in adapter.layers)
    bank = Bank(base, slots=1, rank=rank, target_modules=list(adapter.layers))
    bank.put(1, adapter, factors)
    slots = [1] * len(probes) + [0] * len(probes)
    both = _ask(base, [*probes, *probes], bank=bank, slots=slots)
    return both[: len(probes)], both[len(probes) :]


def _ask(model: nn.Module, probes: list[list[int]], *, bank: Bank | None = None, slots: Sequence[int] = ()) -> Tensor:
    """Return the logits [M, V] after each probe."""
    model = model.to(own_device())
    batch = collate([_example(probe) for probe in probes], layout_for(model)).to(own_device())
    with evaluating(model):
        if bank is None:
            return label_logits(model, batch).float()
        with bank.asking(slots, batch.padded_lengths):
            return label_logits(model, batch).float()


def _example(probe: list[int]) -> TokenizedExample:
    """Return a probe with a label after it, whatever it is: the logits that predict it are what is asked for."""
    tokens = np.asarray([*probe, 0], dtype=np.int32)
    is_label = np.zeros(len(tokens), dtype=np.bool_)
    is_label[-1] = True
    return TokenizedExample(
        tokens=tokens, is_label=is_label, prompt_length=len(probe), dataset="probe", row=0, digest=""
    )


def dtype_of(model: nn.Module) -> str:
    """Return what a model computes in: the coarsest of its floating dtypes, by torch's name."""
    found = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if dtype in found:
            return str(dtype).removeprefix("torch.")
    return "float64"
