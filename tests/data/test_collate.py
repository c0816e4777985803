from __future__ import annotations

import numpy as np
import pytest

from ftray.data.collate import collate
from ftray.data.tokenization import TokenizedExample


def example(tokens, labels, row):
    return TokenizedExample(
        tokens=np.array(tokens, dtype=np.int32),
        is_label=np.array(labels, dtype=np.bool_),
        prompt_length=0,
        dataset="d",
        row=row,
        digest=str(row),
    )


@pytest.fixture
def examples():
    return [example([5, 6, 7], [0, 1, 1], 3), example([8, 9], [1, 1], 4)]


def test_flat(examples):
    batch = collate(examples, "flat")
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.attention_mask is None
    # The label on a first token has nothing to predict it from, least of all the example before.
    assert batch.label_positions.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [6, 7, 9]
    assert batch.example_index.tolist() == [0, 0, 1]
    assert (batch.rows, batch.lengths, batch.num_tokens) == ((("d", 3), ("d", 4)), (3, 2), 5)


def test_padded(examples):
    batch = collate(examples, "padded", pad_token_id=1)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 1]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.input_ids.flatten()[batch.label_positions + 1].tolist() == batch.targets.tolist() == [6, 7, 9]


def test_a_batch_without_examples_is_a_bug():
    with pytest.raises(AssertionError):
        collate([], "flat")
