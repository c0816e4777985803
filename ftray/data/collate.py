"""Turn tokenized examples into one batch of tensors, in one of two layouts with the same losses.

`flat`: the examples one after another in a single row [1, T], no padding anywhere; attention is kept inside each
example by `ftray/model/attention.py`. `padded`: one example a row [N, L] with an attention mask, for any model.
Only positions that carry a label are listed, so that the output head runs on nothing else.
Shapes: N examples, R rows, L row length, T tokens, M labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ftray.data.tokenization import TokenizedExample

Layout = Literal["flat", "padded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples ready for one forward pass."""

    layout: Layout
    input_ids: Tensor  # [R, L] int64
    position_ids: Tensor  # [R, L] int64, restarting at 0 in every example
    attention_mask: Tensor | None  # [R, L] int64 when padded
    lengths: tuple[int, ...]  # tokens of each example
    label_positions: Tensor  # [M] index into the R*L positions whose next token is a label
    targets: Tensor  # [M] int64, the token to predict there
    example_index: Tensor  # [M] int64, which example the label belongs to
    rows: tuple[tuple[str, int], ...]  # (dataset, row in its file) of each example, for messages
    dropout_seed: int | None = None  # of its masks, another for every batch of a training

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def padded_lengths(self) -> tuple[int, ...]:
        """Return the positions that each example takes in the batch, padding included."""
        return self.lengths if self.layout == "flat" else (self.input_ids.shape[1],) * len(self.lengths)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`."""
        if torch.device(device) == self.input_ids.device:
            return self
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            attention_mask=None if self.attention_mask is None else self.attention_mask.to(device, non_blocking=True),
            label_positions=self.label_positions.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            example_index=self.example_index.to(device, non_blocking=True),
        )


def collate(
    examples: Sequence[TokenizedExample], layout: Layout, *, pad_token_id: int = 0, dropout_seed: int | None = None
) -> Batch:
    """Lay `examples` out as one batch."""
    if not examples:
        raise AssertionError("a batch needs at least one example")
    lengths = tuple(len(example.tokens) for example in examples)
    width = sum(lengths) if layout == "flat" else max(lengths)
    num_rows = 1 if layout == "flat" else len(examples)
    input_ids = np.full((num_rows, width), pad_token_id, dtype=np.int64)
    position_ids = np.zeros((num_rows, width), dtype=np.int64)
    mask = np.zeros((num_rows, width), dtype=np.int64)
    positions, targets, owners = [], [], []
    start = 0
    for index, example in enumerate(examples):
        length = lengths[index]
        row, offset = (0, start) if layout == "flat" else (index, 0)
        input_ids[row, offset : offset + length] = example.tokens
        position_ids[row, offset : offset + length] = np.arange(length)
        mask[row, offset : offset + length] = 1
        # The token at i is predicted from position i - 1; a label on the first token has nothing to predict it from.
        labelled = np.flatnonzero(example.is_label[1:])
        positions.append(row * width + offset + labelled)
        targets.append(np.asarray(example.tokens, dtype=np.int64)[labelled + 1])
        owners.append(np.full(len(labelled), index, dtype=np.int64))
        start += length
    return Batch(
        layout=layout,
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        attention_mask=torch.from_numpy(mask) if layout == "padded" else None,
        lengths=lengths,
        label_positions=torch.from_numpy(np.concatenate(positions)),
        targets=torch.from_numpy(np.concatenate(targets)),
        example_index=torch.from_numpy(np.concatenate(owners)),
        rows=tuple((example.dataset, example.row) for example in examples),
        dropout_seed=dropout_seed,
    )
