"""What the benchmarks share: a table for a terminal and for Markdown, a README's results, and the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

MARKERS = ("<!-- results -->\n", "<!-- /results -->")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One table, for a terminal or for Markdown."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def to_rich(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for index, name in enumerate(self.header):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        rule = "|---" + "|---:" * (len(self.header) - 1) + "|"
        lines = ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([f"**{self.title}**", "", "| " + " | ".join(self.header) + " |", rule, *lines])


def fill_readme(file: Path, body: str) -> None:
    """Put `body` between the markers of a README."""
    begin, end = MARKERS
    before, rest = file.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    file.write_text(f"{before}{begin}{body}\n{end}{after}", encoding="utf-8")


def describe_machine() -> dict[str, Any]:
    """Return what a benchmark's numbers depend on, without the machine's name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
