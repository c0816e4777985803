"""The dataset gate: what is wrong with the data, counted, with rows to look at and what to change.

Questions are compared by what stands in their template fields, never by the template's constant words. `failed` checks
refuse a job unless it accepts them by name with a reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ftray.data.conversations import Example, examples_digest, without_repetitions
from ftray.errors import InputError, nearest

Status = Literal["pass", "warn", "fail", "skipped"]
CHECKS = (
    "overlap_exact", "overlap_normalised", "duplicates_exact", "conflicts", "empty", "size", "label_coverage",
)  # fmt: skip
OVERLAP_LIMIT = 0.005
"""Share of an evaluation set's rows that may also be training rows before the gate fails."""
DUPLICATES_LIMIT = 0.01
SMALLEST_TRAIN = 100
LABELS_LIMIT = 100
"""A task with at most so many distinct answers, each twice on average, is a classification."""
_NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """A row to look at, and the row it collides with."""

    dataset: str
    row: int
    other_dataset: str | None = None
    other_row: int | None = None
    similarity: float | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the pointer as in audit.json."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one check found: `count` of `rows` rows."""

    name: str
    status: Status
    count: int
    rows: int
    limit: float | None
    examples: tuple[Pointer, ...]
    fix: str
    accepted: str | None = None

    @property
    def share(self) -> float:
        return self.count / self.rows if self.rows else 0.0

    def to_record(self) -> dict[str, Any]:
        """Return the check as in audit.json."""
        plain = {
            name: getattr(self, name) for name in ("name", "status", "count", "rows", "share", "limit", "accepted")
        }
        return {**plain, "examples": [pointer.to_record() for pointer in self.examples], "fix": self.fix}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedDataset:
    """A dataset the audit read."""

    name: str
    path: str
    rows: int
    digest: str

    def to_record(self) -> dict[str, Any]:
        """Return the dataset as in audit.json."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """All checks over all datasets."""

    datasets: tuple[AuditedDataset, ...]
    checks: tuple[Check, ...]

    @property
    def status(self) -> Literal["pass", "warn", "fail"]:
        """The worst status; a failed check that was accepted counts as a warning."""
        found = {"warn" if check.accepted and check.status == "fail" else check.status for check in self.checks}
        return "fail" if "fail" in found else "warn" if "warn" in found else "pass"

    @property
    def failed(self) -> tuple[Check, ...]:
        """The failed checks that nobody accepted."""
        return tuple(check for check in self.checks if check.status == "fail" and not check.accepted)

    def to_record(self) -> dict[str, Any]:
        """Return the `ftray/audit/1` document."""
        return {
            "schema": "ftray/audit/1",
            "status": self.status,
            "datasets": [dataset.to_record() for dataset in self.datasets],
            "checks": [check.to_record() for check in self.checks],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Decontaminated:
    """Training rows without those that stand in an evaluation set, and the rows that did."""

    kept: list[Example]
    dropped: list[Example]


def audit(
    train: Sequence[Example],
    validation: Sequence[Example],
    test: Sequence[Example],
    probes: Mapping[str, Sequence[Example]],
    *,
    accepted: Mapping[str, str],
    paths: Mapping[str, str] | None = None,
) -> AuditReport:
    """Run every check; `accepted` gives the reason why a check by this name may fail, `paths` each dataset's source."""
    for name in accepted:
        if name not in CHECKS:
            raise InputError(
                f"audit.accept names the check {name!r}, which there is not",
                kind="unknown_check",
                given=name,
                allowed=list(CHECKS),
                hint=f"Did you mean {nearest(name, CHECKS)!r}?",
                path="audit.accept",
            )
    train = without_repetitions(train)
    evaluation = {"validation": validation, "test": test, **probes}
    evaluation = {name: without_repetitions(rows) for name, rows in evaluation.items() if rows}
    checks = (
        _overlap("overlap_exact", train, evaluation, _exact),
        _overlap("overlap_normalised", train, evaluation, _normalised),
        _duplicates(train),
        _conflicts(train),
        _empty([train, *evaluation.values()]),
        _size(train),
        _label_coverage(train, evaluation.get("test", [])),
    )
    datasets = [
        AuditedDataset(name=name, path=(paths or {}).get(name, ""), rows=len(rows), digest=examples_digest(rows))
        for name, rows in {"train": train, **evaluation}.items()
    ]
    return AuditReport(
        datasets=tuple(datasets),
        checks=tuple(replace(check, accepted=accepted.get(check.name)) for check in checks),
    )


def decontaminate(train: Sequence[Example], evaluation_examples: Iterable[Example]) -> Decontaminated:
    """Drop the training rows whose question, exact or normalised, stands in an evaluation set."""
    asked = {example.normalised_prompt for example in evaluation_examples}
    kept = [example for example in train if example.normalised_prompt not in asked]
    dropped = [example for example in train if example.normalised_prompt in asked]
    return Decontaminated(kept=kept, dropped=dropped)


def _overlap(
    name: str,
    train: Sequence[Example],
    evaluation: Mapping[str, Sequence[Example]],
    key: Callable[[Example], str],
) -> Check:
    """Count the evaluation rows that training has seen, in the set where their share is largest."""
    seen = _first_by(train, key)
    hits = {dataset: [row for row in rows if key(row) in seen] for dataset, rows in evaluation.items()}
    worst = max(evaluation, key=lambda dataset: len(hits[dataset]) / len(evaluation[dataset]), default=None)
    if worst is None:
        return _check(name, [], 0, "There is no evaluation set to compare with.", status="skipped", limit=OVERLAP_LIMIT)
    is_over = len(hits[worst]) > OVERLAP_LIMIT * len(evaluation[worst])
    others = "".join(f" Also {len(rows)} in {dataset}." for dataset, rows in hits.items() if rows and dataset != worst)
    fix = (
        f"{len(hits[worst])} rows of {worst} are training rows, too: set `decontaminate: true` on the training "
        f"source, which drops them from training.{others}"
    )
    pointers = [_pointer(row, seen[key(row)]) for row in hits[worst]]
    status: Status = "fail" if is_over else "warn"
    return _check(name, pointers, len(evaluation[worst]), fix, status=status, limit=OVERLAP_LIMIT)


def _duplicates(train: Sequence[Example]) -> Check:
    first = _first_by(train, lambda example: example.digest)
    again = [example for example in train if first[example.digest] is not example]
    status: Status = "warn" if len(again) > DUPLICATES_LIMIT * len(train) else "pass"
    fix = f"{len(again)} training rows repeat an earlier row: remove them, or say so with the source's `weight`."
    pointers = [_pointer(example, first[example.digest]) for example in again]
    return _check("duplicates_exact", pointers, len(train), fix, status=status, limit=DUPLICATES_LIMIT)


def _conflicts(train: Sequence[Example]) -> Check:
    """Count rows whose question an earlier row answers otherwise; texts have no answer."""
    first: dict[str, Example] = {}
    pointers = []
    for example in train:
        if example.text is None:
            earlier = first.setdefault(example.normalised_prompt, example)
            if earlier.normalised_answer != example.normalised_answer:
                pointers.append(_pointer(example, earlier))
    fix = f"{len(pointers)} training rows answer a question otherwise than an earlier row: keep the right answer."
    return _check("conflicts", pointers, len(train), fix, status="warn", limit=0.0)


def _empty(datasets: Sequence[Sequence[Example]]) -> Check:
    rows = [example for dataset in datasets for example in dataset]
    blank = [_pointer(example, None) for example in rows if _is_blank(example)]
    fix = f"{len(blank)} rows have no answer: fill in or remove them; a model learns to say nothing from them."
    return _check("empty", blank, len(rows), fix, status="fail", limit=0.0)


def _is_blank(example: Example) -> bool:
    if example.text is not None:
        return not example.text.strip()
    return not example.answer_text.strip() and not example.messages[-1].tool_calls


def _size(train: Sequence[Example]) -> Check:
    is_small = len(train) < SMALLEST_TRAIN
    fix = f"{len(train)} training rows are few (fewer than {SMALLEST_TRAIN}): add rows, or put examples in the prompt."
    return Check(
        name="size",
        status="warn" if is_small else "pass",
        count=len(train),
        rows=len(train),
        limit=float(SMALLEST_TRAIN),
        examples=(),
        fix=fix if is_small else "",
    )


def _label_coverage(train: Sequence[Example], test: Sequence[Example]) -> Check:
    """Count test rows whose answer training never shows, for tasks that choose among few answers."""
    answers = Counter(example.normalised_answer for example in train if example.text is None)
    is_classification = 0 < len(answers) <= LABELS_LIMIT and answers.total() >= 2 * len(answers)
    graded = [example for example in test if example.text is None]
    if not (is_classification and graded):
        why = "Answers are not a small set of labels, or there is no test set."
        return _check("label_coverage", [], len(graded), why, status="skipped", limit=0.0)
    unseen: dict[str, list[Example]] = defaultdict(list)
    for example in graded:
        if example.normalised_answer not in answers:
            unseen[example.answer_text].append(example)
    fix = (
        f"Training never shows the answers {', '.join(map(repr, list(unseen)[:5]))}: add rows, or drop them from test."
    )
    pointers = [_pointer(example, None) for examples in unseen.values() for example in examples]
    return _check("label_coverage", pointers, len(graded), fix, status="warn", limit=0.0)


def _check(name: str, found: Sequence[Pointer], rows: int, fix: str, *, status: Status, limit: float) -> Check:
    """Return a check that has `status` if anything was found, and passes otherwise."""
    is_clean = not found and status != "skipped"
    return Check(
        name=name,
        status="pass" if is_clean else status,
        count=len(found),
        rows=rows,
        limit=limit,
        examples=tuple(found[:_NUM_EXAMPLES]),
        fix="" if is_clean else fix,
    )


def _pointer(example: Example, other: Example | None) -> Pointer:
    if other is None:
        return Pointer(dataset=example.dataset, row=example.row)
    return Pointer(dataset=example.dataset, row=example.row, other_dataset=other.dataset, other_row=other.row)


def _first_by(examples: Sequence[Example], key: Callable[[Example], str]) -> dict[str, Example]:
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(key(example), example)
    return first


def _exact(example: Example) -> str:
    return example.subject


def _normalised(example: Example) -> str:
    return example.normalised_prompt
