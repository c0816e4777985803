"""An error as one screen: what happened, where, what was given, what is allowed, what to change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ftray.errors import FtrayError, InputError, Interrupted
from ftray.observe.log import fail, is_json

if TYPE_CHECKING:
    from rich.console import Console

LONGEST = 480
"""Characters of a given or allowed value that are shown: the rest would push the message off the screen."""


def complain(error: FtrayError) -> None:
    """Print the error on standard error."""
    if wants_json():
        fail(error)
        return
    from rich.console import Console

    show_error(error, Console(stderr=True, highlight=False))


def wants_json() -> bool:
    """Return whether errors are for machines; an unknown format is what is complained about."""
    try:
        return is_json()
    except InputError:
        return False


def show_error(error: FtrayError, console: Console) -> None:
    """Print the error; its lines are wrapped on a terminal only, so that logs can be searched."""
    from rich.table import Table
    from rich.text import Text

    colour = "yellow" if isinstance(error, Interrupted) else "red"
    title = "interrupted" if isinstance(error, Interrupted) else "error"
    lines = error_lines(error)
    if not console.is_terminal:
        console.print(Text(f"{title}: {lines.pop('message')}"), soft_wrap=True)
        for name, text in lines.items():
            console.print(Text(f"  {name + ':':9}{text}"), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(title, style=f"bold {colour}"), Text(lines.pop("message"), style="bold"))
    for name, text in lines.items():
        grid.add_row(Text(name, style="dim"), Text(text, style="green" if name == "change" else ""))
    console.print(grid)


def error_lines(error: FtrayError) -> dict[str, str]:
    """Return the parts of the screen that there are, in reading order."""
    parts = {
        "message": error.message,
        "where": _where(error),
        "given": _shown(error.given),
        "allowed": _shown(error.allowed),
        "change": error.hint,
    }
    return {name: text for name, text in parts.items() if text}


def _where(error: FtrayError) -> str:
    place = "" if error.file is None else error.file if error.line is None else f"{error.file}:{error.line}"
    return " ".join(part for part in (place, f"({error.path})" if place and error.path else error.path or "") if part)


def _shown(value: Any) -> str:
    """Return a value as people write it, cut to what fits."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        text = ", ".join(str(item) for item in value)
    elif isinstance(value, dict) and all(isinstance(item, str | int | float) for item in value.values()):
        text = ", ".join(f"{key}: {item}" for key, item in value.items())
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} …"
