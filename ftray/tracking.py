"""metrics.jsonl first; dashboards are mirrors of it. One line per logged step, evaluation and event."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

from ftray.artifacts import append_line, drop_torn_line, now, read_lines
from ftray.errors import InputError

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
MODULES: dict[str, str] = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


class Mirror(Protocol):
    """A dashboard that repeats what metrics.jsonl says."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Repeat the numbers of one line."""

    def close(self) -> None:
        """Flush and end."""


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """An MLflow run named after the job; the place is MLflow's own (MLFLOW_TRACKING_URI)."""

    def __init__(self, name: str, run_id: str, params: dict[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(name)
        mlflow.start_run(run_name=run_id[:12], tags={"ftray.run_id": run_id})
        mlflow.log_params({key: str(value)[:500] for key, value in params.items()})

    def log(self, step: int, values: dict[str, float]) -> None:
        self._mlflow.log_metrics({key.replace("/", "."): value for key, value in values.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class WeightsAndBiases:
    """A Weights & Biases run that resumes under the same id; the account is W&B's own (WANDB_API_KEY, WANDB_MODE)."""

    def __init__(self, name: str, run_id: str, params: dict[str, Any], folder: Path) -> None:
        import wandb

        self._run = wandb.init(
            project=name, id=run_id[:12], name=run_id[:12], resume="allow", config=params, dir=str(folder)
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


def require_trackers(names: Iterable[str]) -> None:
    """Raise InputError, before anything starts, for a tracker that is not installed."""
    for name in names:
        if importlib.util.find_spec(MODULES[name]) is None:
            raise InputError(
                f"tracking asks for {name}, which is not installed",
                kind="missing_package",
                given=name,
                allowed=[known for known, module in MODULES.items() if importlib.util.find_spec(module)],
                hint=f'Install it: pip install "ftray[{name}]", or remove it from `tracking`.',
                path="tracking",
            )


class Tracker:
    """The one writer of a run's metrics.jsonl, and its mirrors. Opened by rank 0 only."""

    def __init__(self, metrics: Path, *, attempt: int, mirrors: list[Mirror], also: Callable[[dict[str, Any]], None]):
        drop_torn_line(metrics)
        self.metrics = metrics
        self.attempt = attempt
        self._mirrors = mirrors
        self._also = also

    def report(self, line: dict[str, Any]) -> None:
        """Append one line, then repeat it to the mirrors and the display."""
        record = {"time": now(), "attempt": self.attempt, **line}
        append_line(self.metrics, record)
        numbers = {key: float(value) for key, value in line.items() if "/" in key and isinstance(value, int | float)}
        for mirror in self._mirrors:
            mirror.log(int(line["step"]), numbers)
        self._also(record)

    def close(self) -> None:
        """Close the mirrors."""
        for mirror in self._mirrors:
            mirror.close()


def open_mirrors(names: Iterable[str], *, folder: Path, name: str, run_id: str, params: dict[str, Any]) -> list[Mirror]:
    """Open the dashboards a job names."""
    mirrors: list[Mirror] = []
    for tracker in names:
        if tracker == "tensorboard":
            mirrors.append(TensorBoard(folder))
        elif tracker == "mlflow":
            mirrors.append(MLflow(name, run_id, params))
        else:
            mirrors.append(WeightsAndBiases(name, run_id, params, folder))
    return mirrors


def next_attempt(metrics: Path) -> int:
    """Return the number of the attempt that starts now: one more than any line says."""
    return 1 + max((int(line["attempt"]) for line in read_lines(metrics)), default=0)


def current_lines(metrics: Path) -> list[dict[str, Any]]:
    """Return the lines that count: of equal (step, kind) the one with the highest attempt, in step order.

    Events are all kept: they tell what happened in each attempt.
    """
    lines: dict[tuple[int, str, int], dict[str, Any]] = {}
    for index, line in enumerate(read_lines(metrics)):
        key = (int(line["step"]), line["kind"], index if line["kind"] == "event" else -1)
        if key not in lines or line["attempt"] >= lines[key]["attempt"]:
            lines[key] = line
    return sorted(lines.values(), key=lambda line: (line["step"], line["kind"] != "step"))
