"""The base model: an ordinary folder, the same bytes for the same seed, and a tokenizer whose prompts are prefixes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftray.quickstart.corpus import documents
from ftray.quickstart.pretrain import BaseReport, tiny_base
from ftray.quickstart.tokenizer import render, train_tokenizer

TOKENIZER = train_tokenizer(seed=0, vocabulary=512, max_length=256)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseReport:
    return tiny_base(tmp_path_factory.mktemp("base"))


def chat(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for role, content in zip(itertools.cycle(("user", "assistant")), contents, strict=False)
    ]


def tokens_of(messages: list[dict[str, str]], **settings: Any) -> dict[str, list[int]]:
    return dict(TOKENIZER.apply_chat_template(messages, return_dict=True, **settings))


def test_the_folder_loads_as_any_model_does(base: BaseReport) -> None:
    model = AutoModelForCausalLM.from_pretrained(base.path)
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    assert sum(parameter.numel() for parameter in model.parameters()) == base.parameters
    assert 80_000 < base.parameters < 130_000
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert len(special) == 3
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.chat_template == TOKENIZER.chat_template


def test_the_same_seed_makes_the_same_bytes(base: BaseReport, tmp_path: Path) -> None:
    again = tiny_base(tmp_path)
    assert again.loss == base.loss
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (again.path / name).read_bytes() == (base.path / name).read_bytes()


def test_it_learns_and_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    losses: list[tuple[int, int, float]] = []
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    report = tiny_base(tmp_path, on_progress=lambda step, steps, loss: losses.append((step, steps, loss)))
    assert torch.rand(1) == expected
    assert [step for step, _, _ in losses] == list(range(1, report.steps + 1))
    assert losses[-1][2] == report.loss < losses[0][2] - 1


def test_the_template_writes_what_pretraining_reads() -> None:
    for document in itertools.islice(documents(0), 50):
        contents = [content for turn in document.turns for content in (turn.question, turn.answer)]
        if contents:
            assert TOKENIZER.apply_chat_template(chat(*contents), tokenize=False) == render(document)


def test_the_mask_covers_the_answer_and_the_end_of_turn() -> None:
    encoded = tokens_of(chat("What does a cow say?", "moo", "And a dog?", "woof"), return_assistant_tokens_mask=True)
    answers = [
        token for token, is_answer in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if is_answer
    ]
    assert TOKENIZER.decode(answers) == " moo</s> woof</s>"


@settings(max_examples=100, deadline=None)
@given(question=st.text(min_size=1), answer=st.text(min_size=1))
def test_a_prompt_is_a_prefix_of_its_conversation(question: str, answer: str) -> None:
    prompt = tokens_of(chat(question), add_generation_prompt=True)["input_ids"]
    full = tokens_of(chat(question, answer))["input_ids"]
    assert full[: len(prompt)] == prompt
    assert full[-1] == TOKENIZER.eos_token_id


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(Exception, match="roles are system, user and assistant"):
        tokens_of([{"role": "tool", "content": "x"}])
