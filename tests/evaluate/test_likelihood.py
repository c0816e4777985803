"""Likelihoods of examples in batches against one example at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from ftray.data.collate import Layout
from ftray.data.tokenization import Tokenization, TokenizedExample
from ftray.evaluate.likelihood import choice_losses, example_losses, length_batches
from ftray.model.attention import NAME, register

TEXTS = ["Once upon a time", "a", "there was a little cat who sat on a mat", "and slept."]


def by_hand(model: LlamaForCausalLM, example: TokenizedExample) -> float:
    tokens = torch.from_numpy(example.tokens).long()
    with torch.no_grad():
        log_probabilities = model(input_ids=tokens[None]).logits[0].log_softmax(-1)
    labelled = [index for index, is_label in enumerate(example.is_label) if is_label]
    return -sum(float(log_probabilities[index - 1, tokens[index]]) for index in labelled)


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("max_batch_tokens", [1, 60, 4096])
def test_losses_equal_those_of_single_examples_in_any_batch(
    tiny_model: LlamaForCausalLM,
    tokenization: Tokenization,
    layout: Layout,
    max_batch_tokens: int,
    chat: Any,
    plain: Any,
) -> None:
    model = tiny_model
    examples = [tokenization.encode(plain(text)) for text in TEXTS] + [tokenization.encode(chat("question", "yes"))]
    expected = [by_hand(model, example) for example in examples]
    if layout == "flat":
        register()
        model.set_attn_implementation(NAME)
    losses = example_losses(model, examples, layout=layout, max_batch_tokens=max_batch_tokens)
    assert [loss.nll for loss in losses] == pytest.approx(expected, rel=1e-5)
    assert [loss.num_labels for loss in losses] == [len(text) + 1 for text in TEXTS] + [4]


def test_the_choice_is_the_likeliest_answer_and_ties_go_to_the_first(
    tiny_model: LlamaForCausalLM, tokenization: Tokenization, chat: Any
) -> None:
    candidates = [tokenization.encode(chat("question", answer)) for answer in ("no", "yes", "maybe")]
    sums = [by_hand(tiny_model, candidate) for candidate in candidates]
    (choice,) = choice_losses(tiny_model, [candidates], layout="padded")
    assert choice.chosen == sums.index(min(sums))
    tie, single = choice_losses(tiny_model, [[candidates[1], candidates[1]], [candidates[0]]], layout="padded")
    assert (tie.chosen, single.chosen) == (0, 0)


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_a_rank_without_examples_runs_the_others_passes(tiny_model: LlamaForCausalLM, layout: Layout) -> None:
    if layout == "flat":
        register()
        tiny_model.set_attn_implementation(NAME)
    forwards = []
    tiny_model.register_forward_hook(lambda *_: forwards.append(1))
    left = iter([True, True, True, False])
    assert example_losses(tiny_model, [], layout=layout, keep_going=lambda _: next(left)) == []
    assert len(forwards) == 3


@given(
    st.lists(st.integers(1, 50), max_size=30),
    st.integers(1, 200),
    st.sampled_from(["flat", "padded"]),
)
def test_batches_hold_every_index_once_within_the_budget(lengths: list[int], budget: int, layout: Layout) -> None:
    batches = length_batches(lengths, budget, layout=layout)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        taken = [lengths[index] for index in batch]
        cost = sum(taken) if layout == "flat" else len(taken) * max(taken)
        assert cost <= budget or len(batch) == 1
