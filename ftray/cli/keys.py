"""`ftray keys`: who may use an endpoint, and for what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from ftray.cli.group import command_group
from ftray.cli.options import Json, Quiet, Storage
from ftray.cli.outcome import Outcome
from ftray.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ftray.serve.api.keys import Scope

FILE = "keys.json"
Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.", show_default=False)]
File = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="The file of keys (serve.keys_file); else keys.json in the storage."),
]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        metavar="SCOPE",
        help="infer (the default), feedback, metrics, or admin, which includes them all. Repeatable.",
    ),
]

keys = command_group("API keys of an endpoint: add, list, remove.")


def _file(file: Path | None, storage: str | None) -> Path:
    from ftray.runs import storage_place

    return file if file is not None else storage_place(storage).folder / FILE


def _scopes(given: list[str]) -> list[Scope]:
    from ftray.serve.api.keys import Scope

    known: tuple[Scope, ...] = get_args(Scope)
    for one in given:
        if one not in known:
            raise InputError(
                f"there is no scope {one!r}",
                kind="bad_value",
                given=one,
                allowed=list(known),
                hint="infer: models and answers. feedback: outcomes and preferences. admin: everything.",
            )
    return [one for one in known if one in given]


@keys.command()
def add(
    name: Name,
    scope: Scopes = None,
    file: File = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Make a key and print it, once: the file keeps its hash alone. A running endpoint takes it at once."""
    from ftray.serve.api.keys import add_key, key_record

    place = _file(file, storage)
    key, text = add_key(place, name=name, scopes=_scopes(scope or ["infer"]))

    def show(console: Console) -> None:
        console.print(text, markup=False, soft_wrap=True)
        console.print(
            f"The key of {key.name}, for {', '.join(key.scopes)}. It is shown this once; {place} has its hash.",
            markup=False,
            soft_wrap=True,
        )

    return Outcome(document={"schema": "ftray/key/1", **key_record(key), "key": text, "file": str(place)}, show=show)


@keys.command("list")
def list_keys(file: File = None, storage: Storage = None, quiet: Quiet = False, json: Json = False) -> Outcome:
    """List the keys by name; the keys themselves are nowhere."""
    from ftray.serve.api.keys import key_record, read_keys

    place = _file(file, storage)
    found = read_keys(place)

    def show(console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for title in ("name", "scopes", "since"):
            table.add_column(title)
        for key in found:
            table.add_row(key.name, ", ".join(key.scopes), key.created_at)
        console.print(table if found else f"{place} holds no keys.")

    return Outcome(document={"keys": [key_record(key) for key in found], "file": str(place)}, show=show)


@keys.command()
def remove(name: Name, file: File = None, storage: Storage = None, quiet: Quiet = False, json: Json = False) -> Outcome:
    """Revoke a key. A running endpoint refuses it from the next request on."""
    from ftray.serve.api.keys import key_record, remove_key

    place = _file(file, storage)
    key = remove_key(place, name=name)

    def show(console: Console) -> None:
        console.print(f"The key of {key.name} opens nothing any more.", markup=False)

    document = {"removed": key_record(key), "file": str(place)}
    return Outcome(document=document, show=show, is_answer=False)
