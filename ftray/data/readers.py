"""A source of the job file to examples, in file order.

`limit` and `weight` choose rows by the digest of their content: the same rows whatever order the file is in.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ftray.artifacts import digest_file, digest_of
from ftray.data.columns import ColumnTemplate, column_text, missing_column, parse_template
from ftray.data.config import Source, SourceFormat
from ftray.data.conversations import Example, Message
from ftray.data.formats import Conversation, MissingColumn, convert, detect_format, one_turn, refuse_preferences
from ftray.data.rows import Row, bad_row, is_hub_name, missing_file, read_hub_rows, read_rows, stream_rows
from ftray.data.trees import read_threads
from ftray.data.turns import BadTurn, check_text
from ftray.errors import InputError

T = TypeVar("T")


def source_files(source: Source, base: Path) -> list[Path]:
    """Return the local files of a source; none for a Hugging Face dataset. A missing file is an InputError."""
    file = Path(base, Path(source.path).expanduser())
    if file.is_file():
        return [file]
    if file.is_dir():
        raise InputError(
            f"{file} is a folder; a source is one file",
            kind="missing_file",
            given=source.path,
            allowed=sorted(entry.name for entry in file.iterdir() if entry.is_file()),
            hint="List the files of the folder as separate sources.",
            file=str(file),
        )
    if is_hub_name(source.path):
        return []
    raise missing_file(file, given=source.path)


def source_digest(source: Source, base: Path) -> str:
    """Return the SHA-256 of a local file's bytes, or of a Hugging Face dataset's declared name."""
    files = source_files(source, base)
    return digest_file(files[0]) if files else digest_of({"hub": source.path})


def source_format(source: Source, rows: Sequence[Row]) -> SourceFormat:
    """Return the format a source is read in: the one it names, or the one its rows have."""
    given = [name for name in ("prompt", "completion") if getattr(source, name) is not None]
    if source.format in ("auto", "columns") and len(given) == 2:
        return "columns"
    if given or source.format == "columns":
        missing = next((name for name in ("prompt", "completion") if name not in given), None)
        raise InputError(
            f"the source {source.path!r} has no `{missing}` template"
            if missing
            else f"the source {source.path!r} has prompt and completion templates and the format {source.format!r}",
            kind="bad_template",
            given=given,
            allowed="`prompt` and `completion` together, with the format `columns` (or none named)",
            hint='For example: prompt: "Which intent is this? {text}" and completion: "{intent}".',
            path=missing or "format",
        )
    refuse_preferences(rows, file=source.path)
    return detect_format(rows, file=source.path) if source.format == "auto" else source.format


def read_source(source: Source, *, name: str, base: Path) -> list[Example]:
    """Read a source's examples in file order; `name` is the dataset's name in messages and records."""
    files = source_files(source, base)
    rows: Sequence[Row] = read_rows(files[0]) if files else read_hub_rows(source.path)
    file = str(files[0]) if files else source.path
    rows = _chosen(rows, source.where or {}, file=file)
    examples = list(_read_examples(source, rows, name=name, file=file)) if rows else []
    if not examples:
        raise InputError(
            f"the dataset {name!r} is empty: {file} has no {'conversation' if rows else 'row'}",
            kind="empty_dataset",
            given=source.path,
            hint="Check that the file was written completely and is the one you mean.",
            file=file,
        )
    return _weighted(_limited(examples, source.limit), source.weight)


def stream_source(source: Source, *, name: str, base: Path, chunk: int) -> Iterator[list[Example]]:
    """Yield a source's examples in file order, `chunk` at a time, without holding the file.

    OpenAssistant's trees and Hugging Face datasets are read whole. `where` and `limit` are for `read_source`.
    """
    assert source.where is None
    assert source.limit is None
    files = source_files(source, base)
    if not files:
        yield from _chunked(iter(read_source(source, name=name, base=base)), chunk)
        return
    rows = _chunked(stream_rows(files[0]), chunk)
    first = next(rows, [])
    if not first or source_format(source, first) == "oasst":
        yield from _chunked(iter(read_source(source, name=name, base=base)), chunk)
        return
    decided = source.model_copy(update={"format": source_format(source, first)})
    for some in itertools.chain([first], rows):
        yield list(_read_examples(decided, some, name=name, file=str(files[0])))


def _chunked(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while some := list(itertools.islice(items, size)):
        yield some


def _read_examples(source: Source, rows: Sequence[Row], *, name: str, file: str) -> Iterator[Example]:
    format = source_format(source, rows)
    where = f"the format {format!r}"
    system = _template(source.system, "system")
    if format == "oasst":
        for thread in read_threads(rows, file=file):
            with _in_place(thread.root, file=file, where=where):
                example = _example(Conversation(messages=thread.messages), thread.root, name=name, system=system)
            yield example
        return
    prompt, completion = _template(source.prompt, "prompt"), _template(source.completion, "completion")
    for row in rows:
        with _in_place(row, file=file, where=where):
            if prompt is not None and completion is not None:
                fields = _values(prompt, row.columns)
                content = one_turn(prompt.fill(fields), completion.fill(_values(completion, row.columns)))
                example = _example(content, row, name=name, system=system, fields=fields)
            else:
                example = _example(convert(format, row.columns), row, name=name, system=system)
        yield example


@contextlib.contextmanager
def _in_place(row: Row, *, file: str, where: str) -> Iterator[None]:
    """Give what is wrong with a row its file and line."""
    try:
        yield
    except BadTurn as error:
        raise bad_row(str(error), file=file, line=row.line, row=row.index) from error
    except MissingColumn as error:
        raise missing_column(str(error), row.columns, file=file, line=row.line, where=where) from error


def _example(
    content: Conversation,
    row: Row,
    *,
    name: str,
    system: ColumnTemplate | None,
    fields: Mapping[str, str] | None = None,
) -> Example:
    messages = content.messages
    if system is not None:
        if content.text is not None:
            raise BadTurn("is a plain text, which cannot have the `system` message of its source")
        if messages[0].role == "system":
            raise BadTurn("has a system message of its own; its source's `system` would be a second one")
        messages = (Message(role="system", content=system.fill(_values(system, row.columns))), *messages)
    if fields is None:
        asked = [turn.content for turn in messages[:-1] if turn.role == "user"]
        fields = {"prompt": asked[-1]} if asked else {}
    return Example(
        messages=messages,
        text=content.text,
        tools=content.tools,
        dataset=name,
        row=row.index,
        fields=fields,
        columns=row.columns,
    )


def _template(template: str | None, key: str) -> ColumnTemplate | None:
    return None if template is None else parse_template(template, key=key)


def _values(template: ColumnTemplate, columns: Mapping[str, Any]) -> dict[str, str]:
    for name in template.names:
        if name not in columns:
            raise MissingColumn(name)
        if columns[name] is None:
            raise BadTurn(f"has nothing (null) in the column {name!r}, which a template uses")
    return {name: check_text(column_text(columns[name]), f"the column {name!r}") for name in template.names}


def _chosen(rows: Sequence[Row], where: Mapping[str, Sequence[Any]], *, file: str) -> Sequence[Row]:
    """Return the rows whose columns have one of the values asked for."""
    for column in where:
        if not any(column in row.columns for row in rows):
            raise missing_column(column, rows[0].columns, file=file, line=rows[0].line, where="`where`")
    chosen = [row for row in rows if all(row.columns.get(column) in values for column, values in where.items())]
    if rows and not chosen:
        raise InputError(
            f"no row of {file} has the values that `where` asks for",
            kind="empty_dataset",
            given=dict(where),
            allowed={column: sorted({str(row.columns.get(column)) for row in rows})[:20] for column in where},
            hint="Correct the values, or remove `where`.",
            path="where",
            file=file,
        )
    return chosen


def _limited(examples: list[Example], limit: int | None) -> list[Example]:
    if limit is None or limit >= len(examples):
        return examples
    chosen = sorted(examples, key=lambda example: (example.digest, example.row))[:limit]
    return sorted(chosen, key=lambda example: example.row)


def _weighted(examples: list[Example], weight: float) -> list[Example]:
    """Give every row floor(weight) times, and once more for the share of rows that the rest of the weight asks for."""
    if weight == 1:
        return examples
    whole, rest = divmod(weight, 1)
    extra = round(rest * len(examples))
    # A digest of the digest, or the rows that `limit` keeps (the smallest digests) would decide which are repeated.
    ranked = sorted(examples, key=lambda example: (digest_of(["weight", example.digest]), example.row))
    once_more = {example.row for example in ranked[: max(extra, 0 if whole else 1)]}
    return [example for example in examples for _ in range(int(whole) + (example.row in once_more))]
