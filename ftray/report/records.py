"""What a run left on disk, as the report reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ftray.artifacts import RunDirectory, read_json, read_lines
from ftray.errors import InputError
from ftray.tracking import current_lines

FINISHED = ("completed", "early_stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The records of a run. Evaluation and selection count when the run finished; else they are an earlier try's."""

    job: dict[str, Any]
    plan: dict[str, Any] | None
    audit: dict[str, Any] | None
    result: dict[str, Any] | None
    lines: list[dict[str, Any]]
    selection: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    predictions: list[dict[str, Any]]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl of one kind."""
        return [line for line in self.lines if line["kind"] == kind]

    def per_step(self, listed: tuple[str, ...], single: str) -> dict[int, float]:
        """Return every step's number, by the first of the lists a line has; else (older versions) that of its own step.

        A line's list holds the steps since the line before, its own last.
        """
        numbers: dict[int, float] = {}
        for line in self.of_kind("step"):
            values = next((line[key] for key in listed if line.get(key)), [line.get(single)])
            first = int(line["step"]) - len(values) + 1
            numbers |= {first + index: value for index, value in enumerate(values) if value is not None}
        return dict(sorted(numbers.items()))

    @property
    def last_step(self) -> int:
        """The last step anything was recorded at."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def task(self) -> dict[str, Any] | None:
        """The evaluation that the verdict is about."""
        if self.evaluation is None:
            return None
        (task,) = [task for task in self.evaluation["tasks"] if task["role"] == "task"]
        return dict(task)

    @property
    def metric(self) -> str:
        """The metric that chooses the checkpoint."""
        return str(self.job["job"]["evaluate"]["task"]["metric"])


def read_records(run: RunDirectory) -> Records:
    """Read what is there; only job.json has to be."""
    if not run.job.exists():
        raise InputError(
            f"{run.root} is not a run: it has no job.json",
            kind="not_a_run",
            given=str(run.root),
            allowed="a folder that `ftray train` made",
            hint="`ftray runs` lists the runs there are.",
        )
    result = read_json(run.result) if run.result.exists() else None
    finished = result is not None and result["status"] in FINISHED
    return Records(
        job=read_json(run.job),
        plan=read_json(run.plan) if run.plan.exists() else None,
        audit=read_json(run.audit) if run.audit.exists() else None,
        result=result,
        lines=current_lines(run.metrics),
        selection=read_json(run.selection) if finished and run.selection.exists() else None,
        evaluation=read_json(run.evaluation) if finished and run.evaluation.exists() else None,
        predictions=read_lines(run.predictions) if finished else [],
    )
