"""Whether training rows differ enough, and whether there are enough of them.

Distinct-n (Li et al. 2016, arXiv:1510.03055) falls as a text grows, so it is taken from the first 20,000 n-grams of a
sample: figures of small and large datasets can be compared.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ftray.audit.finder import TRAIN
from ftray.audit.passages import asked
from ftray.audit.report import Check
from ftray.audit.sample import Sample
from ftray.audit.tally import rows
from ftray.data.conversations import Example

SAMPLE_ROWS = 20_000
NUM_NGRAMS = 20_000
FEWEST_NGRAMS = 1000
"""Fewer say nothing about diversity."""
DISTINCT_LIMIT = 0.05
"""Lowest distinct-2 of prompts that passes: intents of one domain have 0.3, instructions 0.6, a few templates 0.02."""
CLUSTER_LIMIT = 0.5
SMALLEST_TRAIN = 100
"""Fewer good training rows than this rather stand in the prompt."""
FEWEST_ROWS = 20
"""Of fewer rows nobody expects variety; `size` speaks of them."""
KEPT_CHARACTERS = 4000
_WORD = re.compile(r"\w+")


class Diversity:
    """Measures how much training prompts and answers differ.

    `largest_cluster` is the share of training rows in the largest group of similar prompts, where it is known; it may
    be set until `checks` is called.
    """

    def __init__(self, largest_cluster: float | None = None) -> None:
        self.largest_cluster = largest_cluster
        self._sample = Sample(SAMPLE_ROWS, _texts)
        self._answers = array("q")
        self._num_rows = 0

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        if dataset != TRAIN:
            return
        self._num_rows += len(examples)
        self._sample.see(examples)
        self._answers.extend(hash(example.answer_text) for example in examples if example.text is None)

    def checks(self) -> Sequence[Check]:
        kept = [row.kept for row in self._sample.rows]
        prompts, answers = [prompt for prompt, _ in kept if prompt], [answer for _, answer in kept if answer]
        distinct = {f"distinct_{n}": {"prompts": distinct_ngrams(prompts, n), "answers": distinct_ngrams(answers, n)}
                    for n in (1, 2)}  # fmt: skip
        facts: dict[str, Any] = {
            "sampled_rows": len(kept),
            "words": {"prompts": _percentiles(prompts), "answers": _percentiles(answers)},
            **distinct,
            "distinct_answers": len(np.unique(np.frombuffer(self._answers, np.int64))) if self._answers else 0,
            "largest_cluster": self.largest_cluster,
        }
        parts = self._complaints(distinct["distinct_2"]["prompts"]) if self._num_rows >= FEWEST_ROWS else []
        cluster = self.largest_cluster or 0.0
        return [
            Check(
                name="diversity",
                status="warn" if parts else "pass",
                count=round(cluster * self._num_rows),
                rows=self._num_rows,
                limit=CLUSTER_LIMIT,
                examples=(),
                fix=" ".join(parts),
                facts=facts,
            )
        ]

    def _complaints(self, distinct: float | None) -> list[str]:
        parts = []
        if distinct is not None and distinct < DISTINCT_LIMIT:
            parts.append(
                f"Prompts are nearly all the same: only {distinct:.1%} of their word pairs differ (a sample of "
                f"{rows(len(self._sample.rows))}; below {DISTINCT_LIMIT:.0%} is a few templates filled in). Put the "
                "constant words into the source's `prompt` template, and collect prompts that people really write."
            )
        if self.largest_cluster is not None and self.largest_cluster > CLUSTER_LIMIT:
            parts.append(
                f"{self.largest_cluster:.0%} of the training prompts are one group of similar prompts: the model "
                "learns that group and little else. Thin it out, or add rows of other kinds."
            )
        return parts


class Size:
    """Counts the training rows that are good: with an answer, and no exact repetition of an earlier row."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._good: set[str] = set()

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        if dataset != TRAIN:
            return
        self._num_rows += len(examples)
        for example in examples:
            if len(self._good) >= SMALLEST_TRAIN:
                return
            if not example.is_blank:
                self._good.add(example.digest)

    def checks(self) -> Sequence[Check]:
        num_good = len(self._good)
        is_small = num_good < SMALLEST_TRAIN
        among = "" if num_good == self._num_rows else f" (of {self._num_rows}, without empty ones and repetitions)"
        fix = (
            f"{num_good} training {'row is' if num_good == 1 else 'rows are'} few{among}: below {SMALLEST_TRAIN}, "
            "putting examples into the prompt usually does as well. Add rows, or do that instead."
        )
        return [
            Check(
                name="size",
                status="warn" if is_small else "pass",
                count=num_good if is_small else self._num_rows,
                rows=self._num_rows,
                limit=float(SMALLEST_TRAIN),
                examples=(),
                fix=fix if is_small else "",
            )
        ]


def distinct_ngrams(texts: Iterable[str], n: int) -> float | None:
    """Return the share of different n-grams among the first 20,000; None where there are too few to say."""
    grams = list(islice((gram for text in texts for gram in _ngrams(text, n)), NUM_NGRAMS))
    return len(set(grams)) / len(grams) if len(grams) >= FEWEST_NGRAMS else None


def _ngrams(text: str, n: int) -> Iterable[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return zip(*(words[start:] for start in range(n)), strict=False)


def _texts(example: Example) -> tuple[str, str] | None:
    if example.text is not None:
        return None
    return asked(example)[:KEPT_CHARACTERS], example.answer_text[:KEPT_CHARACTERS]


def _percentiles(texts: Sequence[str]) -> dict[str, int] | None:
    if not texts:
        return None
    lengths = np.fromiter((len(text.split()) for text in texts), np.int64, len(texts))
    return {f"p{share}": int(np.percentile(lengths, share)) for share in (5, 25, 50, 75, 95)}
