"""From the `data` section to tokenized rows: read, decontaminate, split, audit, tokenize. Deterministic.

The process that checks a job and every worker that trains it run this and get the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ftray.audit.gate import Expectations, audit
from ftray.audit.overlap import decontaminate
from ftray.audit.report import AuditReport
from ftray.data.answer_format import FormatSetting, declared_format
from ftray.data.config import DataConfig, Source, SplitConfig, sources_of
from ftray.data.conversations import REPLAY, Example
from ftray.data.readers import read_source, source_digest
from ftray.data.replay import Replay, ReplayRows, SampledTexts, mix_replay, read_replay, require_one_origin
from ftray.data.split import split_validation
from ftray.data.templates import load_template
from ftray.data.tokenization import Dropped, Tokenization, TokenizedExample, fitting, tokenize_all
from ftray.data.windows import cut_texts
from ftray.errors import InputError

SMOKE_SHARE = 10
"""`--smoke` trains on every tenth row, of the task and of replay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasets:
    """Everything a run reads."""

    train: list[TokenizedExample]
    """The task's rows, and the replay rows behind them."""
    validation: list[Example]
    test: list[Example] | None
    probes: dict[str, list[Example]]
    tokenization: Tokenization
    max_length: int
    audit: AuditReport | None
    """What the gate found; None where another process has audited the same rows."""
    dropped: list[Dropped] = field(default_factory=list)
    decontaminated: int = 0
    left_out: int = 0
    """Training rows that nearly repeat rows of both sides of the split."""
    notes: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    training_answers: list[str] = field(default_factory=list)
    """What the task's training rows answer at their end; equal answers are one text in memory."""
    replay: Replay | None = None

    @property
    def num_task_rows(self) -> int:
        """Training rows that are not replay."""
        return len(self.train) - (len(self.replay.rows) if self.replay else 0)

    @property
    def awaits_sampling(self) -> bool:
        """Whether replay texts are still stood in for: such rows can be counted, not trained on."""
        return self.replay is not None and not self.replay.is_sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """What the dataset gate is told by the job."""

    accepted: Mapping[str, str]
    """The reason why a check by this name may fail."""
    format: FormatSetting | None = None
    """What answers must look like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The rows of a job, before they are tokens."""

    train: list[Example]
    validation: list[Example]
    test: list[Example] | None
    probes: dict[str, list[Example]]
    replay: ReplayRows | None
    decontaminated: int
    left_out: int

    def everything(self) -> Iterator[Example]:
        yield from (*self.train, *self.validation, *(self.test or ()), *(self.replay.examples if self.replay else ()))
        for rows in self.probes.values():
            yield from rows


def prepare(
    data: DataConfig,
    *,
    probes: Mapping[str, Source],
    tokenizer: Any,
    model_length: int,
    base: Path,
    seed: int,
    smoke: bool,
    gate: GateSettings | None,
    sampled: SampledTexts | None = None,
    may_stand_in: bool = False,
) -> Datasets:
    """Return the run's rows. Raises InputError for whatever is wrong with them; the audit is returned, not raised.

    `gate`: None where another process audits the same rows. `sampled`: where the texts of data.replay.sample_base are;
    `may_stand_in`: whether they may still be missing.
    """
    _require_effect(data, probes)
    require_probes_apart(data, probes, base)
    max_length = min(data.max_length or model_length, model_length)
    reading = _Reading(base, tokenizer, max_length)
    rows = _read(data, probes, reading, seed=seed, smoke=smoke, sampled=sampled, may_stand_in=may_stand_in)
    needs_template = any(example.text is None for example in rows.everything())
    tokenization = Tokenization(
        tokenizer,
        template=load_template(data.template, tokenizer, base=base) if needs_template else None,
        loss_on=data.loss_on,
        max_length=max_length,
    )
    tokenized = tokenize_all(
        rows.train, tokenization, on_overlong=data.on_overlong, max_dropped=data.max_dropped, name="train"
    )
    if not tokenized.examples:
        raise InputError(
            "no training row is left after tokenization",
            kind="empty_dataset",
            given=len(rows.train),
            allowed="at least one row that fits and has labels",
            hint="Raise data.max_length, or look at the rows ftray audit names.",
            path="data.train",
        )
    replay = None
    if rows.replay is not None:
        replay = mix_replay(
            rows.replay,
            tokenization,
            num_task_rows=len(tokenized.examples),
            seed=seed,
            max_dropped=data.max_dropped,
            on_overlong=data.on_overlong,
        )
    fits = partial(fitting, tokenization=tokenization, max_dropped=data.max_dropped, on_overlong=data.on_overlong)
    validation, dropped_validation = fits(rows.validation, name="validation")
    test, dropped_test = fits(rows.test or [], name="test")
    dropped = {"train": tokenized.dropped, "validation": dropped_validation, "test": dropped_test}
    answers, report = answers_of(rows.train), None
    if gate is not None:
        paths = _paths(data, probes) | ({REPLAY: rows.replay.origin} if rows.replay else {})
        expectations = Expectations(
            split=data.split,
            format=declared_format(gate.format, answers),
            control_tokens=tuple(tokenizer.all_special_tokens),
        )
        report = audit(
            rows.train,
            rows.validation,
            rows.test or [],
            rows.probes,
            accepted=gate.accepted,
            paths=paths,
            replay=rows.replay.examples if rows.replay else (),
            expectations=expectations,
            dropped=dropped,
        )
    return Datasets(
        train=[*tokenized.examples, *(replay.rows if replay else [])],
        validation=validation,
        test=None if rows.test is None else test,
        probes=rows.probes,
        tokenization=tokenization,
        max_length=max_length,
        audit=report,
        dropped=[one for some in dropped.values() for one in some],
        decontaminated=rows.decontaminated,
        left_out=rows.left_out,
        notes=list(tokenized.notes),
        digests=data_digests(data, probes, base) | _replay_digest(rows.replay),
        training_answers=answers,
        replay=replay,
    )


def _read(
    data: DataConfig,
    probes: Mapping[str, Source],
    reading: _Reading,
    *,
    seed: int,
    smoke: bool,
    sampled: SampledTexts | None,
    may_stand_in: bool,
) -> _Rows:
    """Read, decontaminate and split."""
    test = None if data.test is None else reading.rows(data.test, "test")
    general = {name: reading.rows(source, name) for name, source in probes.items()}
    validation = None if isinstance(data.validation, float) else reading.rows(data.validation, "validation")
    # Not against the probes: they belong to `evaluate`, which must not change what a run is trained on.
    train, num_dropped = _read_train(data, [*(test or []), *(validation or [])], reading)
    replay = None
    if data.replay is not None:
        replay = read_replay(
            data.replay,
            sampled=sampled,
            read=reading.rows,
            digest=lambda source: source_digest(source, reading.base),
            every=SMOKE_SHARE if smoke else 1,
            may_stand_in=may_stand_in,
        )
    left_out = 0
    if validation is None:
        assert isinstance(data.validation, float)
        split = split_validation(train, share=data.validation, config=data.split, seed=seed)
        train, validation, left_out = split.train, split.validation, len(split.left_out)
    if smoke:
        train = train[::SMOKE_SHARE] or train[:1]
    return _Rows(
        train=train,
        validation=validation,
        test=test,
        probes=general,
        replay=replay,
        decontaminated=num_dropped,
        left_out=left_out,
    )


def answers_of(examples: Sequence[Example]) -> list[str]:
    """Return the final answers of rows that have one; a file of labels needs no room for each of them."""
    once: dict[str, str] = {}
    return [once.setdefault(row.answer_text, row.answer_text) for row in examples if row.answer_text]


def _require_effect(data: DataConfig, probes: Mapping[str, Source]) -> None:
    """Refuse settings of sources that would be accepted and ignored."""
    held_out = {f"evaluate.general.{name}": source for name, source in probes.items()}
    for name, value in (("data.validation", data.validation), ("data.test", data.test)):
        if value is not None and not isinstance(value, float):
            held_out |= {f"{name}.{index}": source for index, source in enumerate(sources_of(value))}
    for path, source in held_out.items():
        if source.decontaminate:
            raise _no_effect(f"{path}.decontaminate", "it drops training rows, and this is not a training source")
    if data.replay is not None:
        require_one_origin(data.replay)
    if data.split.by == "content" and data.split.column is not None:
        raise _no_effect("data.split.column", "data.split.by is content")
    if not isinstance(data.validation, float) and data.split != SplitConfig():
        raise _no_effect("data.split", "data.validation is a source of its own, nothing is split")


def require_probes_apart(data: DataConfig, probes: Mapping[str, Source], base: Path) -> None:
    """Raise InputError `probe_is_training` for a probe whose file is trained on: it would measure what was learned."""
    trained = {f"data.train.{index}": source for index, source in enumerate(sources_of(data.train))}
    if isinstance(data.train, Source):
        trained = {"data.train": data.train}
    if data.replay is not None and data.replay.source is not None:
        trained["data.replay"] = data.replay.source
    digests = {path: source_digest(source, base) for path, source in trained.items()} if probes else {}
    for name, probe in probes.items():
        digest = source_digest(probe, base)
        for path, source in trained.items():
            if digests[path] == digest and not _are_apart(probe, source):
                raise InputError(
                    f"the general probe {name!r} reads the same file as {path}: it cannot show what is forgotten",
                    kind="probe_is_training",
                    given=probe.path,
                    allowed="a probe of rows that no training source and no replay reads",
                    hint=f"Give the probe a file of its own, or split the file; or take it out of {path}.",
                    path="evaluate.general",
                    file=probe.path,
                )


def _are_apart(one: Source, other: Source) -> bool:
    """Return whether two sources of one file read rows that differ in a column."""
    first, second = one.where or {}, other.where or {}
    return any(not set(first[column]) & set(second[column]) for column in first.keys() & second.keys())


def _replay_digest(replay: ReplayRows | None) -> dict[str, str]:
    return {} if replay is None or replay.digest is None else {REPLAY: replay.digest}


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
