"""Tasks that choose among few answers: how evenly training shows the labels, and whether it shows all that test asks.

Labels are compared without case and punctuation. As soon as there are too many different answers the task is no
classification, and nothing more is kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ftray.audit.finder import TEST, TRAIN
from ftray.audit.report import NUM_EXAMPLES, Check, Pointer, Worst, found, pointer, skipped
from ftray.audit.tally import rows
from ftray.data.conversations import Example

LABELS_LIMIT = 100
"""A task with at most so many distinct answers, each twice on average, is a classification."""
DOMINANT_SHARE, DOMINANT_TIMES = 0.5, 3.0
"""The commonest label dominates with more than half the rows and three times its even share ..."""
OVERWHELMING_SHARE = 0.9
"""... or, where labels are so few that three times an even share is all there is, with nine rows in ten."""
RARE_ROWS, COMMON_ROWS = 5, 100
"""A label with fewer rows than the first is rare when another has more than the second."""
SHOWN_CHARACTERS = 60


class Labels:
    """Looks at the labels of training (`label_balance`) and of test (`label_coverage`)."""

    def __init__(self, limit: int = LABELS_LIMIT) -> None:
        self._limit = limit
        self._counts: Counter[str] = Counter()
        self._first: dict[str, Example] = {}
        self._tested: dict[str, list[Example]] = {}

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        if dataset == TEST:
            for example in examples:
                if example.text is None:
                    self._tested.setdefault(example.normalised_answer, []).append(example)
        elif dataset == TRAIN:
            for example in examples:
                if len(self._counts) > self._limit:
                    return
                if example.text is None:
                    self._counts[example.normalised_answer] += 1
                    self._first.setdefault(example.normalised_answer, example)

    def checks(self) -> Sequence[Check]:
        return [self._balance(), self._coverage()]

    @property
    def are_few(self) -> bool:
        """Whether the training answers are a small set of labels."""
        return is_small_set(self._counts, self._limit)

    def _coverage(self) -> Check:
        num_graded = sum(map(len, self._tested.values()))
        if not (self.are_few and num_graded):
            why = "Answers are not a small set of labels, or there is no test set."
            return skipped("label_coverage", why, rows=num_graded, limit=0.0)
        unseen = {key: some for key, some in self._tested.items() if key not in self._counts}
        worst = Worst()
        for example in (example for some in unseen.values() for example in some):
            worst.add(pointer(example))
        shown = ", ".join(_shown(some[0]) for some in list(unseen.values())[:5])
        verb = "has an answer" if worst.count == 1 else "have answers"
        fix = (
            f"{rows(worst.count)} of test {verb} that training never shows ({shown}): a model cannot learn "
            "labels it has not seen. Add rows with them, or drop them from test."
        )
        return found("label_coverage", worst, rows=num_graded, fix=fix, limit=0.0)

    def _balance(self) -> Check:
        if not self.are_few:
            return skipped("label_balance", "Training answers are not a small set of labels.")
        total = self._counts.total()
        (commonest, most), *_ = self._counts.most_common(1)
        dominates = is_dominant(self._counts)
        rare = {key: n for key, n in self._counts.items() if n < RARE_ROWS and most > COMMON_ROWS}
        parts = []
        if len(self._counts) == 1:
            parts.append(
                f"All {total} training rows have the same answer {_shown(self._first[commonest])}: there is nothing to "
                "choose, so add rows with the other answers."
            )
        elif dominates:
            parts.append(
                f"{most / total:.0%} of the training rows have the answer {_shown(self._first[commonest])}, of "
                f"{len(self._counts)} answers: a model that always gives it looks good, so add rows of the others, "
                "and judge by macro_f1."
            )
        if rare:
            shown = ", ".join(f"{_shown(self._first[key])} ({n})" for key, n in sorted(rare.items(), key=_by_count)[:5])
            parts.append(
                f"{len(rare)} of {len(self._counts)} labels have fewer than {RARE_ROWS} training rows while the "
                f"commonest has {most}: {shown}. Add rows, or merge them if they are misspellings of others."
            )
        return Check(
            name="label_balance",
            status="warn" if parts else "pass",
            count=sum(rare.values()) + (most if dominates else 0),
            rows=total,
            limit=None,
            examples=tuple(self._place(key) for key, _ in sorted(rare.items(), key=_by_count)[:NUM_EXAMPLES]),
            fix=" ".join(parts),
            facts=self._facts(),
        )

    def _place(self, key: str) -> Pointer:
        return pointer(self._first[key])

    def _facts(self) -> dict[str, Any]:
        total = self._counts.total()
        counts: dict[str, int] = {}
        for key, n in self._counts.most_common():
            # Long labels may begin alike: as shown they are one.
            shown = shown_label(self._first[key].answer_text)
            counts[shown] = counts.get(shown, 0) + n
        commonest = max(self._counts.values())
        return {"labels": counts, "entropy": normalised_entropy(self._counts), "commonest_share": commonest / total}


def is_dominant(counts: Mapping[str, int]) -> bool:
    """Return whether the commonest label outweighs the others so far that it must be said."""
    share = max(counts.values()) / sum(counts.values())
    return share > OVERWHELMING_SHARE or share > max(DOMINANT_SHARE, DOMINANT_TIMES / len(counts))


def normalised_entropy(counts: Mapping[str, int]) -> float:
    """Return the entropy of the labels over that of an even split: 1 is even, 0 is a single label."""
    return entropy(counts) / math.log(len(counts)) if len(counts) > 1 else 0.0


def entropy(counts: Mapping[str, int]) -> float:
    """Return the Shannon entropy of counts, in nats."""
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values() if n)


def is_small_set(counts: Counter[str], limit: int = LABELS_LIMIT) -> bool:
    """Return whether answers are labels: few different ones, each twice on average."""
    return 0 < len(counts) <= limit and counts.total() >= 2 * len(counts)


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return item[1], item[0]


def _shown(example: Example) -> str:
    return repr(shown_label(example.answer_text))


def shown_label(label: str) -> str:
    """Return a label as the facts of `label_balance` name it: long ones cut short."""
    return label if len(label) <= SHOWN_CHARACTERS else label[: SHOWN_CHARACTERS - 1] + "…"
