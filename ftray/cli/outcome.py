"""What a command has to say: a document for machines, a view for people, an exit code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a command that did its work."""

    document: dict[str, Any]
    """What --json prints."""
    show: Callable[[Console], None]
    """Prints the same for people, on standard output."""
    exit_code: int = 0
    is_answer: bool = True
    """Whether the view is what was asked for, so that --quiet prints it, too."""
    is_line: bool = False
    """Whether the document is the last one of several lines."""
