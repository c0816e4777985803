"""The runs and campaigns of a storage folder: listed, and found by name, id or folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ftray.artifacts import RunDirectory, is_held, read_json, timestamp
from ftray.campaign import SweepDirectory
from ftray.errors import InputError, nearest
from ftray.storage.lease import is_leased
from ftray.storage.mirror import DRIVER, is_brief
from ftray.storage.place import Place, is_url, open_place

DEFAULT_STORAGE = "./runs"
JOB = "/job.json"
SHORTEST_ID = 4
"""Characters of a run id that are enough to name it."""


def storage_place(flag: str | None) -> Place:
    """Return where runs are kept: the flag, else FTRAY_STORAGE, else ./runs."""
    return open_place(flag or os.environ.get("FTRAY_STORAGE") or DEFAULT_STORAGE)


def storage_folder(flag: str | None) -> Path:
    """Return the storage folder: the flag, else FTRAY_STORAGE, else ./runs; of a URL, the working copy of it.

    What lists its runs is fetched. Raises InputError `bad_store` where there is no such store.
    """
    given = flag or os.environ.get("FTRAY_STORAGE") or DEFAULT_STORAGE
    place = open_place(given)
    if place.url is None:
        return Path(given).expanduser()
    place.require(writes=False)
    fetch_list(place)
    return place.folder


def fetch_list(place: Place) -> None:
    """Fetch what lists the runs and campaigns of a store; what is there no more goes from the working copy, too."""
    there = {name.split("/")[0] for name in place.objects().find() if name.count("/") == 1 and name.endswith(JOB)}
    for folder in _folders(place.folder):
        if folder.name not in there and not is_held(folder / ".driver.lock"):
            shutil.rmtree(folder)
    for name in sorted(there):
        place.mirror(place.folder / name).fetch(is_brief, as_reader=True)


def list_runs(storage: Path) -> list[dict[str, Any]]:
    """Return what `ftray runs` says of every run, the newest first. No folder, no runs; campaigns are none."""
    runs = [_described(RunDirectory(folder)) for folder in _folders(storage) if not SweepDirectory(folder).is_there]
    return sorted(runs, key=lambda run: (run["updated_at"], run["path"]), reverse=True)


def _folders(storage: Path) -> list[Path]:
    if not storage.is_dir():
        return []
    return sorted(folder for folder in storage.iterdir() if (folder / "job.json").is_file())


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
    running = is_held(run.driver_lock) or is_leased(run.root / f"{DRIVER}-lease")
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
    found = find_work(text, storage, campaigns=False)
    assert isinstance(found, RunDirectory)
    return found


def find_work(text: str, storage: Path, *, campaigns: bool = True) -> RunDirectory | SweepDirectory:
    """Return the run or campaign that `text` names, as `find_run` takes it; a campaign's name is its job's and -sweep.

    Raises InputError `missing_run` or `ambiguous_run`.
    """
    if is_url(text):
        text = text.rstrip("/").rpartition("/")[2]
    known = [_Named(Path(run["path"]), run["name"], run["run_id"]) for run in list_runs(storage)]
    sweeps = [_campaign(folder) for folder in _folders(storage) if SweepDirectory(folder).is_there]
    folder = Path(text).expanduser()
    if (folder / "job.json").is_file():
        found = [_Named(folder.resolve(), "", "")]
    else:
        found = [one for one in [*known, *sweeps] if one.answers_to(text)]
    if len(found) > 1:
        raise InputError(
            f"{len(found)} folders in {storage} answer to {text!r}",
            kind="ambiguous_run",
            given=text,
            allowed=[one.folder.name for one in found],
            hint="Name one of these folders.",
        )
    if not found:
        raise _missing(text, storage, [*known, *sweeps] if campaigns else known)
    (one,) = found
    sweep = SweepDirectory(one.folder)
    if not sweep.is_there:
        return RunDirectory(one.folder)
    if not campaigns:
        raise InputError(
            f"{one.folder} is a campaign, not a run",
            kind="missing_run",
            given=text,
            allowed="a run folder, or the name or id of a run",
            hint=f"`ftray report {text}` writes its page, which says where its adapters are.",
        )
    return sweep


@dataclass(frozen=True, slots=True)
class _Named:
    """A run or a campaign, and what it answers to."""

    folder: Path
    name: str
    identity: str

    def answers_to(self, text: str) -> bool:
        id_start = text.removeprefix(f"{self.name}-")
        return text == self.name or (len(id_start) >= SHORTEST_ID and self.identity.startswith(id_start))


def _campaign(folder: Path) -> _Named:
    """Return how a campaign is named; a damaged one still has its folder's name."""
    try:
        job = read_json(folder / "job.json")
        return _Named(folder.resolve(), f"{job['job']['name']}-sweep", job["sweep_id"])
    except (InputError, KeyError, TypeError):
        return _Named(folder.resolve(), folder.name, "")


def _missing(text: str, storage: Path, known: Sequence[_Named]) -> InputError:
    folder = Path(text).expanduser()
    names = [one.folder.name for one in known]
    close = nearest(text, [*names, *(one.name for one in known)])
    return InputError(
        f"{folder} has no job.json: it is not a run folder" if folder.is_dir() else f"there is no run {text!r}",
        kind="missing_run",
        given=text,
        allowed=names or f"a run folder, or the name or id of a run in {storage} (which has none)",
        hint=f"Did you mean {close}?" if close else "ftray runs --storage DIR lists the runs of another folder.",
    )
