"""The gate over files, without holding them: what `ftray audit` does, and training rows without their faults.

Two passes at most: one that looks, and one that writes the rows nothing was found in.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ftray.artifacts import canonical_json_line
from ftray.audit.finder import TRAIN
from ftray.audit.gate import CHUNK_ROWS, Expectations, Gate
from ftray.audit.report import AuditReport
from ftray.data.config import Source
from ftray.data.conversations import Example
from ftray.data.readers import source_files, stream_source
from ftray.data.rows import stream_rows
from ftray.data.tokenization import Dropped
from ftray.errors import InputError

Place = tuple[str, int]
"""A dataset's name and a row in it."""
Progress = Callable[[int], None]
"""Called with the number of training rows seen so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Training files and what they are compared with, by the names they have in the report."""

    train: Mapping[str, Source]
    evaluation: Mapping[str, Source]
    base: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """The report, and for each training row that is better left out the first reason."""

    report: AuditReport
    faulty: dict[Place, str]


class Look(Protocol):
    """What a model says of rows that go by."""

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        """Take the next rows of a dataset."""

    @property
    def dropped(self) -> Mapping[str, Sequence[Dropped]]:
        """The rows that do not fit the model, by dataset."""

    def surprise(self) -> Mapping[Place, float]:
        """Return the bits per byte of some training rows' answers, by dataset and row."""


def audit_files(
    files: Files,
    *,
    expectations: Expectations,
    seen: Progress = lambda rows: None,
    look: Look | None = None,
) -> Audited:
    """Run every check over files as they stream by. Raises InputError for rows that cannot be read."""
    train = _training(files)
    first = next(train)
    gate = Gate(first, expectations)
    for name, source in files.evaluation.items():
        for chunk in stream_source(source, name=name, base=files.base, chunk=CHUNK_ROWS):
            gate.see(name, chunk)
            if look is not None:
                look.see(name, chunk)
    faulty: dict[Place, str] = {}
    rows = 0
    for chunk in itertools.chain([first], train):
        gate.see(TRAIN, chunk)
        if look is not None:
            look.see(TRAIN, chunk)
        for position in sorted(gate.overlaps.contaminating):
            faulty[chunk[position].dataset, chunk[position].row] = "stands in an evaluation set"
        for example in chunk:
            if example.is_blank:
                faulty.setdefault((example.dataset, example.row), "empty")
        rows += len(chunk)
        seen(rows)
    for place in gate.duplicates.repeated():
        faulty.setdefault(place, "repeats an earlier row")
    for place in gate.duplicates.contradictory():
        faulty.setdefault(place, "contradicts other rows")
    if look is not None:
        gate.note_dropped(look.dropped)
        gate.note_surprise(look.surprise())
    paths = {name: source.path for name, source in {**files.train, **files.evaluation}.items()}
    return Audited(report=gate.report(accepted={}, paths=paths), faulty=faulty)


def write_clean(files: Files, audited: Audited, output: Path) -> dict[str, int]:
    """Write the training rows that no fault was found in as JSON lines; return what became of the rows, by reason.

    Raises InputError where a file's rows are not its examples, or where `output` cannot be written.
    """
    counts: Counter[str] = Counter()
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as lines:
            for name, source in files.train.items():
                (file,) = source_files(source, files.base)
                for row in stream_rows(file):
                    reason = audited.faulty.get((name, row.index))
                    counts[reason or "written"] += 1
                    if reason is None:
                        lines.write(canonical_json_line(row.columns))
        if not counts["written"]:
            temporary.unlink()
            raise InputError(
                "no training row is left to write: something was found in every one",
                kind="empty_dataset",
                given=dict(counts),
                allowed="at least one clean row",
                hint="Look at what the audit says without --write-clean.",
            )
        os.replace(temporary, output)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{output} cannot be written: {error.strerror}",
            kind="unwritable",
            given=str(output),
            hint="Choose another place with --write-clean FILE.",
            file=str(output),
        ) from error
    return dict(counts)


def require_writable_rows(files: Files, output: Path) -> None:
    """Raise InputError unless the training files can be written again row by row, to a new place that can be written.

    Found before the audit, which may take minutes.
    """
    for source in files.train.values():
        found = source_files(source, files.base)
        if not found or source.format == "oasst":
            raise InputError(
                f"--write-clean writes rows as they stand in a file, and {source.path!r} is "
                f"{'a tree of messages' if found else 'a Hugging Face dataset'}",
                kind="usage",
                given=source.path,
                allowed=".jsonl, .json, .csv, .parquet and .txt files with one example a row",
                hint="Export it as JSON lines first.",
            )
    for source in (*files.train.values(), *files.evaluation.values()):
        if output.resolve() in [file.resolve() for file in source_files(source, files.base)]:
            raise InputError(
                f"--write-clean would overwrite the data it reads: {output}",
                kind="usage",
                given=str(output),
                allowed="a file of another name",
                hint=f"--write-clean {output.with_stem(output.stem + '-clean').with_suffix('.jsonl').name}",
            )
    if output.suffix != ".jsonl":
        raise InputError(
            f"--write-clean writes JSON lines, and {output} does not end in .jsonl",
            kind="usage",
            given=str(output),
            allowed="a .jsonl file",
            hint=f"--write-clean {output.with_suffix('.jsonl')}",
        )
    if output.is_dir() or not output.resolve().parent.is_dir() or not os.access(output.resolve().parent, os.W_OK):
        raise InputError(
            f"{output} cannot be written: {'it is a folder' if output.is_dir() else 'its folder is missing or closed'}",
            kind="unwritable",
            given=str(output),
            hint="Choose another place with --write-clean FILE.",
            file=str(output),
        )


def _training(files: Files) -> Iterator[list[Example]]:
    for name, source in files.train.items():
        yield from stream_source(source, name=name, base=files.base, chunk=CHUNK_ROWS)
