"""Commands that read what runs left: `runs` and `report`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ftray.cli.options import Json, Quiet, Storage
from ftray.cli.outcome import Outcome

Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run folder, or a run's name or id in the storage.", show_default=False),
]


def runs(storage: Storage = None, quiet: Quiet = False, json: Json = False) -> Outcome:
    """List the runs, newest first."""
    from ftray.runs import list_runs, storage_folder

    place = storage_folder(storage)
    records = list_runs(place)

    def show(console: Any) -> None:
        from ftray.summary import show_runs

        show_runs(records, console, storage=place)

    return Outcome(document={"runs": records}, show=show)


def report(run: Run, storage: Storage = None, quiet: Quiet = False, json: Json = False) -> Outcome:
    """Write a run's report.html and diagnosis.json again from its records, and say where they are."""
    from ftray.report.render import render_run
    from ftray.runs import find_run, storage_folder

    directory = find_run(run, storage_folder(storage))
    render_run(directory)
    document = {
        "schema": "ftray/report/1",
        "run": str(directory.root),
        "report": str(directory.report),
        "diagnosis": str(directory.diagnosis),
    }
    return Outcome(
        document=document, show=lambda console: console.print(document["report"], markup=False, soft_wrap=True)
    )
