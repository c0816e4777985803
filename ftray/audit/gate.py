"""The dataset gate: evaluation rows, then training rows go by every finder; what they found is one report.

`failed` checks refuse a job unless it accepts them by name with a reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ftray.audit.characters import Encoding, TemplateTokens
from ftray.audit.diversity import Diversity, Size
from ftray.audit.duplicates import Duplicates
from ftray.audit.finder import TEST, TRAIN, VALIDATION, Finder
from ftray.audit.format import FormatDrift
from ftray.audit.health import Empty, Refusals, RoleOrder
from ftray.audit.labels import Labels
from ftray.audit.leakage import Leakage
from ftray.audit.noise import LabelNoise
from ftray.audit.outliers import Outliers
from ftray.audit.overlap import Overlaps
from ftray.audit.personal_data import PersonalData
from ftray.audit.relevance import Relevance
from ftray.audit.report import CHECKS, AuditedDataset, AuditReport
from ftray.audit.truncation import truncation
from ftray.data.answer_format import AnswerFormat
from ftray.data.config import SplitConfig
from ftray.data.conversations import Example, RowsDigest, without_repetitions
from ftray.data.fingerprint import Prints, constant_text
from ftray.data.tokenization import Dropped
from ftray.errors import InputError, nearest

CHUNK_ROWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectations:
    """What is known of the data beyond its rows."""

    split: SplitConfig = field(default_factory=SplitConfig)
    format: AnswerFormat | None = None
    """What the answers must look like; None where nobody has said: then it is inferred."""
    control_tokens: Collection[str] = ()
    """The tokenizer's own."""


class Gate:
    """Takes rows and gives the report. Evaluation sets come first, whole; then training rows, in chunks."""

    def __init__(self, first: Sequence[Example], expectations: Expectations) -> None:
        """Take the first training rows, which show what text of a template stands in all rows."""
        prints = Prints(constant_text([example.normalised_prompt for example in first]))
        self.overlaps = Overlaps(prints)
        self.duplicates = Duplicates(prints)
        # A probe needs no answer where it checks instructions, and nothing is learned from it.
        self._not_for_probes: list[Finder] = [Empty(), Encoding()]
        self._diversity = Diversity()
        self._label_noise = LabelNoise()
        self._finders: list[Finder] = [
            self.overlaps,
            self.duplicates,
            Leakage(self.overlaps, expectations.split),
            FormatDrift(expectations.format),
            self._diversity,
            Labels(),
            *self._not_for_probes,
            Refusals(),
            RoleOrder(),
            TemplateTokens(expectations.control_tokens),
            Outliers(),
            PersonalData(),
            Size(),
            self._label_noise,
            Relevance(),
        ]
        # Training stands first in the report.
        self._datasets = {example.dataset: RowsDigest() for example in first}
        self._dropped: Mapping[str, Sequence[Dropped]] | None = None

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        """Show rows to every finder. `dataset`: train, validation, test, or the name of a probe."""
        for example in examples:
            # Validation rows cut from a training file keep its name, which says where they stand.
            self._count(example.dataset if dataset == TRAIN else dataset, example)
        for finder in self._finders:
            if dataset in (TRAIN, VALIDATION, TEST) or finder not in self._not_for_probes:
                finder.see(dataset, examples)

    def see_replay(self, examples: Sequence[Example]) -> None:
        """Show general rows trained on beside the task's: only what they share with evaluation sets matters."""
        for example in examples:
            self._count(example.dataset, example)
        self.overlaps.see(TRAIN, examples)

    def note_dropped(self, dropped: Mapping[str, Sequence[Dropped]]) -> None:
        """Take the rows that a tokenizer found too long, by dataset."""
        self._dropped = dropped

    def note_surprise(self, surprise: Mapping[tuple[str, int], float]) -> None:
        """Take the bits per byte of training rows' answers under a model, by dataset and row."""
        self._label_noise.surprise = surprise

    def report(self, *, accepted: Mapping[str, str], paths: Mapping[str, str] | None = None) -> AuditReport:
        """Return what was found; `accepted` gives the reason why a check by this name may fail."""
        self._diversity.largest_cluster = self.duplicates.largest_cluster
        found = [check for finder in self._finders for check in finder.checks()]
        tokenized = {name: one.rows for name, one in self._datasets.items() if name in (self._dropped or ())}
        found.append(truncation(self._dropped, tokenized))
        checks = {check.name: check for check in found}
        assert checks.keys() == set(CHECKS), "every check is made, and has its place in CHECKS"
        datasets = tuple(
            AuditedDataset(name=name, path=(paths or {}).get(name, ""), rows=one.rows, digest=one.hexdigest())
            for name, one in self._datasets.items()
        )
        return AuditReport(
            datasets=datasets, checks=tuple(replace(checks[name], accepted=accepted.get(name)) for name in CHECKS)
        )

    def _count(self, dataset: str, example: Example) -> None:
        self._datasets.setdefault(dataset, RowsDigest()).add(example)


def audit(
    train: Sequence[Example],
    validation: Sequence[Example],
    test: Sequence[Example],
    probes: Mapping[str, Sequence[Example]],
    *,
    accepted: Mapping[str, str],
    paths: Mapping[str, str] | None = None,
    replay: Sequence[Example] = (),
    expectations: Expectations | None = None,
    dropped: Mapping[str, Sequence[Dropped]] | None = None,
) -> AuditReport:
    """Run every check over a job's rows. `paths`: each dataset's source; rows that a weight repeats count once.

    `replay`: general rows that are trained on beside the task's. `dropped`: rows that are too long, by dataset.
    """
    require_known(accepted)
    train = without_repetitions(train)
    gate = Gate(train, expectations or Expectations())
    for name, rows in {VALIDATION: validation, TEST: test, **probes}.items():
        gate.see(name, without_repetitions(rows))
    for chunk in chunks(train):
        gate.see(TRAIN, chunk)
    for chunk in chunks(replay):
        gate.see_replay(chunk)
    if dropped is not None:
        gate.note_dropped(dropped)
    return gate.report(accepted=accepted, paths=paths)


def chunks(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Yield rows as finders take them."""
    for start in range(0, len(examples), CHUNK_ROWS):
        yield examples[start : start + CHUNK_ROWS]


def require_known(accepted: Mapping[str, str]) -> None:
    """Raise InputError for a check by a name that there is not."""
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
