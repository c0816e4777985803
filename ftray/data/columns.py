"""Prompt templates over a row's columns: "Which intent is this? {text}".

Plain names only: no attribute access, no format codes, so that a data file can never reach into the program.
`{{` and `}}` stand for braces. Numbers, booleans, lists and objects are written as JSON, text as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftray.errors import InputError, nearest

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[^\s!:.\[\]{}]([^!:.\[\]{}]*[^\s!:.\[\]{}])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnTemplate:
    """A parsed template: constant pieces around column names."""

    pieces: tuple[str, ...]  # one more than names
    names: tuple[str, ...]

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with each name replaced by its value."""
        filled = [self.pieces[0]]
        for name, piece in zip(self.names, self.pieces[1:], strict=True):
            filled += (values[name], piece)
        return "".join(filled)


def parse_template(template: str, *, key: str) -> ColumnTemplate:
    """Parse a template; `key` is the setting it came from, for messages."""
    pieces: list[str] = [""]
    names: list[str] = []
    position = 0
    for match in _TOKEN.finditer(template):
        pieces[-1] += template[position : match.start()]
        position = match.end()
        token = match.group()
        if token in ("{{", "}}"):
            pieces[-1] += token[0]
        elif match.group(1) is not None and _NAME.fullmatch(match.group(1)):
            names.append(match.group(1))
            pieces.append("")
        else:
            raise InputError(
                f"the template in `{key}` has {token!r}, which is not a plain column name in braces",
                kind="bad_template",
                given=template,
                allowed="{column}, with {{ and }} for braces that are meant as such",
                hint='Write a column name as it stands in the file, e.g. "Which intent is this? {text}".',
                path=key,
            )
    pieces[-1] += template[position:]
    return ColumnTemplate(pieces=tuple(pieces), names=tuple(names))


def column_text(value: Any) -> str:
    """Return a column's value as it stands in a prompt: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def missing_column(name: str, row: Mapping[str, Any], *, file: str, line: int | None, where: str) -> InputError:
    """Return the error for a column that is not there, with the columns that are."""
    near = nearest(name, row)
    return InputError(
        f"{where} needs the column {name!r}, which is not there; the columns are: {', '.join(row) or 'none'}",
        kind="missing_column",
        given=name,
        allowed=list(row),
        hint=f"Did you mean {near!r}?" if near else "Use one of these columns, or another format.",
        file=file,
        line=line,
    )
