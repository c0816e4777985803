"""Both sides of the comparison as fresh processes: ftray through its own command line, TRL through trl_side.py.

Either returns a `Run` that holds the same numbers, measured alike: seconds of the training loop alone, real tokens
(no padding), and the memory of the process tree sampled from outside.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench_watch import watch

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training by one side."""

    side: str
    variant: str
    seed: int
    steps: int
    tokens: int
    train_seconds: float
    wall_seconds: float
    """From the start of the process to its end: imports, data, model, Ray and evaluation included."""
    peak_process_bytes: int
    """Of the largest process."""
    peak_total_bytes: int
    """Of all processes together; pages they share count in each."""
    first_loss: float
    last_loss: float
    smallest_grad_norm: float
    adapter: str
    load_average: float
    """Of the machine, over the minute before: near 0 when it was quiet."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.train_seconds

    @property
    def step_milliseconds(self) -> float:
        return 1000 * self.train_seconds / self.steps

    def to_record(self) -> dict[str, Any]:
        derived = {"tokens_per_second": self.tokens_per_second, "step_milliseconds": self.step_milliseconds}
        return {**{key: value for key, value in asdict(self).items() if key != "adapter"}, **derived}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What both sides train: a job, its rows on disk, a seed, and perhaps fewer steps than the job has."""

    job_file: Path
    job: Any  # ftray.job.Job
    rows: Path
    seed: int
    total_steps: int
    max_steps: int | None
    folder: Path


def run_ftray(task: Task, variant: str, settings: dict[str, Any]) -> Run:
    """Train by `ftray train`."""
    sets = [f"seed={task.seed}", f"compute.workers={settings['workers']}"]
    environment = {}
    if settings["workers"] > 0:
        sets.append(f"compute.cpus_per_worker={settings['threads']}")
    else:
        environment["OMP_NUM_THREADS"] = str(settings["threads"])
    if task.max_steps is not None:
        sets.append(f"train.max_steps={task.max_steps}")
    command = [sys.executable, "-m", "ftray", "train", str(task.job_file), "--json", "--quiet", "--fresh"]
    command += ["--storage", str(task.folder / "runs")]
    for setting in sets:
        command += ["--set", setting]
    seen = watch(command, environment, task.folder / f"ftray-{variant}-{task.seed}.log")
    result = json.loads(seen.output)
    lines = [json.loads(line) for line in (Path(result["path"]) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    return _checked(
        Run(
            side="ftray",
            variant=variant,
            seed=task.seed,
            steps=result["steps"],
            tokens=result["tokens"],
            train_seconds=result["seconds"]["train"],
            wall_seconds=seen.seconds,
            peak_process_bytes=max(seen.peak_process_bytes, result["peak_memory_bytes"]),
            peak_total_bytes=seen.peak_total_bytes,
            first_loss=steps[0]["train/loss"],
            last_loss=steps[-1]["train/loss"],
            smallest_grad_norm=min(line["train/grad_norm"] for line in steps),
            adapter=result["adapter"]["path"],
            load_average=seen.load_average,
        )
    )


def run_trl(task: Task, variant: str, settings: dict[str, Any], arguments: dict[str, Any]) -> Run:
    """Train by TRL's SFTTrainer."""
    name = f"trl-{variant}-{task.seed}"
    folder = task.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    method, train = task.job.method, task.job.train
    order = {
        "model": task.job.model,
        "rows": str(task.rows),
        "seed": task.seed,
        "threads": settings["threads"],
        "processes": settings["processes"],
        "folder": str(folder / "trainer"),
        "adapter": str(folder / "adapter"),
        "record": str(folder / "record.json"),
        "lora": method.model_dump(include={"rank", "alpha", "dropout", "target_modules"}),
        "recipe": {
            **train.model_dump(
                include={"batch_size", "epochs", "learning_rate", "schedule", "weight_decay", "max_grad_norm"}
            ),
            "max_steps": task.max_steps,
            "warmup_steps": _warmup_steps(train.warmup, task.max_steps or task.total_steps),
        },
        "arguments": {**arguments, **settings.get("arguments", {})},
    }
    order_file = folder / "order.json"
    order_file.write_text(json.dumps(order), encoding="utf-8")
    command = [sys.executable]
    if settings["processes"] > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={settings['processes']}"]
    command += [str(HERE / "trl_side.py"), str(order_file)]
    environment = {"OMP_NUM_THREADS": str(settings["threads"]), **settings.get("environment", {})}
    seen = watch(command, environment, task.folder / f"{name}.log")
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return _checked(
        Run(
            side="trl",
            variant=variant,
            seed=task.seed,
            steps=record["steps"],
            tokens=record["tokens"],
            train_seconds=record["train_seconds"],
            wall_seconds=seen.seconds,
            peak_process_bytes=seen.peak_process_bytes,
            peak_total_bytes=seen.peak_total_bytes,
            first_loss=record["losses"][0],
            last_loss=record["losses"][-1],
            smallest_grad_norm=min(record["grad_norms"]),
            adapter=record["adapter"],
            load_average=seen.load_average,
        )
    )


def _warmup_steps(warmup: float | int, total_steps: int) -> int:
    return warmup if isinstance(warmup, int) else math.ceil(warmup * total_steps)


def _checked(run: Run) -> Run:
    """Stop when a run trained nothing: its speed would be a lie."""
    assert run.smallest_grad_norm > 0, f"{run.side} {run.variant}: a gradient norm of {run.smallest_grad_norm}"
    assert run.last_loss < run.first_loss, f"{run.side} {run.variant}: {run.first_loss} -> {run.last_loss}"
    return run
