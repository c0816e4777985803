"""`tiny`, the module that the rank processes of these tests import by its name, and `world`, a job to be learned."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ftray.artifacts import digest_of
from ftray.job import LoadedJob, load_job
from ftray.quickstart.pretrain import tiny_base

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Return the makers of tiny models, rows and plans."""
    spec = importlib.util.spec_from_file_location("tiny_training", HERE / "tiny_training.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class World:
    """A folder with a small base and rows that can be learned in seconds."""

    folder: Path

    def load(self, **sections: Any) -> LoadedJob:
        """Return the job of this world, its sections updated with these."""
        job: dict[str, Any] = {
            "name": "colours",
            "model": str(self.folder / "base"),
            "data": {
                "train": {"path": str(self.folder / "rows.jsonl"), "prompt": "{question}", "completion": "{colour}"},
                "validation": 0.2,
            },
            "method": {"kind": "full"},
            "train": {
                "learning_rate": 5e-3, "max_steps": 30, "batch_size": 8, "warmup": 2, "log_every": 1,
                "evaluate_every": 10, "checkpoint_every": 10, "early_stopping": None,
            },
            "evaluate": {"task": {"max_new_tokens": 4}},
            "compute": {"workers": 0},
            "tracking": [],
        }  # fmt: skip
        for section, values in sections.items():
            job[section] = {**job[section], **values} if isinstance(values, dict) else values
        file = self.folder / f"job-{digest_of(job)[:12]}.yaml"
        file.write_text(json.dumps(job))
        return load_job(file)


COLOURS = {"frog": "green", "sun": "yellow", "rose": "red", "sea": "blue"}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return a world in which a thing's name decides its colour, however one asks."""
    folder = tmp_path_factory.mktemp("world")
    tiny_base(folder / "base", seed=0)
    rows = [
        {"question": f"What colour has {which} {thing} {when}?", "colour": colour}
        for thing, colour in COLOURS.items()
        for which in ("the", "my", "this", "that", "her")
        for when in ("now", "today", "here", "at night")
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return World(folder)
