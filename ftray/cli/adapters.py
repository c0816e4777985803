"""`ftray adapters`: what is registered, where the aliases point, and how both change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftray.cli.adapter_views import show_adapter, show_adapters, show_alias, summary_of
from ftray.cli.group import command_group
from ftray.cli.options import Json, Quiet, Storage
from ftray.cli.outcome import Outcome
from ftray.cli.process import interruptible, quieten_libraries
from ftray.errors import InputError

if TYPE_CHECKING:
    from ftray.registry.names import Resolved
    from ftray.registry.registry import Registry

adapters = command_group("What is registered, where the aliases point, and how both change.")

Place = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="URL",
        help="A folder or an object store (s3://...): stronger than FTRAY_REGISTRY. Default: STORAGE/registry.",
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER", help="NAME (the newest), NAME@DIGEST (12 digits or more), or an alias.", show_default=False
    ),
]
Alias = Annotated[
    str, typer.Argument(metavar="ALIAS", help="champion, challenger, or any other name.", show_default=False)
]
Generation = Annotated[
    int | None,
    typer.Option(
        "--generation", min=0, metavar="N", help="Only if the alias still has this generation; 0: if there is none yet."
    ),
]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; kept with the alias.")]


def _open(storage: str | None, place: str | None) -> Registry:
    from ftray.registry.registry import open_registry
    from ftray.runs import storage_place

    runs = storage_place(storage)
    if place is None:
        runs.require(writes=False)
    return open_registry(runs.folder, place or runs.registry_url)


@adapters.command(name="list")
def list_adapters(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of this name only.", show_default=False)] = None,
    registry: Place = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """List adapters and models, the newest first, and the aliases."""
    opened = _open(storage, registry)
    aliases = opened.aliases()
    records = opened.list(name)
    if name is not None and not records:
        # Says what is near.
        opened.resolve(name)
    document = {
        "schema": "ftray/adapters/1",
        "registry": opened.place,
        "adapters": [summary_of(record, aliases) for record in records],
        "aliases": aliases,
    }
    return Outcome(document=document, show=lambda console: show_adapters(document, console))


@adapters.command()
def show(
    adapter: Model,
    verify: Annotated[
        bool, typer.Option("--verify", help="Fetch its files, compare them with its digest, and say where they are.")
    ] = False,
    registry: Place = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Show one adapter: where it comes from, how it was judged, how it is asked."""
    opened = _open(storage, registry)
    found = opened.resolve(adapter)
    document = {**found.record, "aliases": summary_of(found.record, opened.aliases())["aliases"]}
    if verify:
        document["folder"] = str(opened.files(found.name, found.digest).resolve())
    return Outcome(document=document, show=lambda console: show_adapter(document, console))


@adapters.command()
def promote(
    alias: Alias,
    adapter: Model,
    generation: Generation = None,
    reason: Reason = None,
    force: Annotated[
        str | None,
        typer.Option("--force", metavar="REASON", help="Promote without a passing verdict; the reason is kept."),
    ] = None,
    registry: Place = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Point an alias at an adapter whose verdict is `ship`. Of several at once, one wins; the others exit 1."""
    opened = _open(storage, registry)
    found = opened.resolve(adapter)
    moved = opened.promote(alias, found.name, found.digest, generation=generation, reason=reason, force=force)
    return Outcome(document=moved, show=lambda console: show_alias(moved, console), is_answer=False)


@adapters.command()
def rollback(
    alias: Alias,
    generation: Generation = None,
    reason: Reason = None,
    registry: Place = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Point an alias at what it pointed at before."""
    moved = _open(storage, registry).rollback(alias, generation=generation, reason=reason)
    return Outcome(document=moved, show=lambda console: show_alias(moved, console), is_answer=False)


@adapters.command()
def export(
    adapter: Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.", show_default=False)],
    registry: Place = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Copy an adapter's verified files and its model card: an ordinary PEFT folder, or a transformers one."""
    opened = _open(storage, registry)
    found = opened.resolve(adapter)
    written = opened.export(found.name, found.digest, folder.expanduser())
    document = {
        "schema": "ftray/export/1",
        "name": found.name,
        "digest": found.digest,
        "folder": str(written.resolve()),
        "files": sorted(path.name for path in written.iterdir()),
    }
    return Outcome(
        document=document, show=lambda console: console.print(document["folder"], markup=False, soft_wrap=True)
    )


@adapters.command(name="import")
def import_folder(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A PEFT adapter's folder.", show_default=False)],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What it is called here.", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Its base, where it is not the one it names.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="What adapter_model.safetensors must have.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            metavar="NAME|FILE",
            help="How chats are rendered, as data.template. Default: the tokenizer's own, where it has one.",
        ),
    ] = None,
    other_base_name: Annotated[
        bool, typer.Option("--other-base-name", help="Take --model although the adapter calls its base otherwise.")
    ] = False,
    max_rank: Annotated[int | None, typer.Option("--max-rank", min=1, help="Refuse larger ranks (256).")] = None,
    max_bytes: Annotated[int | None, typer.Option("--max-bytes", min=1, help="Refuse larger weights (4 GiB).")] = None,
    registry: Place = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Register a PEFT folder after checking it: safetensors only, no code, the right base, finite, and live."""
    quieten_libraries()
    opened = _open(storage, registry)
    from ftray.registry.importing import Limits, import_adapter

    asked = {"rank": max_rank, "weight_bytes": max_bytes}
    with interruptible():
        one = import_adapter(
            opened,
            folder.expanduser(),
            name=name,
            model=model,
            sha256=sha256,
            template=template,
            other_base_name=other_base_name,
            limits=Limits(**{key: value for key, value in asked.items() if value is not None}),
        )
    record = opened.get(one.name, one.digest)
    document = {**record, "is_new": one.is_new}
    return Outcome(document=document, show=lambda console: show_adapter(document, console), is_answer=False)


@adapters.command()
def delete(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="NAME@DIGEST, or NAME where there is one.", show_default=False)
    ],
    alias: Annotated[bool, typer.Option("--alias", help="Delete the alias of that name, and no adapter.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also where an alias points at it.")] = False,
    registry: Place = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Delete an adapter, or an alias. An adapter that an alias points at stays, unless forced."""
    opened = _open(storage, registry)
    if alias:
        gone = opened.delete_alias(adapter)
    else:
        found = _require_one(opened, opened.resolve(adapter), adapter)
        gone = opened.delete(found.name, found.digest, force=force)
    document = {
        "schema": "ftray/deleted/1",
        "deleted": "alias" if alias else gone["kind"],
        "alias": adapter if alias else None,
        "name": gone["name"],
        "digest": gone["digest"],
    }
    said = f"deleted the alias {adapter}" if alias else f"deleted {gone['name']}@{gone['digest']}"
    return Outcome(
        document=document, show=lambda console: console.print(said, markup=False, soft_wrap=True), is_answer=False
    )


def _require_one(registry: Registry, found: Resolved, given: str) -> Resolved:
    """Return what is to be deleted, where it has been said beyond doubt."""
    if found.via_alias is not None:
        raise InputError(
            f"{given!r} is an alias",
            kind="usage",
            given=given,
            allowed=found.spelling,
            hint=f"Name the adapter: ftray adapters delete {found.spelling}; or add --alias to delete the alias.",
        )
    versions = registry.list(found.name)
    if "@" not in given and len(versions) > 1:
        raise InputError(
            f"{len(versions)} adapters are called {given!r}",
            kind="ambiguous_name",
            given=given,
            allowed=[f"{one['name']}@{one['digest'][:12]}" for one in versions],
            hint="Say which, by its digest.",
        )
    return found
