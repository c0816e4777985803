"""A folder with a small base and rows that can be learned in seconds, and a job over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftray.job import LoadedJob, load_job
from ftray.quickstart.pretrain import tiny_base

COLOURS = {"frog": "green", "sun": "yellow", "rose": "red", "sea": "blue"}


def load_world(folder: Path, **sections: Any) -> LoadedJob:
    """Write base, rows and job into the folder; a thing's name decides its colour, however one asks."""
    if not (folder / "base").exists():
        tiny_base(folder / "base", seed=0)
    rows = [
        {"question": f"What colour has {which} {thing} {when}?", "colour": colour}
        for thing, colour in COLOURS.items()
        for which in ("the", "my", "this", "that", "her")
        for when in ("now", "today", "here", "at night")
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job: dict[str, Any] = {
        "name": "colours",
        "model": str(folder / "base"),
        "data": {
            "train": {"path": str(folder / "rows.jsonl"), "prompt": "{question}", "completion": "{colour}"},
            "validation": 0.2,
        },
        "method": {"kind": "full"},
        "train": {"learning_rate": 5e-3, "max_steps": 12, "batch_size": 8, "warmup": 1, "log_every": 1},
        "evaluate": {"task": {"max_new_tokens": 4}},
        "storage": str(folder / "runs"),
        "tracking": [],
    }
    for section, values in sections.items():
        job[section] = {**job.get(section, {}), **values} if isinstance(values, dict) else values
    (folder / "job.yaml").write_text(json.dumps(job))
    return load_job(folder / "job.yaml")
