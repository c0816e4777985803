"""What every page of a report is made with: the templates, their words for numbers, and its first lines.

A page loads nothing and runs nothing (its content security policy says so); the same records give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ftray.report import wording
from ftray.report.wording import Tone

TEMPLATES = Path(__file__).parent
FILTERS = (
    wording.value, wording.change, wording.interval, wording.change_interval, wording.plain, wording.count,
    wording.p_value, wording.duration, wording.size, wording.moment, wording.excerpt, wording.words, wording.metric,
    wording.command, wording.setting, wording.forgotten,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The first thing a reader sees."""

    eyebrow: str
    label: str
    tone: Tone
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One large number."""

    what: str
    number: str
    note: str = ""


def render_page(template: str, *, styles: tuple[str, ...], **values: Any) -> str:
    """Return the page that a template makes of `values`, with these style sheets in it."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({word.__name__: word for word in FILTERS})
    css = "".join((TEMPLATES / style).read_text(encoding="utf-8") for style in styles)
    return environment.get_template(template).render(css=Markup(css), **values)
