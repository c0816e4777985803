"""`ftray train` and `ftray check`."""

from __future__ import annotations

import secrets
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftray.artifacts import RunDirectory, read_json
from ftray.cli.options import Gate, JobFile, Json, Quiet, Sets, Smoke, Storage, gated
from ftray.cli.outcome import Outcome
from ftray.cli.process import interruptible, quieten_libraries
from ftray.errors import InputError, Interrupted

if TYPE_CHECKING:
    from ftray.job import LoadedJob
    from ftray.preflight import Prepared

Fresh = Annotated[
    bool, typer.Option("--fresh", help="Make a new run, even where this job has one; its attempt is recorded.")
]
Attempt = Annotated[
    str | None, typer.Option("--attempt", metavar="ID", help="Go on with the run that an earlier --fresh made.")
]
ExpectRunId = Annotated[
    str | None,
    typer.Option("--expect-run-id", hidden=True, help="Set by ftray submit: the id that what is read here must have."),
]
Decide = Annotated[
    bool,
    typer.Option("--decide", help="Also ask the base and run a smoke run, to say whether fine-tuning is worth it."),
]
Tau = Annotated[
    float | None,
    typer.Option("--tau", min=0, help="For --decide: the accuracy that an accelerator hour must bring (0.01)."),
]

ENDS = {"completed": 0, "early_stopped": 0, "failed": 1, "interrupted": Interrupted.exit_code}
"""Exit code of each status of result.json, the verdict aside."""


def train(
    job: JobFile,
    sets: Sets = None,
    smoke: Smoke = False,
    gate: Gate = False,
    fresh: Fresh = False,
    attempt: Attempt = None,
    expect_run_id: ExpectRunId = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Fine-tune: train, choose the best checkpoint, compare it with the base, write the run folder.

    The same job again is the same run: it goes on where it was, or prints the result it has.
    """
    from ftray.job import load_job, run_id_of

    quieten_libraries()
    salt = new_attempt() if fresh else attempt
    if expect_run_id is not None:
        from ftray.submit.arrival import arrive, require_identity

        job = arrive(job)
    loaded = load_job(job, sets=sets or (), storage=storage, smoke=smoke, attempt_salt=salt)
    if expect_run_id is not None:
        require_identity(run_id_of(loaded), expect_run_id)
    result = _fine_tune(loaded, quiet=quiet)

    def show(console: Any) -> None:
        from ftray.summary import show_result

        show_result(result, console, command=_command(job, sets or [], loaded, storage))

    code = ENDS[result["status"]] or gated(result["verdict"], gate=gate)
    return Outcome(document=result, show=show, exit_code=code, is_answer=False)


def _command(job: Path, sets: list[str], loaded: LoadedJob, storage: str | None) -> str:
    """Return the command that goes on with this run."""
    words = ["ftray", "train", str(job)]
    for setting in sets:
        words += ["--set", setting]
    words += ["--smoke"] if loaded.smoke else []
    words += ["--attempt", loaded.attempt_salt] if loaded.attempt_salt else []
    words += ["--storage", storage] if storage else []
    return shlex.join(words)


def _fine_tune(loaded: LoadedJob, *, quiet: bool) -> dict[str, Any]:
    """Return result.json, also of a run that was interrupted after it had started."""
    from ftray.display import open_display

    started: list[RunDirectory] = []
    with interruptible(), open_display(quiet=quiet, metric=loaded.job.evaluate.task.metric) as display:
        display.say("Checking the job, its data and its model")
        from ftray.finetune import finetune

        def on_plan(prepared: Prepared) -> None:
            started.append(prepared.run)
            display.on_plan(prepared)

        def on_sampling(done: int, total: int) -> None:
            if not done:
                display.say(f"Sampling {total} texts from the base to rehearse them")
            display.advance(done, total, "texts")

        try:
            return finetune(loaded, display=display, on_plan=on_plan, on_sampling=on_sampling, say=display.say)
        except Interrupted:
            if not started:
                raise
            result: dict[str, Any] = read_json(started[0].result)
            return result


def new_attempt() -> str:
    """Return what tells one --fresh run from the next."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def check(
    job: JobFile,
    sets: Sets = None,
    smoke: Smoke = False,
    decide: Decide = False,
    tau: Tau = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Say everything that can be known before anything is started: data, tokens, steps, memory, time."""
    from ftray.job import load_job

    quieten_libraries()
    loaded = load_job(job, sets=sets or (), storage=storage, smoke=smoke)
    from ftray.check import check_job, render_check

    if tau is not None and not decide:
        raise InputError("--tau has no effect without --decide", kind="usage", given=tau, hint="Add --decide.")
    record = check_job(loaded)
    if decide:
        record["decision"] = _decide(loaded, record, tau=tau, quiet=quiet)
    return Outcome(document=record, show=lambda console: render_check(record, console))


def _decide(loaded: LoadedJob, checked: dict[str, Any], *, tau: float | None, quiet: bool) -> dict[str, Any]:
    """Return the record of whether fine-tuning is worth it; runs the smoke run, or finds its result."""
    from ftray.decide import DEFAULT_TAU, decide, decision_record, measure
    from ftray.display import open_display

    with interruptible(), open_display(quiet=quiet, metric=loaded.job.evaluate.task.metric) as display:
        measured = measure(loaded, checked, display=display, on_plan=display.on_plan, say=display.say)
    return decision_record(measured, decide(measured, tau=DEFAULT_TAU if tau is None else tau))
