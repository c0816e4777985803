"""Contamination: evaluation rows that training has seen, exactly, but for case and punctuation, nearly, or in parts.

The evaluation sets are indexed, the training rows stream by. What is compared are the substituted field values, never
a template's constant words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ftray.audit.finder import TEST, TRAIN, VALIDATION
from ftray.audit.ngrams import RunIndex
from ftray.audit.report import Check, Pointer, Worst, found, skipped
from ftray.data.conversations import REPLAY, Example
from ftray.data.fingerprint import Hashes, NearIndex, Prints

OVERLAP_LIMIT = 0.005
"""Share of an evaluation set's rows that may also be training rows before the gate fails."""
NEAR_LIMIT = 0.25
"""The same for rows that are nearly training rows, or share a run of words with them: short commands and questions from
templates resemble each other by nature (5 % of SNIPS' held-out rows, 11 % of the quickstart's)."""
KINDS = ("overlap_exact", "overlap_normalised", "overlap_near", "overlap_ngram")
LIMITS = dict(zip(KINDS, (OVERLAP_LIMIT, OVERLAP_LIMIT, NEAR_LIMIT, NEAR_LIMIT), strict=True))
SPELLED = {
    "overlap_exact": "are training rows, too",
    "overlap_normalised": "are training rows but for case and punctuation",
    "overlap_near": "are nearly training rows (other numbers, sentences in another order, a few other words)",
    "overlap_ngram": "share a long run of words with a training row, such as an answer quoted in a prompt",
}
ONE = {
    kind: words.replace("are training rows", "is a training row")
    .replace("are nearly training rows", "is nearly a training row")
    .replace("share a", "shares a")
    for kind, words in SPELLED.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decontaminated:
    """Training rows without those that stand in an evaluation set, and the rows that did."""

    kept: list[Example]
    dropped: list[Example]


@dataclass(slots=True, kw_only=True)
class HeldRow:
    """An evaluation row and what was found of it in training, worst first."""

    dataset: str
    row: int
    seen: dict[str, Pointer] = field(default_factory=dict)


def decontaminate(train: Sequence[Example], evaluation_examples: Iterable[Example]) -> Decontaminated:
    """Drop the training rows whose question, exact or normalised, stands in an evaluation set."""
    asked = {example.normalised_prompt for example in evaluation_examples}
    kept = [example for example in train if example.normalised_prompt not in asked]
    dropped = [example for example in train if example.normalised_prompt in asked]
    return Decontaminated(kept=kept, dropped=dropped)


class Overlaps:
    """Finds evaluation rows in training rows.

    `held`: the evaluation rows and what was found of each. `contaminating`: which of the training rows last seen were
    found, by position.
    """

    def __init__(self, prints: Prints) -> None:
        """Take what makes the prints of rows, shared with others who look for likeness."""
        self._prints = prints
        self.held: list[HeldRow] = []
        self._examples: list[Example] = []
        self._index: _Index | None = None
        self.contaminating: set[int] = set()

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        """Index evaluation rows, or look for them in training rows."""
        if dataset != TRAIN:
            self.held += [HeldRow(dataset=dataset, row=example.row) for example in examples]
            self._examples += examples
            return
        if self._index is None:
            self._index = _Index(self._examples, [row.dataset for row in self.held], self._prints.constant)
            self._examples = []
        self.contaminating = set()
        if not self.held:
            return
        index = self._index
        for position, example in enumerate(examples):
            for held in index.exact.get(hash(example.subject), ()):
                self._note("overlap_exact", held, example, position, 1.0)
            for held in index.normalised.get(hash(example.normalised_prompt), ()):
                self._note("overlap_normalised", held, example, position, 1.0)
        pairs = index.near.find(*self._prints.of(examples))
        for prompt, position, similarity in zip(pairs.earlier, pairs.later, pairs.similarity, strict=True):
            for held in index.asking[prompt]:
                self._note("overlap_near", held, examples[position], int(position), float(similarity))
        hits = index.runs.find([f"{row.normalised_prompt} {row.normalised_answer}" for row in examples])
        for hit in sorted(hits, key=lambda hit: (hit.held, hit.asked)):
            self._note("overlap_ngram", hit.held, examples[hit.asked], hit.asked, None)

    def _note(self, kind: str, held: int, example: Example, position: int, similarity: float | None) -> None:
        self.contaminating.add(position)
        row = self.held[held]
        before = row.seen.get(kind)
        if before is None or (similarity or 0) > (before.similarity or 0):
            row.seen[kind] = Pointer(
                dataset=row.dataset,
                row=row.row,
                other_dataset=example.dataset,
                other_row=example.row,
                similarity=similarity,
            )

    def checks(self) -> list[Check]:
        """Return one check for each kind of overlap; a row is counted as the worst kind it is, exact ones twice."""
        return [self._check(kind) for kind in KINDS]

    def leaked(self) -> list[Pointer]:
        """Return the validation rows that training has, exactly or nearly."""
        rows = (row.seen for row in self.held if row.dataset == VALIDATION)
        found = (seen.get("overlap_normalised") or seen.get("overlap_near") for seen in rows)
        return [one for one in found if one is not None]

    def _check(self, kind: str) -> Check:
        limit = LIMITS[kind]
        rows: dict[str, int] = {}
        hits: dict[str, Worst] = {}
        for held in self.held:
            rows[held.dataset] = rows.get(held.dataset, 0) + 1
            one = hits.setdefault(held.dataset, Worst())
            if kind in held.seen and not _is_worse_already(kind, held.seen):
                one.add(held.seen[kind], held.seen[kind].similarity or 0.0)
        # Of sets that are equally clean, the one that decides.
        worst = max(
            rows,
            key=lambda dataset: (hits[dataset].count / rows[dataset], dataset == TEST, rows[dataset]),
            default=None,
        )
        if worst is None:
            return skipped(kind, "There is no evaluation set to compare with.", limit=limit)
        fix = _fix(kind, worst, {dataset: one.count for dataset, one in hits.items() if one.count})
        if any(one.other_dataset == REPLAY for one in hits[worst].pointers):
            fix += " Rows of data.replay must leave its file: nothing else takes them out."
        facts = {"found": {dataset: {"count": hits[dataset].count, "rows": rows[dataset]} for dataset in rows}}
        return found(kind, hits[worst], rows=rows[worst], fix=fix, limit=limit, over="fail", under="warn", facts=facts)


class _Index:
    """The evaluation rows, by all that finds them again."""

    def __init__(self, examples: Sequence[Example], datasets: Sequence[str], constant: Hashes) -> None:
        self.exact: dict[int, list[int]] = {}
        self.normalised: dict[int, list[int]] = {}
        for held, example in enumerate(examples):
            self.exact.setdefault(hash(example.subject), []).append(held)
            self.normalised.setdefault(hash(example.normalised_prompt), []).append(held)
        prompts = [example.normalised_prompt for example in examples]
        asking: dict[str, list[int]] = {}
        for held, prompt in enumerate(prompts):
            asking.setdefault(prompt, []).append(held)
        self.asking = list(asking.values())
        """The rows of each different prompt, as `near` numbers them."""
        self.near = NearIndex(list(asking), constant=constant)
        self.runs = RunIndex(prompts, [example.normalised_answer for example in examples], datasets)


def _is_worse_already(kind: str, seen: dict[str, Pointer]) -> bool:
    """Return whether a stronger kind of overlap counts this row; exact overlaps are normalised ones, too."""
    if kind in ("overlap_exact", "overlap_normalised"):
        return False
    stronger = KINDS[: KINDS.index(kind)]
    return any(other in seen for other in stronger)


def _fix(kind: str, worst: str, counts: dict[str, int]) -> str:
    others = "".join(f" Also {count} in {dataset}." for dataset, count in counts.items() if dataset != worst)
    count = counts.get(worst, 0)
    spelled = SPELLED[kind] if count != 1 else ONE[kind]
    what = f"{count} {'row' if count == 1 else 'rows'} of {worst} {spelled}"
    remedy = "`ftray audit TRAIN --against FILE --write-clean CLEAN` writes training without them"
    if kind in ("overlap_exact", "overlap_normalised"):
        remedy = f"set `decontaminate: true` on the training source (validation and test rows), or {remedy}"
    else:
        remedy = f"look at these pairs; {remedy}"
    return (
        f"{what}: the score there would praise what was learned by heart. Take them out of training: {remedy}.{others}"
    )
