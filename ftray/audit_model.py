"""What only a model can say of data: which rows do not fit it, and which answers surprise it.

The surprise is measured on a sample: each answer costs a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftray.audit.finder import TRAIN
from ftray.audit.passages import has_answer
from ftray.audit.sample import Sample
from ftray.data.conversations import Example
from ftray.data.templates import load_template
from ftray.data.tokenization import Dropped, Tokenization, TokenizedExample
from ftray.evaluate.likelihood import example_losses
from ftray.model.base import load_model, load_tokenizer, longest_example, own_device
from ftray.model.forward import layout_for

SURPRISE_ROWS = 500


class ModelLook:
    """A model's look at rows that go by."""

    def __init__(self, model: str) -> None:
        """Load the tokenizer. Raises InputError where there is no such model, or it has no chat template."""
        tokenizer = load_tokenizer(model)
        self._model = model
        self.control_tokens: tuple[str, ...] = tuple(tokenizer.all_special_tokens)
        self.dropped: dict[str, list[Dropped]] = {}
        self._tokenization = Tokenization(
            tokenizer,
            template=load_template("tokenizer", tokenizer, base=Path.cwd()),
            loss_on="last_turn",
            max_length=longest_example(model, tokenizer),
        )
        self._sample: Sample[Example] = Sample(SURPRISE_ROWS, _answering)

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        """Count the rows that are too long; keep a sample of the training rows."""
        # A plain text that is too long is cut into windows, never dropped.
        asking = [example for example in examples if example.text is None]
        found = [one for one in self._tokenization.encode_batch(asking) if isinstance(one, Dropped)]
        if dataset != TRAIN:
            self.dropped.setdefault(dataset, []).extend(found)
            return
        # Each training file has a name of its own, by which its rows are counted.
        for name in {example.dataset for example in examples}:
            self.dropped.setdefault(name, []).extend(one for one in found if one.dataset == name)
        self._sample.see(examples)

    def surprise(self) -> Mapping[tuple[str, int], float]:
        """Return the bits per byte of the sampled rows' answers under the model, by dataset and row."""
        kept = [row.kept for row in self._sample.rows]
        encoded = self._tokenization.encode_batch(kept)
        pairs = [
            (example, one) for example, one in zip(kept, encoded, strict=True) if isinstance(one, TokenizedExample)
        ]
        if not pairs:
            return {}
        model: Any = load_model(self._model)
        model.to(own_device()).eval()
        losses = example_losses(model, [one for _, one in pairs], layout=layout_for(model))
        return {
            (example.dataset, example.row): loss.nll / math.log(2) / len(example.answer_text.encode())
            for (example, _), loss in zip(pairs, losses, strict=True)
        }


def _answering(example: Example) -> Example | None:
    return example if has_answer(example) else None
