"""A byte-level tokenizer and a random Llama, small enough to run in milliseconds."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ftray.data.templates import load_template
from ftray.data.tokenization import Tokenization


@pytest.fixture(scope="session")
def tokenization(tmp_path_factory: pytest.TempPathFactory) -> Tokenization:
    """Return one token per byte, with chatml turns."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    template = load_template("alpaca", tokenizer, base=tmp_path_factory.mktemp("templates"))
    return Tokenization(tokenizer, template=template, loss_on="all_turns", max_length=512)


@pytest.fixture(scope="session")
def shared_tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_model(shared_tiny_model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return a copy of its own for each test."""
    return copy.deepcopy(shared_tiny_model)
