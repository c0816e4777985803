"""`ftray audit`: the dataset gate alone, over files of any size."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftray.cli.options import Completion, Format, Json, Prompt, Quiet, Storage
from ftray.cli.outcome import Outcome
from ftray.cli.process import interruptible, quieten_libraries
from ftray.errors import InputError

if TYPE_CHECKING:
    from ftray.audit.files import Files
    from ftray.data.answer_format import AnswerFormat
    from ftray.data.config import Source

DataFiles = Annotated[
    list[str], typer.Argument(metavar="DATA...", help="Files of training examples.", show_default=False)
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        "--against", metavar="FILE", help="A held-out set to compare with: the first is the test, others are probes."
    ),
]
WriteClean = Annotated[
    Path | None,
    typer.Option(
        "--write-clean",
        metavar="FILE",
        help="Write the training rows without those that stand in an evaluation set, repeat, contradict or are empty.",
    ),
]
Answers = Annotated[
    str | None,
    typer.Option("--answers", metavar="json|PATTERN", help="What every answer must be to its end; else inferred."),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="Count tokens as this model does, and rank free answers by its surprise."
    ),
]
Gate = Annotated[bool, typer.Option("--gate", help="Exit 3 when a check fails.")]


def audit(
    data: DataFiles,
    against: Against = None,
    prompt: Prompt = None,
    completion: Completion = None,
    format: Format = None,
    answers: Answers = None,
    model: Model = None,
    write_clean: WriteClean = None,
    gate: Gate = False,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Look for what makes fine-tuning fail before it starts: contamination, repetitions, conflicts, drift, noise."""
    quieten_libraries()
    from ftray.display import open_display

    files = _files(data, against or [], prompt=prompt, completion=completion, format=format)
    with interruptible(), open_display(quiet=quiet) as display:
        display.say(f"Auditing {', '.join(data)}")
        from ftray.audit.files import audit_files, require_writable_rows
        from ftray.audit.files import write_clean as write
        from ftray.audit.gate import Expectations

        if write_clean is not None:
            require_writable_rows(files, write_clean)
        total = _total_rows(files)
        expectations = Expectations(format=_format(answers))
        look = None
        if model is not None:
            from ftray.audit_model import ModelLook

            look = ModelLook(model)
            expectations = replace(expectations, control_tokens=look.control_tokens)
        audited = audit_files(
            files,
            expectations=expectations,
            seen=lambda rows: display.advance(rows, max(rows, total), "rows"),
            look=look,
        )
        record = audited.report.to_record()
        if write_clean is not None:
            record["clean"] = {"path": str(write_clean), "rows": write(files, audited, write_clean)}

    def show(console: Any) -> None:
        from ftray.audit.table import show_audit

        show_audit(record, console)
        if write_clean is not None:
            rows = dict(record["clean"]["rows"])
            left = "; ".join(f"{count:,} left out: {reason}" for reason, count in rows.items() if reason != "written")
            console.print(f"{rows.get('written', 0):,} rows written to {write_clean} ({left or 'none left out'})")

    failed = record["status"] == "fail"
    return Outcome(document=record, show=show, exit_code=3 if gate and failed else 0)


def _files(
    data: Sequence[str], against: Sequence[str], *, prompt: str | None, completion: str | None, format: str | None
) -> Files:
    from ftray.audit.files import Files
    from ftray.audit.finder import TEST, TRAIN

    options = {"prompt": prompt, "completion": completion, "format": format}
    given = {name: value for name, value in options.items() if value is not None}
    same = sorted(set(map(_real, data)) & set(map(_real, against)))
    if same:
        raise InputError(
            f"{same[0]} is training data and what it is compared with",
            kind="usage",
            given=same,
            allowed="files that differ",
            hint="Name the evaluation file after --against.",
        )
    names = _Names()
    # The first set to compare with is the test; others are probes: labels and formats are the test's.
    held_out = [TEST if index == 0 else names.of(path) for index, path in enumerate(against)]
    return Files(
        train={
            name: _source(path, given)
            for name, path in zip([TRAIN] if len(data) == 1 else map(names.of, data), data, strict=True)
        },
        evaluation={name: _other(path, given) for name, path in zip(held_out, against, strict=True)},
        base=Path.cwd(),
    )


def _other(path: str, given: dict[str, str]) -> Source:
    """Return a source to compare with; templates are for files that have their columns, other shapes are recognised."""
    from ftray.data.columns import parse_template
    from ftray.data.rows import stream_rows

    templates = [parse_template(given[key], key=key) for key in ("prompt", "completion") if key in given]
    file = Path(path).expanduser()
    if templates and file.is_file():
        row = next(stream_rows(file), None)
        has_columns = row is not None and all(name in row.columns for one in templates for name in one.names)
        # Plain text asks nothing: a template is not for it.
        if file.suffix == ".txt" or not has_columns:
            return _source(path, {})
    return _source(path, given)


class _Names:
    """Gives files names of their own for the report, none of which is a role's."""

    def __init__(self) -> None:
        self._taken = {"train", "validation", "test"}

    def of(self, path: str) -> str:
        stem = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-") or "file"
        name = next(
            one
            for one in itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
            if one not in self._taken
        )
        self._taken.add(name)
        return name


def _format(answers: str | None) -> AnswerFormat | None:
    """Return the format that --answers declares: json, or a pattern."""
    from ftray.data.answer_format import FormatConfig, declared_format

    if answers is None:
        return None
    if answers == "labels":
        raise InputError(
            "--answers labels says nothing here: which labels there are is inferred from the training answers anyway",
            kind="usage",
            given=answers,
            allowed="json, or a pattern such as 'yes|no'",
            hint="Leave --answers out, or list the labels as a pattern.",
        )
    try:
        return declared_format("json" if answers == "json" else FormatConfig(pattern=answers), ())
    except InputError as error:
        raise InputError(
            f"--answers: {error.message}", kind=error.kind, given=answers, allowed=error.allowed, hint=error.hint
        ) from error


def _real(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _source(path: str, given: dict[str, str]) -> Source:
    from ftray.data.config import Source
    from ftray.jobfile import validate

    if Path(path).suffix in (".yaml", ".yml"):
        raise InputError(
            f"{path} is a job, and this command reads data",
            kind="usage",
            given=path,
            allowed="files of examples",
            hint=f"ftray check {path}",
        )
    source = validate(Source, {"path": path, **given}, file=None, lines={})
    assert isinstance(source, Source)
    return source


def _total_rows(files: Files) -> int:
    """Return about how many training rows there are: lines, where a row is a line."""
    total = 0
    for source in files.train.values():
        path = Path(files.base, source.path).expanduser()
        if path.suffix in (".jsonl", ".csv") and path.is_file():
            with path.open("rb") as lines:
                total += sum(block.count(b"\n") for block in iter(lambda: lines.read(1 << 20), b""))
    return total
