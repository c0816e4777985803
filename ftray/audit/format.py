"""Answers that do not keep to their format to the end: above all those that begin in it and drift off.

A declared format is held to; without one it is inferred from training answers, and shown. What an answer is to an
inferred format can be said only after all of them were seen, so every answer is measured against JSON as it goes by,
and short answers are kept once each with their count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftray.audit.finder import TEST, TRAIN, VALIDATION
from ftray.audit.passages import has_answer
from ftray.audit.report import NUM_EXAMPLES, Check, Pointer, Worst, pointer, skipped
from ftray.audit.sample import Sample
from ftray.audit.tally import rows
from ftray.data.answer_format import FITTING_SHARE, AnswerFormat, Keeping, infer_format
from ftray.data.conversations import Example

DRIFTS_LIMIT = 0.01
"""Share of answers that may leave an inferred JSON format, or stop inside it, before the gate fails."""
FEWEST_ANSWERS = 20
"""No format is inferred from fewer."""
SAMPLE_ROWS = 20_000
NUM_DISTINCT = 10_000
"""With more different answers they are no labels, and are not kept."""
KEPT_CHARACTERS = 200
SHOWN = 10
_SEVERITY: dict[Keeping, float] = {"drifts": 3.0, "truncated": 2.0, "other": 1.0, "valid": 0.0}


@dataclass(slots=True)
class _Keepings:
    """How the answers seen keep to one format."""

    kinds: Counter[str] = field(default_factory=Counter)
    datasets: Counter[str] = field(default_factory=Counter)
    training: Counter[str] = field(default_factory=Counter)
    worst: Worst = field(default_factory=Worst)
    """Places to look at, of which there may be fewer than rows."""
    places: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, place: Pointer, keeping: Keeping, valid_characters: int, *, is_training: bool, times: int = 1
    ) -> None:
        """Count an answer. A training row's place has the name of its file where there are several."""
        self.kinds[keeping] += times
        if is_training:
            self.training[keeping] += times
        if keeping == "valid":
            return
        self.datasets[place.dataset] += times
        self.worst.add(place, _SEVERITY[keeping])
        shown = {"dataset": place.dataset, "row": place.row, "kind": keeping, "valid_characters": valid_characters}
        self.places.append(shown)
        if len(self.places) > 2 * SHOWN:
            self.shown()

    def shown(self) -> list[dict[str, Any]]:
        """Return the worst places, and forget the others."""
        self.places = sorted(self.places, key=lambda one: -_SEVERITY[one["kind"]])[:SHOWN]
        return self.places


@dataclass(slots=True)
class _Repeated:
    """Rows of one dataset with the same short answer."""

    count: int = 0
    first: list[Pointer] = field(default_factory=list)


class FormatDrift:
    """Looks for answers of training, validation and test that are not in their format to the end.

    `declared` is the job's format; with None it is inferred where at least 80 % of the training answers have one.
    """

    def __init__(self, declared: AnswerFormat | None = None) -> None:
        self._declared = declared
        self._format = declared or AnswerFormat(kind="json")
        self._kept = _Keepings()
        self._sample = Sample(SAMPLE_ROWS, _answer)
        self._repeated: dict[tuple[str, str], _Repeated] | None = {} if declared is None else None

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        if dataset not in (TRAIN, VALIDATION, TEST):
            return  # A general probe has a format of its own.
        for example in examples:
            answer = _answer(example)
            if answer is not None:
                # As _Keepings counts it: valid answers need no length.
                keeping = self._format.classify(answer)
                length = 0 if keeping in ("valid", "other") else self._format.valid_length(answer)
                self._kept.add(pointer(example), keeping, length, is_training=dataset == TRAIN)
                self._repeat(dataset, example, answer)
        if dataset == TRAIN and self._declared is None:
            self._sample.see(examples)

    def checks(self) -> Sequence[Check]:
        if self._declared is not None:
            return [_check(self._kept, self._declared)]
        answers = [row.kept for row in self._sample.rows]
        if len(answers) < FEWEST_ANSWERS:
            why = f"No format is declared, and {rows(len(answers))} of training answers are too few to infer one from."
            return [skipped("format_drift", why)]
        inferred = infer_format(answers)
        if inferred is not None and inferred.kind == "json":
            kept: _Keepings | None = self._kept
        else:
            kept = None if inferred is None else self._against_labels(inferred)
        if inferred is None or kept is None or not _fits(kept):
            why = (
                f"No format is declared (`evaluate.format`), and fewer than {FITTING_SHARE:.0%} of the training "
                "answers have one in common."
            )
            return [skipped("format_drift", why, rows=self._kept.kinds.total())]
        return [_check(kept, inferred, inferred_from=len(answers))]

    def _repeat(self, dataset: str, example: Example, answer: str) -> None:
        """Keep an answer once, for labels; too many different ones are none."""
        if self._repeated is None:
            return
        same = self._repeated.setdefault((dataset, answer[:KEPT_CHARACTERS]), _Repeated())
        same.count += 1
        if len(same.first) < NUM_EXAMPLES:
            same.first.append(pointer(example))
        if len(self._repeated) > NUM_DISTINCT:
            self._repeated = None

    def _against_labels(self, labels: AnswerFormat) -> _Keepings | None:
        if self._repeated is None:
            return None
        kept = _Keepings()
        for (dataset, answer), same in self._repeated.items():
            is_training = dataset == TRAIN
            keeping, length = labels.classify(answer), labels.valid_length(answer)
            for place in same.first[:-1]:
                kept.add(place, keeping, length, is_training=is_training)
            # Rows beyond the first few are counted where the last one stands.
            times = same.count - len(same.first) + 1
            kept.add(same.first[-1], keeping, length, is_training=is_training, times=times)
        return kept


def _fits(kept: _Keepings) -> bool:
    """Return whether so many training answers are in the format that it is one."""
    num_fit = kept.training.total() - kept.training["other"]
    return num_fit >= FITTING_SHARE * kept.training.total()


def _check(kept: _Keepings, format: AnswerFormat, *, inferred_from: int | None = None) -> Check:
    """Return the check against a format that is declared, or inferred from so many training answers."""
    is_declared = inferred_from is None
    total = kept.kinds.total()
    count = total - kept.kinds["valid"]
    if not is_declared and format.kind == "labels":
        # An answer that is no label at all belongs to another task among the rows.
        count -= kept.kinds["other"]
    has_left = kept.kinds["drifts"] + kept.kinds["truncated"] > DRIFTS_LIMIT * total
    # Labels that are inferred may lack a rare one, and prose among JSON may be meant: these never refuse a job.
    fails = is_declared or (format.kind == "json" and has_left)
    facts: dict[str, Any] = {"format": format.describe(), "kind": format.kind, "declared": is_declared}
    if inferred_from is not None:
        facts["inferred_from_rows"] = inferred_from
    if count:
        facts |= {
            "kinds": {kind: kept.kinds[kind] for kind in _SEVERITY},
            "datasets": dict(kept.datasets.most_common()),
            "worst": kept.shown(),
        }
    return Check(
        name="format_drift",
        status="pass" if not count else "fail" if fails else "warn",
        count=count,
        rows=total,
        limit=0.0 if is_declared else DRIFTS_LIMIT,
        examples=kept.worst.pointers[:count],
        fix="".join(_sentences(kept, format, count, is_declared=is_declared)).strip() if count else "",
        facts=facts,
    )


def _sentences(kept: _Keepings, format: AnswerFormat, count: int, *, is_declared: bool) -> Iterator[str]:
    where = ", ".join(f"{number} in {dataset}" for dataset, number in kept.datasets.most_common())
    source = "declared" if is_declared else "inferred from the training answers"
    yield (
        f"{count} {'answer is' if count == 1 else 'answers are'} not {format.describe()} to the end ({where}); this "
        f"format is {source}. "
    )
    parts = {
        "drifts": "begin in the format and go on with something else",
        "truncated": "stop before they are finished",
        "other": "were never in it",
    }
    counts = {kind: number for kind in parts if (number := kept.kinds[kind])}
    yield f"{', '.join(f'{number} {parts[kind]}' for kind, number in counts.items())}. "
    yield "Correct or remove these rows: the model learns to leave the format where they do."
    if not is_declared:
        yield " If the answers are meant to differ, declare what they are with `evaluate.format`."


def _answer(example: Example) -> str | None:
    """Return the last answer in words; None where there is none (a text, a tool call, nothing)."""
    return example.answer_text if has_answer(example) else None
