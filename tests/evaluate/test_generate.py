"""Batched greedy generation against transformers' own, row by row."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from ftray.errors import InputError
from ftray.evaluate.generate import generate
from ftray.model.attention import NAME, register


def one_by_one(model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int, stop: int) -> list[list[int]]:
    answers = []
    for prompt in prompts:
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop,
            pad_token_id=stop,
        )
        tokens = output[0, len(prompt) :].tolist()
        answers.append(tokens[:-1] if tokens[-1] == stop else tokens)
    return answers


def random_prompts(count: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(2, 258, size=random.integers(1, 30)).tolist() for _ in range(count)]


def test_batches_give_the_tokens_of_single_rows(tiny_model: LlamaForCausalLM) -> None:
    model, prompts = tiny_model.double(), random_prompts(10)
    # A random model hardly ever says </s>: stop at some of what it does say, so that rows end at different times.
    free = one_by_one(model, prompts, 10, stop=1)
    stops = (free[0][2], free[1][5], free[2][7], free[3][0])
    expected = [list(takewhile(lambda token: token not in stops, answer)) for answer in free]
    assert len({len(answer) for answer in expected}) > 2
    for max_batch_tokens in (1, 150, 16384):
        given = generate(
            model,
            prompts,
            max_new_tokens=10,
            stop_token_ids=stops,
            pad_token_id=1,
            max_batch_tokens=max_batch_tokens,
        )
        assert given == expected


def test_our_attention_generates_the_same(tiny_model: LlamaForCausalLM) -> None:
    model, prompts = tiny_model.double(), [*random_prompts(5), [9, 8], [7, 6]]
    expected = one_by_one(model, prompts, 6, stop=1)
    register()
    model.set_attn_implementation(NAME)
    for max_batch_tokens in (1, 16384):
        given = generate(
            model,
            prompts,
            max_new_tokens=6,
            stop_token_ids=(1,),
            pad_token_id=1,
            max_batch_tokens=max_batch_tokens,
        )
        assert given == expected


def test_no_prompts_give_no_answers(tiny_model: LlamaForCausalLM) -> None:
    assert generate(tiny_model, [], max_new_tokens=4, stop_token_ids=(1,), pad_token_id=1) == []


def test_a_model_in_training_is_left_in_training(tiny_model: LlamaForCausalLM) -> None:
    tiny_model.train()
    tiny_model.lm_head.eval()
    generate(tiny_model, [[5, 6]], max_new_tokens=2, stop_token_ids=(1,), pad_token_id=1)
    assert tiny_model.training
    assert tiny_model.model.layers[0].training
    assert not tiny_model.lm_head.training


def test_rows_end_where_the_models_positions_end(tiny_model: LlamaForCausalLM) -> None:
    prompts = [[3] * 510, [4] * 5]
    long, short = generate(tiny_model, prompts, max_new_tokens=8, stop_token_ids=(), pad_token_id=1)
    assert (len(long), len(short)) == (3, 8)
    with pytest.raises(InputError, match="513 tokens does not fit"):
        generate(tiny_model, [[3] * 513], max_new_tokens=8, stop_token_ids=(), pad_token_id=1)


def test_a_rank_that_is_done_keeps_the_others_company(tiny_model: LlamaForCausalLM) -> None:
    forwards = []
    tiny_model.register_forward_hook(lambda *_: forwards.append(1))
    asked: list[bool] = []

    def others_need_nine(has_work: bool) -> bool:
        asked.append(has_work)
        return len(asked) <= 9

    answers = generate(
        tiny_model,
        [[5, 6], [7]],
        max_new_tokens=4,
        stop_token_ids=(),
        pad_token_id=1,
        keep_going=others_need_nine,
    )
    assert [len(answer) for answer in answers] == [4, 4]
    assert len(forwards) == 9
    assert asked == [True] * 4 + [False] * 6


def test_sliding_windows_keep_their_own_cache() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, max_position_embeddings=128, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model, prompts = MistralForCausalLM(config).eval().double(), random_prompts(4)
    given = generate(model, prompts, max_new_tokens=8, stop_token_ids=(1,), pad_token_id=1)
    assert given == one_by_one(model, prompts, 8, stop=1)


def test_a_real_model_answers_real_prompts(shared: Path) -> None:
    folder = shared / "models" / "stories3M"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with (shared / "data" / "snips" / "heldout.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(6), strict=False)]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    given = generate(model, prompts, max_new_tokens=12, stop_token_ids=(1,), pad_token_id=2)
    assert given == one_by_one(model, prompts, 12, stop=1)
