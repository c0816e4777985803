"""Examples laid end to end give the logits they have alone, and none sees another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from ftray.data.collate import collate
from ftray.data.tokenization import TokenizedExample
from ftray.model.attention import NAME, flat_index
from ftray.model.base import load_model
from ftray.model.forward import label_logits, label_losses, layout_for

LENGTHS = (9, 3, 14, 1, 7)
FLAT = ("llama", "qwen2", "mistral", "gemma", "gpt2")


def example(tokens: Sequence[int], *, row: int = 0) -> TokenizedExample:
    """Return tokens that are all labels but the first."""
    is_label = np.ones(len(tokens), dtype=bool)
    is_label[0] = False
    return TokenizedExample(
        tokens=np.asarray(tokens, dtype=np.int32),
        is_label=is_label,
        prompt_length=1,
        dataset="t",
        row=row,
        digest=f"{row}",
    )


def random_examples(lengths: Sequence[int], *, seed: int = 0) -> list[TokenizedExample]:
    generator = np.random.default_rng(seed)
    return [example(generator.integers(3, 61, size=length).tolist(), row=row) for row, length in enumerate(lengths)]


def alone(folder: Path, examples: Sequence[TokenizedExample]) -> Tensor:
    """Return the logits of every labelled token from transformers' own eager attention, one example at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([one.tokens.tolist()])).logits[0, :-1] for one in examples]
    return torch.cat(rows)


@pytest.mark.parametrize("lengths", [LENGTHS, [9] * 4], ids=["mixed", "equal"])
@pytest.mark.parametrize("family", [*FLAT, "gemma2"])
def test_a_batch_has_the_logits_of_its_examples_alone(
    families: dict[str, Path], family: str, lengths: list[int]
) -> None:
    examples = random_examples(lengths)
    model = load_model(str(families[family])).eval()
    expected = alone(families[family], examples)
    layout = layout_for(model)
    assert layout == ("flat" if family in FLAT else "padded")
    for one in {layout, "padded"}:
        with torch.no_grad():
            logits = label_logits(model, collate(examples, one))  # type: ignore[arg-type]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_window_shorter_than_the_examples_matters(families: dict[str, Path]) -> None:
    model = load_model(str(families["mistral"])).eval()
    batch = collate(random_examples(LENGTHS), "flat")
    with torch.no_grad():
        narrow = label_logits(model, batch)
        model.config.sliding_window = None
        wide = label_logits(model, batch)
    assert not torch.allclose(narrow, wide, atol=1e-3)


@pytest.mark.parametrize("family", FLAT)
def test_an_example_never_sees_another(families: dict[str, Path], family: str) -> None:
    examples = random_examples(LENGTHS)
    other = [*examples]
    other[2] = random_examples(LENGTHS, seed=1)[2]
    model = load_model(str(families[family])).eval()
    batch = collate(examples, "flat")
    with torch.no_grad():
        before, after = label_logits(model, batch), label_logits(model, collate(other, "flat"))
    same = batch.example_index != 2
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[~same], after[~same])


@pytest.mark.parametrize("lengths", [LENGTHS, [9] * 4], ids=["mixed", "equal"])
@pytest.mark.parametrize("family", FLAT)
def test_gradients_are_those_of_the_examples_alone(families: dict[str, Path], family: str, lengths: list[int]) -> None:
    examples = random_examples(lengths)
    model = load_model(str(families[family])).double()
    flat, single = {}, {}
    for grads, batches in (
        (flat, [collate(examples, "flat")]),
        (single, [collate([one], "padded") for one in examples]),
    ):
        model.zero_grad()
        for batch in batches:
            if len(batch.targets):
                # Not label_losses, which computes in float32.
                logits = label_logits(model, batch)
                torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").backward()
        grads.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})  # type: ignore[union-attr]
    for name in flat:
        # Norms compute in float32 whatever the weights are.
        torch.testing.assert_close(flat[name], single[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_broken_example_does_not_spoil_its_neighbours(families: dict[str, Path]) -> None:
    model = load_model(str(families["llama"])).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = torch.inf
    examples = [example([5, 6, 7], row=0), example([8, 9], row=1), example([10, 11, 12, 13, 14, 15], row=2)]
    batch = collate(examples, "flat")
    with torch.no_grad():
        finite = torch.isfinite(label_losses(model, batch))
    assert not finite[batch.example_index == 0].any()
    assert finite[batch.example_index != 0].all()


def test_without_a_flat_row_it_is_ordinary_attention(families: dict[str, Path]) -> None:
    ours = load_model(str(families["llama"])).eval()
    theirs = AutoModelForCausalLM.from_pretrained(families["llama"], attn_implementation="sdpa").eval()
    assert ours.config._attn_implementation == NAME
    inputs = {"input_ids": torch.randint(3, 61, (2, 7)), "attention_mask": torch.tensor([[0, 0] + [1] * 5, [1] * 7])}
    with torch.no_grad():
        assert torch.equal(ours(**inputs).logits, theirs(**inputs).logits)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_the_way_back_leads_to_every_token_once(lengths: list[int]) -> None:
    index = flat_index(lengths, torch.device("cpu"))
    assert (index.num_examples, index.width) == (len(lengths), max(lengths))
    assert index.spread[index.gather].tolist() == list(range(sum(lengths)))
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    # Padding repeats a token of its own example, so that nothing of one example stands in another's row.
    assert owner[index.spread].view(len(lengths), -1).unique(dim=1).shape[1] == 1


def test_label_smoothing_is_torchs(families: dict[str, Path]) -> None:
    model = load_model(str(families["llama"])).eval()
    batch = collate(random_examples(LENGTHS), "flat")
    with torch.no_grad():
        losses = label_losses(model, batch, label_smoothing=0.2)
        log_probabilities = label_logits(model, batch).log_softmax(-1)
    picked = log_probabilities.gather(1, batch.targets[:, None])[:, 0]
    torch.testing.assert_close(losses, -(0.8 * picked + 0.2 * log_probabilities.mean(-1)))


def test_labels_may_be_few(families: dict[str, Path]) -> None:
    model = load_model(str(families["llama"])).eval()
    examples = random_examples((6, 5))
    nothing = replace(examples[0], is_label=np.zeros(6, dtype=bool))
    last = replace(examples[1], is_label=np.arange(5) == 4)
    with torch.no_grad():
        losses = label_losses(model, collate([nothing, last], "flat"))
        whole = label_losses(model, collate([last], "flat"))
        none = label_losses(model, collate([nothing], "flat"))
    torch.testing.assert_close(losses, whole)
    assert none.shape == (0,)
