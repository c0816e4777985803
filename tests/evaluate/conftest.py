"""A byte-level tokenizer, a random Llama small enough to run in milliseconds, and makers of rows by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ftray.data.conversations import Example, Message
from ftray.data.templates import load_template
from ftray.data.tokenization import Tokenization
from ftray.evaluate.config import Metric
from ftray.evaluate.graders import grade
from ftray.evaluate.predict import RowPrediction
from ftray.evaluate.tasks import Role, Task, build_task


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


def _chat(prompt: str, answer: str, *, row: int = 0) -> Example:
    """Return one question with its answer."""
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(messages=messages, dataset="test", row=row, fields={"text": prompt}, columns={})


def _plain(text: str, *, row: int = 0) -> Example:
    """Return one text."""
    return Example(messages=(), text=text, dataset="probe", row=row, fields={}, columns={})


def _answers(expected: Sequence[str], given: Sequence[str], metric: Metric) -> list[RowPrediction]:
    """Return what predict_task returns for these answers."""
    graded = [grade(metric, answer, wanted) for answer, wanted in zip(given, expected, strict=True)]
    return [
        RowPrediction(
            task="task", row=row, prompt=f"question {row}", expected=expected[row], prediction=given[row],
            score=one.score, correct=one.correct, nll=None, num_labels=len(expected[row]) + 1,
            num_bytes=len(expected[row]),
        )
        for row, one in enumerate(graded)
    ]  # fmt: skip


def _likelihoods(nlls: Sequence[float], *, num_labels: int = 10, num_bytes: int = 40) -> list[RowPrediction]:
    """Return what predict_task returns for texts with these losses."""
    return [
        RowPrediction(
            task="probe", row=row, prompt="", expected="text", prediction="", score=nll / num_labels, correct=None,
            nll=nll, num_labels=num_labels, num_bytes=num_bytes,
        )
        for row, nll in enumerate(nlls)
    ]  # fmt: skip


def _task_of(
    tokenization: Tokenization, expected: Sequence[str], metric: Metric, *, role: Role = "task", name: str = "task"
) -> Task:
    """Return a task with these expected answers."""
    examples = [_chat(f"question {row}", answer, row=row) for row, answer in enumerate(expected)]
    return build_task(examples, name=name, role=role, metric=metric, tokenization=tokenization)


@pytest.fixture(scope="session")
def chat() -> Any:
    return _chat


@pytest.fixture(scope="session")
def plain() -> Any:
    return _plain


@pytest.fixture(scope="session")
def answers() -> Any:
    return _answers


@pytest.fixture(scope="session")
def likelihoods() -> Any:
    return _likelihoods


@pytest.fixture(scope="session")
def task_of() -> Any:
    return _task_of
