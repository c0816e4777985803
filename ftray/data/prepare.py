"""From the `data` section to tokenized rows: read, decontaminate, split, audit, tokenize. Deterministic.

The process that checks a job and every worker that trains it run this and get the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftray.data.audit import AuditReport, audit, decontaminate
from ftray.data.config import DataConfig, Source, SplitConfig
from ftray.data.conversations import Example
from ftray.data.readers import read_source, source_digest
from ftray.data.split import split_validation
from ftray.data.templates import load_template
from ftray.data.tokenization import Dropped, Tokenization, TokenizedExample, fitting, tokenize_all
from ftray.data.windows import cut_texts
from ftray.errors import InputError

SMOKE_SHARE = 10
"""`--smoke` trains on every tenth row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasets:
    """Everything a run reads."""

    train: list[TokenizedExample]
    validation: list[Example]
    test: list[Example] | None
    probes: dict[str, list[Example]]
    tokenization: Tokenization
    max_length: int
    audit: AuditReport
    dropped: list[Dropped] = field(default_factory=list)
    decontaminated: int = 0
    notes: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)


def sources_of(value: Source | list[Source]) -> list[Source]:
    """Return a source or a list of them as a list."""
    return list(value) if isinstance(value, list) else [value]


def prepare(
    data: DataConfig,
    *,
    probes: Mapping[str, Source],
    tokenizer: Any,
    model_length: int,
    base: Path,
    seed: int,
    smoke: bool,
    accepted: Mapping[str, str],
) -> Datasets:
    """Return the run's rows. Raises InputError for whatever is wrong with them; the audit is returned, not raised."""
    _require_effect(data, probes)
    max_length = min(data.max_length or model_length, model_length)
    reading = _Reading(base, tokenizer, max_length)
    test = None if data.test is None else reading.rows(data.test, "test")
    general = {name: reading.rows(source, name) for name, source in probes.items()}
    validation = None if isinstance(data.validation, float) else reading.rows(data.validation, "validation")
    # Not against the probes: they belong to `evaluate`, which must not change what a run is trained on.
    held_out = [*(test or []), *(validation or [])]
    train, num_dropped = _read_train(data, held_out, reading)
    needs_template = any(example.text is None for example in _all(train, held_out, general))
    tokenization = Tokenization(
        tokenizer,
        template=load_template(data.template, tokenizer, base=base) if needs_template else None,
        loss_on=data.loss_on,
        max_length=max_length,
    )
    if validation is None:
        assert isinstance(data.validation, float)
        split = split_validation(train, share=data.validation, config=data.split, seed=seed)
        train, validation = split.train, split.validation
    if smoke:
        train = train[::SMOKE_SHARE] or train[:1]
    report = audit(train, validation, test or [], general, accepted=accepted, paths=_paths(data, probes))
    tokenized = tokenize_all(
        train, tokenization, on_overlong=data.on_overlong, max_dropped=data.max_dropped, name="train"
    )
    if not tokenized.examples:
        raise InputError(
            "no training row is left after tokenization",
            kind="empty_dataset",
            given=len(train),
            allowed="at least one row that fits and has labels",
            hint="Raise data.max_length, or look at the rows ftray audit names.",
            path="data.train",
        )
    dropped = list(tokenized.dropped)
    validation, lost = fitting(
        validation, tokenization, max_dropped=data.max_dropped, on_overlong=data.on_overlong, name="validation"
    )
    dropped += lost
    if test is not None:
        test, lost = fitting(
            test, tokenization, max_dropped=data.max_dropped, on_overlong=data.on_overlong, name="test"
        )
        dropped += lost
    return Datasets(
        train=list(tokenized.examples),
        validation=validation,
        test=test,
        probes=general,
        tokenization=tokenization,
        max_length=max_length,
        audit=report,
        dropped=dropped,
        decontaminated=num_dropped,
        notes=list(tokenized.notes),
        digests=data_digests(data, probes, base),
    )


def _require_effect(data: DataConfig, probes: Mapping[str, Source]) -> None:
    """Refuse settings of sources that would be accepted and ignored."""
    held_out = {f"evaluate.general.{name}": source for name, source in probes.items()}
    for name, value in (("data.validation", data.validation), ("data.test", data.test)):
        if value is not None and not isinstance(value, float):
            held_out |= {f"{name}.{index}": source for index, source in enumerate(sources_of(value))}
    for path, source in held_out.items():
        if source.decontaminate:
            raise _no_effect(f"{path}.decontaminate", "it drops training rows, and this is not a training source")
    if data.split.by == "content" and data.split.column is not None:
        raise _no_effect("data.split.column", "data.split.by is content")
    if not isinstance(data.validation, float) and data.split != SplitConfig():
        raise _no_effect("data.split", "data.validation is a source of its own, nothing is split")


def _all(train: list[Example], held_out: list[Example], general: Mapping[str, list[Example]]) -> Iterator[Example]:
    yield from train
    yield from held_out
    for rows in general.values():
        yield from rows


def _no_effect(path: str, why: str) -> InputError:
    return InputError(
        f"{path} has no effect here: {why}",
        kind="no_effect",
        allowed="settings that change something",
        hint=f"Remove {path}, or set it where it applies.",
        path=path,
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """Reads sources, with texts longer than the model cut into windows."""

    base: Path
    tokenizer: Any
    max_length: int

    def rows(self, value: Source | list[Source], name: str) -> list[Example]:
        examples = [row for source in sources_of(value) for row in read_source(source, name=name, base=self.base)]
        return cut_texts(examples, self.tokenizer, max_length=self.max_length)


def _read_train(data: DataConfig, held_out: Sequence[Example], reading: _Reading) -> tuple[list[Example], int]:
    rows: list[Example] = []
    num_dropped = 0
    for source in sources_of(data.train):
        examples = reading.rows(source, "train")
        if source.decontaminate:
            cleaned = decontaminate(examples, held_out)
            num_dropped += len(cleaned.dropped)
            examples = list(cleaned.kept)
        rows.extend(examples)
    return rows, num_dropped


def _paths(data: DataConfig, probes: Mapping[str, Source]) -> dict[str, str]:
    """Return where each dataset comes from, for the audit's record."""
    places: dict[str, Source | list[Source]] = {"train": data.train, **probes}
    if data.test is not None:
        places["test"] = data.test
    places["validation"] = data.train if isinstance(data.validation, float) else data.validation
    return {name: ", ".join(source.path for source in sources_of(value)) for name, value in places.items()}


def data_digests(data: DataConfig, probes: Mapping[str, Source], base: Path) -> dict[str, str]:
    """Return the content digest of every source, by its place in the job."""
    places: dict[str, Source | list[Source]] = {"train": data.train}
    if not isinstance(data.validation, float):
        places["validation"] = data.validation
    if data.test is not None:
        places["test"] = data.test
    places |= dict(probes)
    return {
        f"{name}.{index}" if isinstance(value, list) else name: source_digest(source, base)
        for name, value in places.items()
        for index, source in enumerate(sources_of(value))
    }
