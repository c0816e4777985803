"""`ftray experiment`: begin, watch, re-weight and end A/B experiments of a running endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftray.artifacts import write_text
from ftray.cli.group import command_group
from ftray.cli.options import Json, Quiet, Storage
from ftray.cli.outcome import Outcome
from ftray.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ftray.serve.client import Endpoint

Name = Annotated[str, typer.Argument(metavar="NAME", help="The experiment's name.", show_default=False)]
Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Address of the endpoint; else FTRAY_URL, else port 8000 here."),
]
Key = Annotated[str | None, typer.Option("--key", metavar="KEY", help="API key with admin scope; else FTRAY_API_KEY.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change the experiment, e.g. include=0.1. Repeatable."),
]

experiment = command_group("A/B experiments of a running endpoint: begin, watch, re-weight, end.")


def _endpoint(url: str | None, key: str | None) -> Endpoint:
    from ftray.serve.client import Endpoint

    return Endpoint(url, key=key)


@experiment.command()
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An experiment (YAML or JSON).", show_default=False)],
    set: Sets = None,
    url: Url = None,
    key: Key = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Begin an experiment: which models answer whose requests, and when one of them has won."""
    from ftray.jobfile import apply_sets, read_yaml, validate
    from ftray.serve.experiment.spec import ExperimentSpec

    content, lines = read_yaml(file)
    apply_sets(content, set or [])
    spec = validate(ExperimentSpec, content, file=str(file), lines=lines)
    with _endpoint(url, key) as endpoint:
        record = endpoint.post("/v1/experiments", spec.model_dump(mode="json"))

    def show(console: Console) -> None:
        console.print(f"{record['name']} runs: requests name it as exp:{record['name']}", markup=False)
        console.print(f"ftray experiment report {record['name']} says how it stands.", markup=False)

    return Outcome(document=record, show=show, is_answer=False)


@experiment.command("list")
def list_experiments(
    url: Url = None, key: Key = None, storage: Storage = None, quiet: Quiet = False, json: Json = False
) -> Outcome:
    """List the experiments of an endpoint."""
    with _endpoint(url, key) as endpoint:
        record = endpoint.get("/v1/experiments")

    def show(console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in ("name", "status", "arms", "since"):
            table.add_column(name)
        for one in record["data"]:
            table.add_row(one["name"], one["status"], ", ".join(arm["name"] for arm in one["arms"]), one["created_at"])
        console.print(table if record["data"] else "There are no experiments.")

    return Outcome(document=record, show=show)


@experiment.command()
def report(
    name: Name,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as a page, with its curves.")
    ] = None,
    url: Url = None,
    key: Key = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Say how an experiment stands. It may be asked as often as you like: looking changes nothing."""
    with _endpoint(url, key) as endpoint:
        record = endpoint.get(f"/v1/experiments/{name}/report")
        if html is not None:
            write_text(html, endpoint.text(f"/v1/experiments/{name}/report?format=html"))

    def show(console: Console) -> None:
        show_report(record, console)
        if html is not None:
            console.print(f"The page: {html}", markup=False, soft_wrap=True)

    return Outcome(document=record, show=show)


@experiment.command()
def weights(
    name: Name,
    arms: Annotated[
        list[str], typer.Argument(metavar="ARM=WEIGHT...", help="New weights, for all arms.", show_default=False)
    ],
    url: Url = None,
    key: Key = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Change how many of the units to come each arm gets. Nobody who has an arm moves."""
    given = {}
    for word in arms:
        arm, equals, weight = word.partition("=")
        try:
            given[arm] = float(weight)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(
                f"{word!r} is no weight of an arm",
                kind="bad_value",
                given=word,
                allowed="ARM=NUMBER for each arm",
                hint=f"For example: ftray experiment weights {name} base=1 tuned=3",
            )
    with _endpoint(url, key) as endpoint:
        record = endpoint.post(f"/v1/experiments/{name}/weights", {"weights": given})

    def show(console: Console) -> None:
        spelled = ", ".join(f"{arm} {weight:g}" for arm, weight in record["weights"].items())
        console.print(f"{name}: {spelled}", markup=False)

    return Outcome(document=record, show=show, is_answer=False)


@experiment.command()
def stop(
    name: Name, url: Url = None, key: Key = None, storage: Storage = None, quiet: Quiet = False, json: Json = False
) -> Outcome:
    """End an experiment: from now on its requests get the control, and no unit is added."""
    with _endpoint(url, key) as endpoint:
        record = endpoint.post(f"/v1/experiments/{name}/stop", {})

    def show(console: Console) -> None:
        console.print(f"{name} is {record['status']}: {record['reason']}", markup=False)

    return Outcome(document=record, show=show, is_answer=False)


def show_report(record: dict[str, Any], console: Console) -> None:
    """Print a report for people."""
    from rich.table import Table

    console.print(f"[bold]{record['experiment']}[/]: {record['status']}, {record['verdict'].replace('_', ' ')}")
    console.print(record["reason"], markup=False)
    table = Table(box=None, pad_edge=False)
    for title in ("arm", "model", "weight", "units", "outcomes", "estimate", "against control", "p", "e-value"):
        table.add_column(title, justify="left" if title in ("arm", "model") else "right")
    for arm in record["arms"]:
        table.add_row(
            arm["name"] + (" (control)" if arm["name"] == record["control"] else ""),
            arm["model"],
            f"{arm['weight']:.2f}",
            str(arm["units"]),
            str(arm["outcomes"]),
            _interval(arm["estimate"], arm["low"], arm["high"]),
            _interval(arm["difference"], arm["difference_low"], arm["difference_high"], sign=True),
            _number(arm["p_value"]),
            _number(arm["e_value"]),
        )
    console.print(table)
    ratio = record["sample_ratio"]
    if ratio["blocked"]:
        console.print(f"[red]The arms' units do not come in their shares (e = {ratio['e_value']:.3g}).[/]")
    for rail in record["guardrails"]:
        state = "[red]tripped[/]" if rail["tripped"] else "holds"
        console.print(
            f"guardrail {rail['metric']} of {rail['arm']}: {_interval(rail['estimate'], rail['low'], rail['high'])}, "
            f"{state}"
        )


def _interval(value: float | None, low: float | None, high: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    spelled = f"{value:+.3f}" if sign else f"{value:.3f}"
    return spelled if low is None or high is None else f"{spelled} ({low:.3f} to {high:.3f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
