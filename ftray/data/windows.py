"""Cut plain texts that are longer than the model into consecutive windows: nothing is lost, nothing is truncated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ftray.data.conversations import Example

FRAME_TOKENS = 2
"""Begin- and end-of-text tokens put around every window."""


def cut_texts(examples: Sequence[Example], tokenizer: Any, *, max_length: int) -> list[Example]:
    """Return the examples with long texts cut at token borders; conversations pass unchanged.

    Every window keeps its text's row number.
    """
    pieces: list[Example] = []
    for example in examples:
        if example.text is None:
            pieces.append(example)
            continue
        pieces.extend(replace(example, text=text) for text in _windows(example.text, tokenizer, max_length))
    return pieces


def _windows(text: str, tokenizer: Any, max_length: int) -> list[str]:
    # verbose=False: a text longer than the model is what this function is for, not worth a warning.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    # A window tokenized by itself may need a token or two more at its start than it had inside the text.
    size = max_length - FRAME_TOKENS - 2
    if len(offsets) <= max_length - FRAME_TOKENS:
        return [text]
    starts = [offsets[index][0] for index in range(0, len(offsets), size)]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
