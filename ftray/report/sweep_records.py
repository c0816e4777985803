"""What a campaign left on disk, as its page reads it: only job.json has to be there, a killed one has a page, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ftray.artifacts import read_json, read_lines
from ftray.campaign import Config, SweepDirectory, TrialResult
from ftray.errors import InputError
from ftray.evaluate.config import LOWER_IS_BETTER
from ftray.tracking import current_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRecords:
    """The records of a campaign."""

    job: dict[str, Any]
    audit: dict[str, Any] | None
    sweep: dict[str, Any] | None
    """None until the campaign ends."""
    trials: list[TrialResult]
    """The ledger: trials that have ended, in that order."""
    started: dict[str, Config]
    """Configurations of trials that began and have no line in the ledger."""
    lines: dict[str, list[dict[str, Any]]]
    """Evaluations on the validation rows, by trial, in step order."""

    @property
    def metric(self) -> str:
        """The job's task metric, which is the objective."""
        return str(self.job["job"]["evaluate"]["task"]["metric"])

    @property
    def higher_is_better(self) -> bool:
        """Which way the objective goes."""
        return self.metric not in LOWER_IS_BETTER

    @property
    def searched(self) -> list[TrialResult]:
        """The candidates that have ended."""
        return [trial for trial in self.trials if trial.role == "search"]

    def extra(self, key: str, default: Any = None) -> Any:
        """Return what sweep.json says beyond its fixed keys, which records of other versions may lack."""
        found = (self.sweep or {}).get(key)
        return default if found is None else found

    def ids(self, role: str) -> frozenset[str]:
        """Return the trials that sweep.json names `default` or `winner`, or as `finalists`."""
        named = (self.sweep or {}).get(role) or []
        found = {one["trial_id"] for one in (named if isinstance(named, list) else [named])}
        if role == "default":
            found |= {trial.trial_id for trial in self.searched if trial.is_default}
        return frozenset(found)


def read_sweep_records(directory: SweepDirectory) -> SweepRecords:
    """Read what is there. Raises InputError `not_a_run` for a folder that holds no campaign."""
    if not directory.job.exists():
        raise InputError(
            f"{directory.root} is not a campaign: it has no job.json",
            kind="not_a_run",
            given=str(directory.root),
            allowed="a folder that `ftray sweep` made",
        )
    trials = [TrialResult.from_record(record) for record in read_lines(directory.ledger)]
    ended = {trial.trial_id for trial in trials}
    folders = sorted(path for path in directory.trials.glob("*") if path.is_dir())
    started = {
        folder.name: read_json(directory.trial(folder.name).record)["config"]
        for folder in folders
        if folder.name not in ended and directory.trial(folder.name).record.exists()
    }
    lines = {folder.name: current_lines(directory.trial(folder.name).metrics) for folder in folders}
    return SweepRecords(
        job=read_json(directory.job),
        audit=read_json(directory.audit) if directory.audit.exists() else None,
        sweep=read_json(directory.sweep) if directory.sweep.exists() else None,
        trials=trials,
        started=started,
        lines={name: [line for line in found if line["kind"] == "evaluation"] for name, found in lines.items()},
    )
