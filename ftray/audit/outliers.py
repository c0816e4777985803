"""Prompts and answers of unusual length, in characters, against the lengths of all training rows.

Lengths are compared on a log scale, and each side has its own spread, so that the long tail every free text has is
not called unusual. Only lengths and places are kept: 12 bytes a row, and 12 for each of its sides. Row numbers do not
tell rows of several training files apart, so a row is known by how many rows were seen before it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftray.audit.finder import TRAIN
from ftray.audit.passages import asked
from ftray.audit.report import Check, Pointer, Worst, found, skipped
from ftray.audit.tally import rows
from ftray.data.conversations import Example

FAR = 5.0
"""Spreads from the median (robust standard deviations of the log length) beyond which a length is unusual ..."""
FACTOR = 10.0
"""... if it is also so many times as long, or as short, as the median."""
OUTLIERS_LIMIT = 0.001
SMALLEST_SPREAD = 0.35
"""Of the log length: rows written to a pattern are as long as each other, and twice as long is nothing unusual."""
FEWEST_ROWS = 50
FEW_ANSWERS = 100
"""Answers that are all one of so many are labels, whose lengths say nothing."""
_TAIL_DEVIATIONS = 1.645  # the 95th percentile of a normal distribution, in standard deviations
_MAD_DEVIATIONS = 1.4826


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of the training rows: how many rows came before, and lengths, beside each other."""

    places: array[int]
    lengths: array[int]


class Outliers:
    """Looks for training rows that are far longer or shorter than the others."""

    def __init__(self) -> None:
        self._sides = {name: _Side(array("q"), array("i")) for name in ("prompt", "answer", "text")}
        self._answers: set[str] = set()
        self._names: dict[str, int] = {}
        """Datasets, by the order in which they came."""
        self._rows = array("q")
        self._datasets = array("i")

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        if dataset != TRAIN:
            return
        for example in examples:
            self._rows.append(example.row)
            self._datasets.append(self._names.setdefault(example.dataset, len(self._names)))
            if example.text is not None:
                self._take("text", example.text)
                continue
            prompt, answer = asked(example), example.answer_text
            # Blank prompts and answers are `empty`'s and `role_order`'s; a tool call has no length in words.
            if prompt:
                self._take("prompt", prompt)
            if answer:
                self._take("answer", answer)
                if len(self._answers) <= FEW_ANSWERS:
                    self._answers.add(answer)

    def checks(self) -> Sequence[Check]:
        sides = {name: side for name, side in self._sides.items() if len(side.places) >= FEWEST_ROWS}
        if len(self._answers) <= FEW_ANSWERS:
            sides.pop("answer", None)
        if not sides:
            why = f"Fewer than {FEWEST_ROWS} training rows have a prompt or a free answer to compare in length."
            return [skipped("outliers", why, limit=OUTLIERS_LIMIT)]
        farness: dict[int, float] = {}
        facts: dict[str, Any] = {}
        parts = []
        for name, side in sides.items():
            lengths = np.frombuffer(side.lengths, np.int32)
            far = unusual(lengths)
            places = np.frombuffer(side.places, np.int64)[far != 0].tolist()
            for place, distance in zip(places, np.abs(far[far != 0]).tolist(), strict=True):
                farness[place] = max(distance, farness.get(place, 0.0))
            facts[name] = _facts(lengths, far)
            parts += _sentences(name, facts[name])
        names = list(self._names)
        worst = Worst()
        for place, distance in sorted(farness.items()):
            worst.add(Pointer(dataset=names[self._datasets[place]], row=self._rows[place]), distance)
        fix = (
            f"{'. '.join(parts)}. Look at these rows: they are often two rows run together, a page pasted by mistake, "
            "or an answer cut off."
        )
        num_rows = max(len(side.places) for side in sides.values())
        return [found("outliers", worst, rows=num_rows, fix=fix, limit=OUTLIERS_LIMIT, facts=facts)]

    def _take(self, name: str, text: str) -> None:
        """Take a side of the row that came last."""
        self._sides[name].places.append(len(self._rows) - 1)
        self._sides[name].lengths.append(min(len(text), 2**31 - 1))


def unusual(lengths: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return how many spreads each unusual length is from the median (negative: shorter); 0 for all others."""
    logs = np.log1p(lengths.astype(np.float64))
    median = float(np.median(logs))
    distance = logs - median
    low, high = np.percentile(logs, [5, 95])
    mad = _MAD_DEVIATIONS * float(np.median(np.abs(distance)))
    spreads = np.where(
        distance < 0,
        max(SMALLEST_SPREAD, mad, (median - low) / _TAIL_DEVIATIONS),
        max(SMALLEST_SPREAD, mad, (high - median) / _TAIL_DEVIATIONS),
    )
    far: NDArray[np.float64] = distance / spreads
    far[(np.abs(far) <= FAR) | (np.abs(distance) <= np.log(FACTOR))] = 0.0
    return far


def _facts(lengths: NDArray[np.int32], far: NDArray[np.float64]) -> dict[str, Any]:
    percentiles = {f"p{share}": int(np.percentile(lengths, share)) for share in (0, 5, 50, 95, 100)}
    return {"characters": percentiles, "long": int((far > 0).sum()), "short": int((far < 0).sum())}


def _sentences(name: str, facts: dict[str, Any]) -> list[str]:
    percentiles = facts["characters"]
    side = {"prompt": "a prompt", "answer": "an answer", "text": "a text"}[name]
    return [
        f"{rows(facts[key])} {'has' if facts[key] == 1 else 'have'} {side} far {key}er than the others "
        f"({'longest' if key == 'long' else 'shortest'} {percentiles[end]:,} characters, median {percentiles['p50']:,})"
        for key, end in (("long", "p100"), ("short", "p0"))
        if facts[key]
    ]
