"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="A job file (YAML).", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress and no summary; errors are still shown.")]
Storage = Annotated[
    str | None,
    typer.Option("--storage", metavar="DIR", help="Where runs are kept: stronger than FTRAY_STORAGE and the job."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change the job, e.g. train.learning_rate=2e-4. Repeatable."),
]
Smoke = Annotated[bool, typer.Option("--smoke", help="Take every tenth training row: the identical path, sooner.")]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", metavar="TEMPLATE", help='How columns ask, e.g. "Which intent is this? {text}".'),
]
Completion = Annotated[
    str | None, typer.Option("--completion", metavar="TEMPLATE", help='The expected answer, e.g. "{intent}".')
]
Format = Annotated[str | None, typer.Option("--format", help="The rows' format, where it is not to be recognised.")]
Gate = Annotated[bool, typer.Option("--gate", help="Exit 3 when it is done and the verdict is not `ship`.")]


def gated(verdict: str, *, gate: bool) -> int:
    """Return the exit code of finished work."""
    return 3 if gate and verdict != "ship" else 0
