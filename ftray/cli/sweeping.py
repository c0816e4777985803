"""The command that searches: `sweep`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftray.artifacts import read_json
from ftray.cli.options import Gate, JobFile, Json, Quiet, Sets, Smoke, Storage
from ftray.cli.outcome import Outcome
from ftray.cli.process import interruptible, quieten_libraries
from ftray.cli.training import Attempt, ExpectRunId, Fresh, new_attempt
from ftray.errors import InputError, Interrupted

if TYPE_CHECKING:
    from ftray.job import LoadedJob

ENDS = {"completed": 0, "budget": 0, "failed": 1, "interrupted": Interrupted.exit_code}
"""Exit code of each status of sweep.json, the verdict aside."""
MODES = ("shared", "trainers")
ForceMode = Annotated[
    str | None,
    typer.Option(
        "--force-mode",
        metavar="MODE",
        help="shared: many trials on one copy of the base. trainers: a Ray Train run for each. Default: what fits.",
    ),
]


def sweep(
    job: JobFile,
    sets: Sets = None,
    smoke: Smoke = False,
    gate: Gate = False,
    fresh: Fresh = False,
    attempt: Attempt = None,
    force_mode: ForceMode = None,
    expect_run_id: ExpectRunId = None,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Search rank, alpha, learning rate, epochs and more by held-out accuracy; compare the winner with the default.

    The same job again is the same campaign: it goes on with the trials that have not ended, or prints what it has.
    """
    from ftray.job import load_job

    quieten_libraries()
    if force_mode is not None and force_mode not in MODES:
        raise InputError(
            f"--force-mode {force_mode} is no mode",
            kind="bad_value",
            given=force_mode,
            allowed=list(MODES),
            hint="Leave it out to take what is possible.",
        )
    salt = new_attempt() if fresh else attempt
    if expect_run_id is not None:
        from ftray.submit.arrival import arrive, require_identity

        job = arrive(job)
    loaded = load_job(job, sets=sets or (), storage=storage, smoke=smoke, attempt_salt=salt)
    if expect_run_id is not None:
        from ftray.sweep.prepare import sweep_id_of

        require_identity(sweep_id_of(loaded), expect_run_id)
    record = _search(loaded, quiet=quiet, forced=force_mode)

    def show(console: Any) -> None:
        from ftray.sweep_summary import show_sweep

        show_sweep(record, console, command=_command(job, sets or [], loaded, storage, force_mode))

    failed = gate and record["verdict"]["decision"] != "ship"
    code = ENDS[record["status"]] or (3 if failed else 0)
    return Outcome(document=record, show=show, exit_code=code, is_answer=False)


def _command(job: Path, sets: list[str], loaded: LoadedJob, storage: str | None, forced: str | None) -> str:
    """Return the command that goes on with this campaign."""
    words = ["ftray", "sweep", str(job)]
    for setting in sets:
        words += ["--set", setting]
    words += ["--smoke"] if loaded.smoke else []
    words += ["--attempt", loaded.attempt_salt] if loaded.attempt_salt else []
    words += ["--force-mode", forced] if forced else []
    words += ["--storage", storage] if storage else []
    return shlex.join(words)


def _search(loaded: LoadedJob, *, quiet: bool, forced: str | None) -> dict[str, Any]:
    """Return sweep.json, also of a campaign that was interrupted after it had started."""
    from ftray.sweep.leaderboard import open_leaderboard

    with interruptible(), open_leaderboard(quiet=quiet, metric=loaded.job.evaluate.task.metric) as board:
        from ftray.sweep.prepare import sweep_directory, sweep_id_of
        from ftray.sweep.run import sweep as run_sweep

        try:
            return run_sweep(loaded, display=board, forced=forced)
        except Interrupted:
            directory = sweep_directory(loaded, sweep_id_of(loaded))
            if not directory.sweep.exists():
                raise
            record: dict[str, Any] = read_json(directory.sweep)
            return record
