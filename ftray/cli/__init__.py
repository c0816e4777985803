"""The command line. A command returns an `Outcome`; `CommandLine` prints it and turns every error into one screen.

Heavy imports stay inside commands: `ftray --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

from ftray import __version__
from ftray.cli.adapters import adapters
from ftray.cli.auditing import audit
from ftray.cli.cluster import logs, status, stop, submit
from ftray.cli.evaluation import evaluate
from ftray.cli.experiments import experiment
from ftray.cli.group import CommandLine
from ftray.cli.keys import keys
from ftray.cli.records import report, runs
from ftray.cli.serving import serve
from ftray.cli.start import doctor, init, quickstart, schema
from ftray.cli.sweeping import sweep
from ftray.cli.training import check, train

app = typer.Typer(
    cls=CommandLine,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ftray {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune a language model from one job file, and see whether it is better than its base.

    Try [bold]ftray quickstart[/], then [bold]ftray init DATA[/], [bold]ftray check JOB[/] and [bold]ftray train JOB[/].
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


app.command(rich_help_panel="Start")(quickstart)
app.command(rich_help_panel="Start")(init)
app.command(rich_help_panel="Start")(doctor)
app.command(rich_help_panel="Start")(schema)
app.command(rich_help_panel="Work")(audit)
app.command(rich_help_panel="Work")(check)
app.command(rich_help_panel="Work")(train)
app.command(rich_help_panel="Work")(sweep)
app.command(rich_help_panel="Work")(evaluate)
app.add_typer(adapters, name="adapters", rich_help_panel="Serve")
app.command(rich_help_panel="Serve")(serve)
app.add_typer(experiment, name="experiment", rich_help_panel="Serve")
app.add_typer(keys, name="keys", rich_help_panel="Serve")
app.command(rich_help_panel="Look")(runs)
app.command(rich_help_panel="Look")(report)
app.command(rich_help_panel="On a cluster")(submit)
app.command(rich_help_panel="On a cluster")(status)
app.command(rich_help_panel="On a cluster")(logs)
app.command(rich_help_panel="On a cluster")(stop)


def main() -> None:
    """Run `ftray` as a process."""
    if not sys.warnoptions:
        # Warnings of libraries are for their developers; PYTHONWARNINGS or -W brings them back.
        warnings.simplefilter("ignore")
    try:
        app()
    finally:
        if "--json" in sys.argv:
            # What libraries print while the process ends is not part of the document.
            sys.stdout.flush()
            os.dup2(2, 1)
