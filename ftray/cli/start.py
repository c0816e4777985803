"""The commands a newcomer meets: `quickstart`, `init`, `doctor`, `schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ftray.cli.options import Json, Quiet, Storage
from ftray.cli.outcome import Outcome
from ftray.cli.process import interruptible, quieten_libraries
from ftray.errors import InputError

Data = Annotated[Path, typer.Argument(metavar="DATA", help="A file of training examples.", show_default=False)]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Base model: a local folder or a Hugging Face id."),
]
JobOutput = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The job file to write.")]
TestData = Annotated[
    Path | None, typer.Option("--test", metavar="FILE", help="Held-out examples, read like DATA.", show_default=False)
]
YOUR_DATA = "ftray init your_rows.jsonl --model Qwen/Qwen2.5-0.5B-Instruct"
YOUR_JOB = "ftray check job.yaml, ftray train job.yaml"
STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def quickstart(storage: Storage = None, quiet: Quiet = False, json: Json = False) -> Outcome:
    """See the whole story offline in minutes: make a small model and a task, train, compare, sweep, report, serve."""
    quieten_libraries()
    from ftray.display import open_display
    from ftray.runs import storage_place

    place = storage_place(storage)
    if place.url is not None:
        raise InputError(
            "the quickstart makes a base and data of its own, in a folder of this machine",
            kind="bad_value",
            given=place.url,
            allowed="a folder",
            hint="Name one: ftray quickstart --storage DIR.",
            path="storage",
        )
    with interruptible(), open_display(quiet=quiet, metric="exact_match") as display:
        from ftray.quickstart.run import document, then_serve, then_sweep, train_first

        told = train_first(place.folder, say=display.say, display=display, on_plan=display.on_plan)
    from ftray.sweep.leaderboard import open_leaderboard

    with interruptible(), open_leaderboard(quiet=quiet, metric="exact_match") as board:
        campaign = then_sweep(told, display=board)
    with interruptible():
        served = then_serve(told, say=lambda text: None if quiet or json else typer.echo(f"{text} ...", err=True))
    record = document(told, campaign, served)

    def show(console: Any) -> None:
        from ftray.summary import show_pairs, show_result
        from ftray.sweep_summary import show_sweep

        show_result(record["result"], console, command="ftray quickstart")
        show_sweep(campaign, console, command=f"ftray sweep {told.job_file}")
        show_pairs(
            {
                "asked": served["asked"],
                "the base": served["base"].strip(),
                "the adapter": f"{served['tuned'].strip()} (right: {served['expected']})",
                "took": f"{record['seconds']:.0f} s",
                "your data": YOUR_DATA,
                "then": YOUR_JOB,
                "serve it": f"ftray serve {told.job_file}",
            },
            console,
        )

    return Outcome(document=record, show=show, is_answer=False)


def init(
    data: Data,
    model: Model = None,
    test: TestData = None,
    output: JobOutput = Path("job.yaml"),
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Write a commented job file for a data file, and say what was guessed."""
    quieten_libraries()
    from ftray.initialise import write_job

    notes = write_job(data, model=model, output=output, test=test)

    def show(console: Any) -> None:
        for note in notes:
            console.print(note, markup=False)
        console.print(f"Next: ftray check {output}", markup=False, soft_wrap=True)

    document = {"schema": "ftray/init/1", "job": str(output.resolve()), "notes": notes}
    return Outcome(document=document, show=show, is_answer=False)


def doctor(storage: Storage = None, quiet: Quiet = False, json: Json = False) -> Outcome:
    """Look at this machine: what is there, what is missing, and what that costs."""
    quieten_libraries()
    from ftray.doctor import run_checks
    from ftray.runs import storage_place

    checks = run_checks(storage_place(storage))

    def show(console: Any) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for one in checks:
            status = one["status"]
            table.add_row(Text(status, style=STYLES[status]), Text(one["name"]), Text(one["detail"], overflow="fold"))
        console.print(table)

    failed = any(one["status"] == "fail" for one in checks)
    return Outcome(document={"checks": list(checks)}, show=show, exit_code=1 if failed else 0)


def schema(storage: Storage = None, quiet: Quiet = False, json: Json = False) -> Outcome:
    """Print the JSON Schema of a job file: every key with its type, default and meaning."""
    from ftray.job import Job

    document = Job.model_json_schema()
    return Outcome(document=document, show=lambda console: console.print_json(data=document, highlight=False))
