"""Jobs with a space, and the trials they make, without any data or model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftray.job import Job, LoadedJob, resolve
from ftray.sweep.configurations import Configurations
from ftray.sweep.space import resolve_space
from ftray.train.plan import DataCounts, Machine

ROWS = 160
PER_RANK = 1000


def job(space: dict[str, Any] | None = None, *, sweep: dict[str, Any] | None = None, **sections: Any) -> Job:
    """Return a resolved job that searches `space`."""
    content = {
        "name": "tiny",
        "model": "base",
        "data": {"train": {"path": "train.jsonl", "prompt": "{q}", "completion": "{a}"}},
        "compute": {"workers": 0},
        "sweep": {"space": space, **(sweep or {})},
        **sections,
    }
    return resolve(Job.model_validate(content), Path("/nowhere"), None)


def configurations(
    space: dict[str, Any] | None, *, rows: int = ROWS, sweep: dict[str, Any] | None = None, **sections: Any
) -> Configurations:
    """Return the trials of a job that searches `space` on so many rows, in batches of 16."""
    made = job(space, sweep=sweep, **sections)
    counts = DataCounts(
        train_rows=rows, train_tokens=rows * 8, train_labels=rows, longest=16, validation_rows=40, test_rows=0
    )
    return Configurations(
        loaded=LoadedJob(job=made, base=Path("/nowhere")),
        space=resolve_space(made),
        data=counts,
        machine=Machine(has_gpu=False, has_bf16=True),
        max_length=64,
        trained_parameters=PER_RANK * made.method.rank,
    )
