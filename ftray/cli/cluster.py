"""The same jobs on a cluster: `submit`, `status`, `logs` and `stop`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftray.cli.complaint import complain
from ftray.cli.options import Gate, JobFile, Json, Quiet, Sets, Smoke, Storage
from ftray.cli.outcome import Outcome
from ftray.cli.process import quieten_libraries
from ftray.cli.streams import answer_line
from ftray.cli.training import Attempt, Fresh, new_attempt
from ftray.errors import InputError, Interrupted

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ftray.submit.client import Cluster
    from ftray.submit.request import Request
    from ftray.submit.submission import Submission
    from ftray.submit.submit import Submitted

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard, e.g. http://head:8265, or auto; else RAY_API_SERVER_ADDRESS or RAY_ADDRESS.",
    ),
]
Which = Annotated[
    str,
    typer.Argument(metavar="ID|JOB", help="A submission's or a run's id, a job's name or file.", show_default=False),
]
AnyOf = Annotated[
    str | None,
    typer.Argument(metavar="[ID|JOB]", help="A submission's or a run's id, a job's name or file.", show_default=False),
]
Mounted = Annotated[
    str | None,
    typer.Option("--storage", metavar="DIR|URL", help="Where this machine has the cluster's storage, if elsewhere."),
]
WIDTH = 200
"""Of tables that are read by programs."""
RESULT_ENDS = {"completed": 0, "early_stopped": 0, "budget": 0}
"""Exit code of finished work, the verdict aside."""


def submit(
    job: JobFile,
    address: Address = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Run the job's campaign: ftray sweep on the cluster.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it, and end with its exit code.")] = False,
    sets: Sets = None,
    smoke: Smoke = False,
    gate: Gate = False,
    fresh: Fresh = False,
    attempt: Attempt = None,
    force_mode: Annotated[
        str | None, typer.Option("--force-mode", metavar="MODE", help="For --sweep: shared or trainers.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME[=VALUE]", help="Environment of the job; everybody may see it. Repeatable."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="NAME", help="A variable of this environment that nobody sees. Repeatable."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="A note on the submission, for status. Repeatable."),
    ] = None,
    on_cluster: Annotated[
        list[str] | None,
        typer.Option(
            "--on-cluster",
            metavar="PATH[=CLUSTER_PATH]",
            help="What lies here lies on the cluster, too: it is not sent. Repeatable.",
        ),
    ] = None,
    no_ship: Annotated[
        bool, typer.Option("--no-ship", help="Use the ftray that the cluster has installed; it must be this version.")
    ] = False,
    python: Annotated[
        str | None,
        typer.Option("--python", metavar="PATH", help="Python of the cluster's nodes, where `python` is not the one."),
    ] = None,
    entrypoint_cpus: Annotated[
        float | None, typer.Option("--entrypoint-cpus", min=0, help="CPUs reserved for the command itself.")
    ] = None,
    entrypoint_gpus: Annotated[
        float | None, typer.Option("--entrypoint-gpus", min=0, help="GPUs reserved for the command itself.")
    ] = None,
    entrypoint_memory: Annotated[
        float | None, typer.Option("--entrypoint-memory", min=0, metavar="GIB", help="Memory reserved for it, in GiB.")
    ] = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Run a job on a Ray cluster, once however often it is submitted. Its nodes share the storage: a folder or URL."""
    quieten_libraries()
    from ftray.job import load_job
    from ftray.submit.parcel import Reach, parse_mapping
    from ftray.submit.request import (
        Request,
        parse_environment,
        parse_labels,
        parse_secrets,
        require_apart,
        require_shared_storage,
    )
    from ftray.submit.submit import submit as submit_request

    if force_mode is not None and not sweep:
        raise InputError(
            "--force-mode has no effect without --sweep", kind="usage", given=force_mode, hint="Add --sweep."
        )
    require_shared_storage(job, sets=sets or (), flag=storage, environment=os.environ)
    salt = new_attempt() if fresh else attempt
    loaded = load_job(job, sets=sets or (), storage=storage, smoke=smoke, attempt_salt=salt)
    loaded.place.require()
    environment, secrets = parse_environment(env or (), os.environ), parse_secrets(secret or (), os.environ)
    require_apart(environment, secrets)
    request = Request(
        loaded=loaded,
        kind="sweep" if sweep else "train",
        reach=Reach(
            storage=None if loaded.place.url else loaded.storage,
            mapped=[parse_mapping(text) for text in on_cluster or ()],
        ),
        environment=environment,
        secrets=secrets,
        labels=parse_labels(label or ()),
        gate=gate,
        forced_mode=force_mode,
        ships_ftray=not no_ship,
        python=python,
        resources=_resources(entrypoint_cpus, entrypoint_gpus, entrypoint_memory),
    )
    cluster = _cluster(address)
    say = _say(quiet=quiet)
    submitted = submit_request(request, cluster, say=say)
    document = _document(submitted, request, cluster)
    if submitted.state == "finished":
        return _finished(submitted, request, cluster, document)
    if not wait:
        return Outcome(document=document, show=lambda console: _show_submitted(document, submitted, console))
    assert submitted.submission_id is not None
    say(f"{submitted.submission_id}: {submitted.state}, {submitted.reason}. Ctrl-C detaches and stops nothing.")
    return _followed(submitted.submission_id, request, cluster, document, quiet=quiet)


def _cluster(address: str | None) -> Cluster:
    from ftray.submit.address import auth_token, job_server

    url, token = job_server(address, os.environ), auth_token(os.environ)
    from ftray.submit.client import Cluster

    return Cluster(url, token=token)


def _resources(cpus: float | None, gpus: float | None, memory: float | None) -> Any:
    from ftray.submit.client import EntrypointResources

    if cpus is None and gpus is None and memory is None:
        return None
    return EntrypointResources(cpus=cpus or 0, gpus=gpus or 0, memory=int((memory or 0) * 2**30))


def _say(*, quiet: bool) -> Any:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, quiet=quiet)
    return lambda text: console.print(Text(text), soft_wrap=True)


def _document(submitted: Submitted, request: Request, cluster: Cluster) -> dict[str, Any]:
    return {
        "schema": "ftray/submit/1",
        "run_id": submitted.run_id,
        "submission_id": submitted.submission_id,
        "state": submitted.state,
        "reason": submitted.reason,
        "address": cluster.address,
        "kind": request.kind,
        "path": request.loaded.place.spell(request.folder(submitted.run_id)),
    }


def _show_submitted(document: Mapping[str, Any], submitted: Submitted, console: Console) -> None:
    name = document["submission_id"]
    console.print(f"{name}  {document['state']}: {submitted.reason}", markup=False, soft_wrap=True)
    console.print(f"run folder: {document['path']}", markup=False, soft_wrap=True)
    console.print(f"ftray logs {name} --follow   ftray status {name}   ftray stop {name}", markup=False, soft_wrap=True)


def _finished(submitted: Submitted, request: Request, cluster: Cluster, document: dict[str, Any]) -> Outcome:
    """Report work that was finished before."""
    record = submitted.record
    if record is not None:
        code = _result_code(record, gate=request.gate)
        document |= {"exit_code": code, "result": {**record, "reused": True}}
    else:
        assert submitted.submission_id is not None
        code = cluster.submission(submitted.submission_id).code
        document |= {"exit_code": code}

    def show(console: Console) -> None:
        console.print(f"finished before: {submitted.reason}", markup=False)
        if record is None:
            console.print(f"ftray logs {submitted.submission_id} has its summary", markup=False)
        else:
            _show_record(record, request, console)

    return Outcome(document=document, show=show, exit_code=code)


def _result_code(record: Mapping[str, Any], *, gate: bool) -> int:
    verdict = record["verdict"]
    decision = verdict["decision"] if isinstance(verdict, dict) else verdict
    return RESULT_ENDS.get(record["status"], 1) or (3 if gate and decision != "ship" else 0)


def _show_record(record: Mapping[str, Any], request: Request, console: Console) -> None:
    command = f"ftray submit JOB --storage {request.loaded.place.spelling}"
    if request.kind == "sweep":
        from ftray.sweep_summary import show_sweep

        show_sweep(record, console, command=command)
    else:
        from ftray.summary import show_result

        show_result(record, console, command=command)


def _followed(
    submission_id: str, request: Request, cluster: Cluster, document: dict[str, Any], *, quiet: bool
) -> Outcome:
    """Follow a submission to its end, which is this command's."""
    from ftray.submit.follow import follow
    from ftray.submit.submit import forget_secrets

    ended = follow(cluster, submission_id, _say(quiet=quiet))
    forget_secrets(cluster, ended)
    record = request.finished_record(document["run_id"])
    document |= {"ended": ended.state, "exit_code": ended.code, "result": record}
    # Its log, which has just been shown, ends with its summary.
    return Outcome(
        document=document,
        show=lambda console: console.print(f"{submission_id} {ended.state}", markup=False),
        exit_code=ended.code,
        is_answer=False,
    )


def _submission(which: str, cluster: Cluster) -> Submission:
    """Return the submission that the user names; a job file names its job."""
    from ftray.submit.submission import find

    file = Path(which)
    name = None
    if file.suffix in (".yaml", ".yml") and file.is_file():
        from ftray.jobfile import read_yaml

        name = str(read_yaml(file)[0].get("name"))
    return find(which, cluster.submissions(), name=name)


def status(
    which: AnyOf = None,
    address: Address = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it again every two seconds, until Ctrl-C; on a terminal.")
    ] = False,
    storage: Mounted = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Show the cluster, its queue, and how far runs and campaigns are; with ID or JOB one of them in full."""
    quieten_libraries()
    from ftray.submit.show import render_all, render_one, watch_status
    from ftray.submit.standing import stand, stand_all

    cluster = _cluster(address)

    def look() -> dict[str, Any]:
        if which is None:
            return stand_all(cluster, mounted=storage)
        return stand(cluster, _submission(which, cluster), mounted=storage)

    def render(record: Mapping[str, Any], width: int) -> RenderableType:
        return render_all(record, width) if which is None else render_one(record)

    if watch:
        if json:
            raise InputError(
                "--watch is for people, --json for programs",
                kind="usage",
                given="--watch --json",
                allowed="one of them",
                hint="Leave out --watch, and ask as often as you like.",
            )
        watch_status(lambda width: render(look(), width))
    record = look()

    def show(console: Console) -> None:
        if not console.is_terminal:
            console.width = WIDTH
        console.print(render(record, console.width), soft_wrap=True)

    return Outcome(document=record, show=show)


def logs(
    which: Which,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until it ends; Ctrl-C detaches and stops nothing.")
    ] = False,
    address: Address = None,
    storage: Mounted = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Print what a submission has said; with --follow also what it will say. --follow --json prints JSON lines."""
    quieten_libraries()
    cluster = _cluster(address)
    submission = _submission(which, cluster)
    if not follow:
        text = cluster.log(submission.id)
        document = {
            "schema": "ftray/logs/1",
            "submission_id": submission.id,
            "run_id": submission.run_id,
            "state": submission.state,
            "lines": text.splitlines(),
        }
        return Outcome(document=document, show=lambda console: typer.echo(text.rstrip("\n")))
    from ftray.submit.follow import follow as follow_submission
    from ftray.submit.progress import said

    def say(line: str) -> None:
        if json:
            answer_line({"submission_id": submission.id, "line": line, **said(line)})
        else:
            typer.echo(line)

    try:
        ended = follow_submission(cluster, submission.id, say)
    except Interrupted as gone:
        if not json:
            raise
        complain(gone)
        line = {"event": "detached", "submission_id": submission.id}
        return Outcome(document=line, show=lambda console: None, exit_code=gone.exit_code, is_line=True)
    end = {"event": "ended", "submission_id": submission.id, "state": ended.state, "exit_code": ended.code}
    return Outcome(document=end, show=lambda console: None, is_answer=False, is_line=True)


def stop(
    which: Which, address: Address = None, storage: Mounted = None, quiet: Quiet = False, json: Json = False
) -> Outcome:
    """End a submission: it writes what it has, and submitting the job again goes on from there."""
    quieten_libraries()
    from ftray.submit.follow import stop as stop_submission
    from ftray.submit.standing import stand
    from ftray.submit.submit import forget_secrets

    cluster = _cluster(address)
    before = _submission(which, cluster)
    if before.is_live:
        _say(quiet=quiet)(f"Stopping {before.id}; it writes a result before it ends")
    ended = stop_submission(cluster, before)
    forget_secrets(cluster, ended)
    record = {**stand(cluster, ended, mounted=storage), "was_live": before.is_live}

    def show(console: Console) -> None:
        console.print(f"{ended.id} {'is ' if before.is_live else 'was already '}{ended.state}", markup=False)
        if ended.state == "stopped":
            console.print("ftray submit with the same job goes on from its last checkpoint", markup=False)

    return Outcome(document=record, show=show)
