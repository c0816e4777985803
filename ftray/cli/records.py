"""Commands that read what runs left: `runs` and `report`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ftray.cli.options import Json, Quiet, Storage
from ftray.cli.outcome import Outcome

Work = Annotated[
    str,
    typer.Argument(
        metavar="RUN|SWEEP",
        help="A run's or a campaign's folder, or its name or id in the storage; NAME-sweep is a campaign's name.",
        show_default=False,
    ),
]


def runs(storage: Storage = None, quiet: Quiet = False, json: Json = False) -> Outcome:
    """List the runs, newest first."""
    from ftray.runs import list_runs, storage_folder, storage_place

    place = storage_folder(storage)
    records = list_runs(place)

    def show(console: Any) -> None:
        from ftray.summary import show_runs

        show_runs(records, console, storage=storage_place(storage).url or place)

    return Outcome(document={"runs": records}, show=show)


def report(work: Work, storage: Storage = None, quiet: Quiet = False, json: Json = False) -> Outcome:
    """Write a run's or a campaign's report.html again from its records, and say where it is."""
    from ftray.campaign import SweepDirectory
    from ftray.runs import find_work, storage_folder, storage_place
    from ftray.storage.mirror import is_record

    place = storage_place(storage)
    found = find_work(work, storage_folder(storage))
    mirror = place.mirror(found.root) if place.holds(found.root) else None
    if mirror is not None:
        mirror.fetch(is_record, as_reader=True)
    document = {"schema": "ftray/report/1", "report": str(found.report)}
    if isinstance(found, SweepDirectory):
        from ftray.report.sweep_render import render_sweep

        render_sweep(found)
        document["sweep"] = str(found.root)
    else:
        from ftray.report.render import render_run

        render_run(found)
        document |= {"run": str(found.root), "diagnosis": str(found.diagnosis)}
    if mirror is not None:
        mirror.publish("diagnosis.json", found.report.name)
    return Outcome(
        document=document, show=lambda console: console.print(document["report"], markup=False, soft_wrap=True)
    )
