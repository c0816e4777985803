"""`ftray serve`: base and adapters behind one address, until it is told to stop."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from ftray.cli.options import Json, Quiet, Sets, Storage
from ftray.cli.outcome import Outcome
from ftray.cli.process import interruptible, quieten_libraries
from ftray.cli.streams import answer_line
from ftray.errors import InputError

What = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[JOB|ADAPTER...]",
        help="A job file, whose base and `serve` section are taken; or registered adapters: NAME, NAME@DIGEST, an "
        "alias. Nothing: every registered adapter.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="The base, where it is not where it was in training.")
]
Host = Annotated[
    str | None, typer.Option("--host", help="Address to listen at; any but loopback needs API keys (serve.keys_file).")
]
Port = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port to listen at.")]
Keys = Annotated[
    Path | None, typer.Option("--keys", metavar="FILE", help="File of API keys (ftray keys); else serve.keys_file.")
]
Only = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME", help="With a job file: serve these adapters. Repeatable."),
]


def serve(
    what: What = None,
    adapter: Only = None,
    model: Model = None,
    host: Host = None,
    port: Port = None,
    keys: Keys = None,
    set: Sets = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Serve base and adapters behind an OpenAI-compatible API, with A/B experiments, until Ctrl-C or SIGTERM."""
    quieten_libraries()
    from ftray.serve.api.keys import require_safe_binding
    from ftray.serve.app import with_config
    from ftray.serve.plan import Serving
    from ftray.serve.run import running

    serving: Serving = _plan(what or [], adapter or [], model, set or [], storage)
    changes = {"host": host, "port": port, "keys_file": str(keys.resolve()) if keys else None}
    serving = with_config(serving, **{name: value for name, value in changes.items() if value is not None})
    require_safe_binding(serving.config)
    began: dict[str, Any] = {}
    # SIGTERM is how service managers stop a service: it has done its work then.
    with interruptible():
        try:
            with running(serving, say=lambda text: None if quiet or json else _say(text)) as endpoint:
                began = endpoint.ready_record()
                _announce(began, quiet=quiet, json=json)
                threading.Event().wait()
        except KeyboardInterrupt:
            if not began:
                raise

    def show(console: Any) -> None:
        console.print("Every answer under way has ended; the endpoint is closed.")

    document = {"event": "stopped", "url": began["url"]}
    return Outcome(document=document, show=show, is_answer=False, is_line=True)


def _plan(what: list[str], only: list[str], model: str | None, sets: list[str], storage: str | None) -> Any:
    """Return what is to be served. Raises InputError for what cannot be."""
    from ftray.endpoint import ServeConfig
    from ftray.runs import storage_place
    from ftray.serve.plan import serving_of_adapters, serving_of_job

    files = [word for word in what if word.endswith((".yaml", ".yml")) or Path(word).is_file()]
    if files and len(what) > 1:
        raise InputError(
            "a job file is served alone",
            kind="usage",
            given=what,
            allowed="one job file, or names of adapters",
            hint=f"Name the adapters with --adapter: ftray serve {files[0]} --adapter NAME",
        )
    if files:
        from ftray.job import load_job

        sets = [*sets, *([f"model={model}"] if model else [])]
        loaded = load_job(Path(files[0]), sets=sets, storage=storage)
        loaded.place.require(writes=False)
        serving = serving_of_job(loaded, adapters=only)
    else:
        if sets or only:
            raise InputError(
                "--set and --adapter go with a job file",
                kind="usage",
                given=[*sets, *only],
                allowed="a job file before them",
                hint="Name adapters without --adapter, or give the job file first.",
            )
        place = storage_place(storage)
        place.require(writes=False)
        serving = serving_of_adapters(what, model=model, config=ServeConfig(), place=place)
    return serving


def _say(text: str) -> None:
    typer.echo(f"{text} ...", err=True)


def _announce(record: dict[str, Any], *, quiet: bool, json: bool) -> None:
    if json:
        answer_line(record)
        return
    if quiet:
        return
    typer.echo(f"Ready at {record['url']}")
    for name in record["models"]:
        typer.echo(f"  {name}")
    typer.echo(
        f"Ask it: curl {record['url']}/v1/chat/completions -H 'content-type: application/json' -d "
        f'\'{{"model": "{record["models"][-1]}", "messages": [{{"role": "user", "content": "..."}}]}}\''
    )
