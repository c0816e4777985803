"""A tokenizer made in memory whose tokens are characters, so that masks can be read as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """Return a maker of byte-level tokenizers with one token per byte, plus given merges and control tokens."""

    def make(*, control: tuple[str, ...] = ("<s>", "</s>"), merges: tuple[tuple[str, str], ...] = ()) -> Any:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
        backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=list(merges)))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=control[0],
            eos_token=control[1],
            additional_special_tokens=list(control[2:]),
        )

    return make
