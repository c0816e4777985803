"""The runs of a storage folder: listed, and found by name, id or folder."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ftray.artifacts import RunDirectory, is_held, read_json, storage_place, timestamp
from ftray.errors import InputError, nearest

DEFAULT_STORAGE = "./runs"
SHORTEST_ID = 4
"""Characters of a run id that are enough to name it."""


def storage_folder(flag: str | None) -> Path:
    """Return the storage folder: the flag, else FTRAY_STORAGE, else ./runs."""
    return storage_place(flag or os.environ.get("FTRAY_STORAGE") or DEFAULT_STORAGE)


def list_runs(storage: Path) -> list[dict[str, Any]]:
    """Return what `ftray runs` says of every run, the newest first. No folder, no runs."""
    if not storage.is_dir():
        return []
    runs = [_described(RunDirectory(folder)) for folder in storage.iterdir() if (folder / "job.json").is_file()]
    return sorted(runs, key=lambda run: (run["updated_at"], run["path"]), reverse=True)


def _described(run: RunDirectory) -> dict[str, Any]:
    """Describe a run; one whose records are damaged must not hide the others."""
    try:
        return describe_run(run)
    except (InputError, KeyError, TypeError):
        return {
            "run_id": "",
            "name": run.root.name,
            "status": "damaged",
            "verdict": "none",
            "path": str(run.root.resolve()),
            "updated_at": timestamp(datetime.fromtimestamp(run.job.stat().st_mtime, UTC)),
            "smoke": False,
        }


def describe_run(run: RunDirectory) -> dict[str, Any]:
    """Return one run's line: `running` where a process holds it, else its result's status, else `interrupted`."""
    job = read_json(run.job)
    result = read_json(run.result) if run.result.exists() else None
    running = is_held(run.driver_lock)
    finished = result is not None and not running
    newest = max(path.stat().st_mtime for path in (run.job, run.metrics, run.result) if path.exists())
    return {
        "run_id": job["run_id"],
        "name": job["job"]["name"],
        "status": "running" if running else result["status"] if result else "interrupted",
        "verdict": result["verdict"] if result and finished else "none",
        "path": str(run.root.resolve()),
        "updated_at": timestamp(datetime.fromtimestamp(newest, UTC)),
        "smoke": job["smoke"],
    }


def find_run(text: str, storage: Path) -> RunDirectory:
    """Return the run that `text` names: a folder, or a folder name, run id (four characters are enough) or job name.

    Raises InputError `missing_run` or `ambiguous_run`.
    """
    folder = Path(text).expanduser()
    if (folder / "job.json").is_file():
        return RunDirectory(folder.resolve())
    runs = list_runs(storage)
    found = [run for run in runs if _is_named(run, text)]
    if len(found) == 1:
        return RunDirectory(Path(found[0]["path"]))
    if found:
        raise InputError(
            f"{len(found)} runs in {storage} answer to {text!r}",
            kind="ambiguous_run",
            given=text,
            allowed=[Path(run["path"]).name for run in found],
            hint="Name one of these folders.",
        )
    names = [Path(run["path"]).name for run in runs]
    close = nearest(text, [*names, *(run["name"] for run in runs)])
    raise InputError(
        f"{folder} has no job.json: it is not a run folder" if folder.is_dir() else f"there is no run {text!r}",
        kind="missing_run",
        given=text,
        allowed=names or f"a run folder, or the name or id of a run in {storage} (which has none)",
        hint=f"Did you mean {close}?" if close else "ftray runs --storage DIR lists the runs of another folder.",
    )


def _is_named(run: dict[str, Any], text: str) -> bool:
    id_start = text.removeprefix(f"{run['name']}-")
    return text == run["name"] or (len(id_start) >= SHORTEST_ID and run["run_id"].startswith(id_start))
