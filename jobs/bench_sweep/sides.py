"""The three sides of the comparison as fresh processes, and what each has to say of its trials in one form.

ftray: `ftray sweep`. recipe: ray_recipe.py. processes: processes.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from campaign import name_of

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench_watch import Seen, watch

HERE = Path(__file__).resolve().parent
SIDES = ("ftray", "recipe", "processes")
Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How one configuration ended."""

    name: str
    steps: int
    completed: bool
    """Whether it reached its own last step."""
    validation_loss: float
    """At its last evaluation, nats per label."""
    train_loss: float
    """Of the last step before it."""
    accuracy: float
    """Its best on the validation rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One campaign by one side."""

    side: str
    case: str
    scheduler: str
    repeat: int
    wall_seconds: float
    """From the start of the command to its end."""
    peak_process_bytes: int
    """Of the largest process."""
    peak_total_bytes: int
    """Of all processes together; pages they share count in each."""
    load_average: float
    """Of the machine, over the minute before: near 0 when it was quiet."""
    trials: list[Trial]

    @property
    def steps(self) -> int:
        return sum(trial.steps for trial in self.trials)

    def to_record(self) -> Record:
        return {**asdict(self), "steps": self.steps}

    @classmethod
    def from_record(cls, record: Record) -> Run:
        known = {name: value for name, value in record.items() if name in cls.__slots__}
        return cls(**{**known, "trials": [Trial(**trial) for trial in record["trials"]]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be run."""

    case: str
    scheduler: str
    repeat: int
    job_file: Path
    sets: list[str]
    campaign_file: Path
    campaign: Record
    limit_seconds: float
    folder: Path

    @property
    def names(self) -> list[str]:
        return [trial["name"] for trial in self.campaign["trials"]]


def run_side(side: str, order: Order) -> Run:
    """Run one side's campaign; stop the benchmark where it is not the whole campaign."""
    folder = order.folder / f"{order.case}-{order.scheduler}-{order.repeat}-{side}"
    by_side: dict[str, Callable[[Order, Path], tuple[Seen, list[Trial]]]] = {
        "ftray": _ftray,
        "recipe": lambda order, folder: _plain(order, folder, "ray_recipe.py"),
        "processes": lambda order, folder: _plain(order, folder, "processes.py"),
    }
    seen, trials = by_side[side](order, folder)
    run = Run(
        side=side,
        case=order.case,
        scheduler=order.scheduler,
        repeat=order.repeat,
        wall_seconds=seen.seconds,
        peak_process_bytes=seen.peak_process_bytes,
        peak_total_bytes=seen.peak_total_bytes,
        load_average=seen.load_average,
        trials=sorted(trials, key=lambda trial: order.names.index(trial.name)),
    )
    _require_whole(run, order)
    return run


def _require_whole(run: Run, order: Order) -> None:
    """Stop when a side ran other trials, or left one unfinished that nothing stops: its seconds would be a lie."""
    names = [trial.name for trial in run.trials]
    assert names == order.names, f"{run.side} ran {names}, not {order.names}"
    total = len(order.campaign["batches"])
    for trial in run.trials:
        assert trial.completed == (trial.steps == total), f"{run.side}, {trial.name}: {trial.steps} of {total} steps"
        assert trial.completed or run.scheduler != "none", f"{run.side}, {trial.name}: stopped after {trial.steps}"


def _ftray(order: Order, folder: Path) -> tuple[Seen, list[Trial]]:
    command = [sys.executable, "-m", "ftray", "sweep", str(order.job_file), "--json", "--quiet", "--fresh"]
    command += ["--storage", str(folder)]
    for setting in [*order.sets, f"sweep.scheduler={order.scheduler}"]:
        command += ["--set", setting]
    seen = watch(command, {}, folder.with_suffix(".log"), limit_seconds=order.limit_seconds)
    sweep = json.loads(seen.output)
    root = folder / f"{sweep['name']}-sweep-{sweep['sweep_id'][:12]}"
    lines = [json.loads(line) for line in (root / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
    return seen, [_ftray_trial(line, root) for line in lines]


def _ftray_trial(line: Record, root: Path) -> Trial:
    assert line["state"] in ("completed", "pruned"), f"{line['config']} is {line['state']}: {line['reason']}"
    metrics = root / "trials" / line["trial_id"] / "metrics.jsonl"
    logged = [json.loads(text) for text in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [one for one in logged if one["kind"] == "step"]
    return Trial(
        name=name_of(line["config"]),
        steps=line["steps"],
        completed=line["state"] == "completed",
        validation_loss=line["last"]["validation_loss"],
        train_loss=steps[-1]["train/loss"],
        accuracy=line["best"]["validation_accuracy"],
    )


def _plain(order: Order, folder: Path, script: str) -> tuple[Seen, list[Trial]]:
    command = [sys.executable, str(HERE / script), str(order.campaign_file), order.scheduler, str(folder)]
    threads = {"OMP_NUM_THREADS": str(order.campaign["plain"]["threads"])}
    seen = watch(command, threads, folder.with_suffix(".log"), limit_seconds=order.limit_seconds)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    total = len(order.campaign["batches"])
    return seen, [
        Trial(
            name=name,
            steps=evaluations[-1]["step"],
            completed=evaluations[-1]["step"] == total,
            validation_loss=evaluations[-1]["validation_loss"],
            train_loss=evaluations[-1]["train_loss"],
            accuracy=evaluations[-1]["best_validation_accuracy"],
        )
        for name, evaluations in results.items()
    ]
