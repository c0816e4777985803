"""The folder of a campaign and its ledger: one line for each trial that has ended, synced, never changed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ftray.artifacts import canonical_json_line, drop_torn_line, read_lines
from ftray.space import Value

State = Literal["completed", "pruned", "diverged", "failed", "budget"]
"""How a trial ended: by its own last step; stopped for falling behind or for not getting on; its validation loss ran
away or was no number; an error; the campaign's budget."""
Config = dict[str, Value]
"""A trial's configuration: the value of each field of the space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One evaluation of a trial on the validation rows."""

    step: int
    validation_accuracy: float
    """The objective: the job's task metric, whatever it is."""
    validation_loss: float
    """Nats per label."""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, name) for name in ("step", "validation_accuracy", "validation_loss")}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One line of trials.jsonl."""

    trial_id: str
    config: Config
    seed: int
    state: State
    reason: str
    prefix_of: str | None = None
    """The longer trial whose first steps these are: it trained them."""
    steps: int
    epochs: float
    best: Point | None
    """The best evaluation, whose checkpoint is kept; None where there was none before the end."""
    last: Point | None
    seconds: float
    """From its start to its end, waiting for its neighbours included."""
    tokens: int
    adapter: str | None
    """Folder of the best checkpoint's adapter (of the model, in a full fine-tune)."""
    is_default: bool = False
    role: Literal["search", "seed"] = "search"
    """`seed`: the winner trained again with another seed; no candidate."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What readers may use and none depends on."""

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        record = {name: getattr(self, name) for name in self.__slots__ if name != "extra"}
        points = {name: None if (point := record[name]) is None else point.to_record() for name in ("best", "last")}
        return {**self.extra, **record, **points}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> TrialResult:
        """Return the trial of a line of the ledger."""
        known = {name: value for name, value in record.items() if name in cls.__slots__ and name != "extra"}
        for name in ("best", "last"):
            known[name] = None if known[name] is None else Point(**_numbers(known[name]))
        extra = {name: value for name, value in record.items() if name not in cls.__slots__}
        return cls(**known, extra=extra)


def _numbers(point: dict[str, Any]) -> dict[str, Any]:
    """A loss that was not a number is null in JSON."""
    return {name: float("nan") if value is None else value for name, value in point.items()}


class Ledger:
    """trials.jsonl: append-only, each trial once; one that the budget ended gets another line when it has gone on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        drop_torn_line(path)
        self._known = {result.trial_id: result for result in self.results()}

    def results(self) -> list[TrialResult]:
        """Return the trials that have ended, in the order in which they did."""
        newest: dict[str, TrialResult] = {}
        for record in read_lines(self.path):
            newest.pop(record["trial_id"], None)
            newest[record["trial_id"]] = TrialResult.from_record(self._here(record))
        return list(newest.values())

    def _here(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a line whose adapter is the one beside this ledger, where another machine's copy of it wrote it."""
        adapter = SweepDirectory(self.path.parent).trial(record["trial_id"]).adapter
        return {**record, "adapter": str(adapter)} if record["adapter"] and adapter.is_dir() else record

    def __contains__(self, trial_id: str) -> bool:
        """Whether a trial has ended for good: a larger budget lets those go on that the budget ended."""
        known = self._known.get(trial_id)
        return known is not None and known.state != "budget"

    def append(self, result: TrialResult) -> None:
        """Write a trial's line and sync it; a trial that has ended keeps the one it has."""
        known = self._known.get(result.trial_id)
        is_same = known is not None and (known.state, known.steps) == (result.state, result.steps)
        if result.trial_id in self or is_same:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(canonical_json_line(result.to_record()))
            file.flush()
            os.fsync(file.fileno())
        self._known[result.trial_id] = result


@dataclass(frozen=True, slots=True)
class SweepDirectory:
    """The paths of one campaign."""

    root: Path

    @property
    def job(self) -> Path:
        return self.root / "job.json"

    @property
    def audit(self) -> Path:
        return self.root / "audit.json"

    @property
    def sweep(self) -> Path:
        return self.root / "sweep.json"

    @property
    def ledger(self) -> Path:
        return self.root / "trials.jsonl"

    @property
    def finals(self) -> Path:
        """What the finalists answered to the test rows: written once, so that they are asked once."""
        return self.root / "finals.json"

    @property
    def trials(self) -> Path:
        return self.root / "trials"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def driver_lock(self) -> Path:
        """Held by the process that runs the command."""
        return self.root / ".driver.lock"

    @property
    def is_there(self) -> bool:
        """Whether the folder is a campaign's: it has a folder of trials, which no run has, before anything else."""
        return self.trials.is_dir()

    def trial(self, trial_id: str) -> TrialDirectory:
        """Return the paths of one trial."""
        return TrialDirectory(self.trials / trial_id)


@dataclass(frozen=True, slots=True)
class TrialDirectory:
    """The paths of one trial."""

    root: Path

    @property
    def record(self) -> Path:
        """Its configuration, written before it starts."""
        return self.root / "trial.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"
