"""Files to rows: JSONL, JSON, CSV, Parquet, text and Hugging Face datasets, each row with the line it came from.

Every value stays as the file has it. JSON and CSV are read without `datasets`, whose common schema for all rows would
add keys to nested objects (tool arguments) that a row never had.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftray.errors import InputError, nearest

END_OF_TEXT = "<|endoftext|>"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.+-]+){0,2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as read: 0-based index in the file, 1-based line where the format has lines."""

    index: int
    line: int | None
    columns: dict[str, Any]


def is_hub_name(path: str) -> bool:
    """Return whether `path` is written like a Hugging Face dataset: org/name, org/name:split, org/name:config:split."""
    return bool(_HUB_NAME.fullmatch(path)) and Path(path).suffix not in _READERS


def read_rows(file: Path) -> list[Row]:
    """Read a file's rows in order; an unreadable row is an InputError with file and line."""
    return list(stream_rows(file))


def stream_rows(file: Path) -> Iterator[Row]:
    """Yield a file's rows as they are read; .json and .txt files are read whole. Raises as `read_rows`."""
    read = _READERS.get(file.suffix.lower())
    if read is None:
        raise InputError(
            f"{file} has the suffix {file.suffix or '(none)'!r}, which is not a dataset format",
            kind="unknown_suffix",
            given=str(file),
            allowed=sorted(_READERS),
            hint="Convert the file to one of these, or rename it if it already is one.",
            file=str(file),
        )
    try:
        yield from read(file)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 text (byte {error.start})",
            kind="bad_encoding",
            given=str(file),
            hint=f"Convert it, e.g.: iconv -f latin1 -t utf-8 {file.name} > utf8-{file.name}",
            file=str(file),
        ) from error
    except OSError as error:
        raise InputError(
            f"{file} cannot be read: {error.strerror or error}", kind="unreadable_file", given=str(file), file=str(file)
        ) from error


def missing_file(file: Path, *, given: str, allowed: Sequence[str] | None = None) -> InputError:
    """Return the error for a path that is not there, with the nearest file that is."""
    folder = file.parent
    if not folder.is_dir():
        message, near = f"there is no folder {folder} (looking for {given!r})", None
    else:
        there = (entry.name for entry in folder.iterdir() if entry.is_file())
        message, near = f"there is no file {file}", nearest(file.name, there)
    hint = f"Did you mean {near!r}?" if near else "Relative paths are relative to the job file; check the spelling."
    allowed = list(allowed) if allowed else sorted(_READERS)
    return InputError(message, kind="missing_file", given=given, allowed=allowed, hint=hint, file=str(file))


def not_json(file: Path, line: int | None, why: str) -> InputError:
    """Return the error for text that is no JSON row."""
    place = f"{file}, line {line}" if line else str(file)
    return InputError(
        f"{place}: not a JSON row ({why})",
        kind="not_json",
        allowed="one JSON object per line (.jsonl), or one list of objects (.json)",
        hint="Fix or remove the line; a file cut off while it was copied often ends like this.",
        file=str(file),
        line=line,
    )


def read_hub_rows(path: str) -> list[Row]:
    """Load a Hugging Face dataset by name; without a split, `train`."""
    import datasets

    name, *options = path.split(":")
    split = options[-1] if options else "train"
    config = options[0] if len(options) == 2 else None
    try:
        dataset = datasets.load_dataset(name, config, split=split)
    # What `datasets` raises: offline, unknown name (an OSError), unknown split or configuration (ValueError).
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"the dataset {path!r} cannot be loaded: {str(error).splitlines()[0]}",
            kind="missing_dataset",
            given=path,
            allowed="a file, or org/name, org/name:split, org/name:config:split on the Hugging Face hub",
            hint="There is no file of this name either. Offline (HF_HUB_OFFLINE=1) only datasets in the cache load.",
        ) from error
    return [Row(index=index, line=None, columns=dict(row)) for index, row in enumerate(dataset)]


def _read_jsonl(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as lines:
        index = 0
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Row(index=index, line=number, columns=_parse_object(line, file, number))
                index += 1


def _read_json(file: Path) -> Iterator[Row]:
    text = file.read_text(encoding="utf-8-sig")
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            # JSON Lines under a .json name is common and unmistakable.
            yield from _read_jsonl(file)
            return
        raise not_json(file, error.lineno, error.msg) from error
    for index, row in enumerate(document if isinstance(document, list) else [document]):
        if not isinstance(row, dict):
            raise not_json(file, None, f"element {index} is {type(row).__name__}, not an object")
        yield Row(index=index, line=None, columns=row)


def _parse_object(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise not_json(file, number, f"{error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise not_json(file, number, f"{type(row).__name__}, not an object")
    return row


def _read_csv(file: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for index, row in enumerate(reader):
                if None in row or None in row.values():
                    amount = "more" if None in row else "fewer"
                    raise bad_row(f"has {amount} fields than the header", file=file, line=reader.line_num)
                yield Row(index=index, line=reader.line_num, columns=row)
        except csv.Error as error:
            raise bad_row(f"is not CSV: {error}", file=file, line=reader.line_num) from error


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                yield Row(index=index, line=None, columns=row)
                index += 1
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{file} is not a Parquet file: {error}", kind="bad_row", given=str(file), file=str(file)
        ) from error


def _read_text(file: Path) -> Iterator[Row]:
    """Split at <|endoftext|> if the file has it, else at blank lines if it has any, else at every line."""
    text = file.read_text(encoding="utf-8-sig")
    if END_OF_TEXT in text:
        parts = text.split(END_OF_TEXT)
    elif re.search(r"\S\s*\n[ \t]*\n\s*\S", text):
        parts = re.split(r"\n[ \t]*\n", text)
    else:
        parts = text.split("\n")
    texts = [part.strip() for part in parts]
    for index, part in enumerate(part for part in texts if part):
        yield Row(index=index, line=None, columns={"text": part})


def bad_row(what: str, *, file: Path | str, line: int | None, row: int | None = None, hint: str = "") -> InputError:
    """Return the error for one row that cannot be used: `what` completes "row N …"."""
    place = f"line {line}" if line is not None else f"row {row}"
    return InputError(
        f"{file}, {place}: the row {what}", kind="bad_row", hint=hint, file=str(file), line=line, given=row
    )


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
