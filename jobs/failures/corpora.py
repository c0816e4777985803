"""The two intent corpora that the gallery spoils: utterances with labels, balanced, the same rows for a seed."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

BANKING = (
    "transfer", "transactions", "balance", "freeze account", "pay bill", "bill balance", "bill due", "interest rate",
    "routing", "min payment", "order checks", "pin change", "report fraud", "account blocked", "spending history",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question with its answer; `label` is what was right before anything was spoilt."""

    text: str
    label: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The rows of a job."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]

    @property
    def labels(self) -> list[str]:
        """Return the labels, sorted."""
        return sorted({row.label for row in self.train})


def read_corpus(name: str, *, shared: Path, seed: int) -> Corpus:
    """Return the corpus `snips` or `clinc` (its banking domain), sampled by `seed`; no text stands in two parts."""
    data = shared / "data"
    if name == "snips":
        pool, held_out = _rows(data / "snips/train.jsonl"), _rows(data / "snips/heldout.jsonl")
        return _corpus(pool, pool, held_out, sizes=(60, 12, 20), seed=seed)
    files = [data / f"clinc150/{part}.jsonl" for part in ("train", "val", "test")]
    pool, validation, held_out = ([row for row in _rows(file) if row.label in BANKING] for file in files)
    return _corpus(pool, validation, held_out, sizes=(45, 6, 10), seed=seed)


def _rows(file: Path) -> list[Row]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Row(text=line["text"], label=line["intent"], answer=line["intent"]) for line in lines]


def _corpus(
    pool: list[Row], validation: list[Row], test: list[Row], *, sizes: tuple[int, int, int], seed: int
) -> Corpus:
    """Take `sizes` rows of each label for training, validation and test."""
    order = random.Random(seed)
    taken: set[str] = set()
    parts = [
        _sample(rows, size, order, taken) for rows, size in ((test, sizes[2]), (validation, sizes[1]), (pool, sizes[0]))
    ]
    return Corpus(test=parts[0], validation=parts[1], train=parts[2])


def _sample(rows: list[Row], size: int, order: random.Random, taken: set[str]) -> tuple[Row, ...]:
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in order.sample(rows, len(rows)):
        words = " ".join(row.text.lower().split())
        if words not in taken and len(by_label[row.label]) < size:
            taken.add(words)
            by_label[row.label].append(row)
    chosen = [row for label in sorted(by_label) for row in by_label[label]]
    order.shuffle(chosen)
    return tuple(chosen)
