"""One attempt of a worker at a run: it alone writes, it is tracked, and it goes on where the last attempt was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ftray.artifacts import RunDirectory, try_lock
from ftray.errors import RunError
from ftray.job import Job
from ftray.observe import log
from ftray.tracking import Tracker, next_attempt, open_mirrors
from ftray.train.checkpoint import find_checkpoints, load_checkpoint, newest_whole
from ftray.train.engine import Engine
from ftray.train.loop import Report
from ftray.train.state import Training

ORPHAN_SECONDS = 60
"""How long to wait for a worker of a killed driver to notice that it is alone."""


@contextmanager
def sole_worker(run: RunDirectory, engine: Engine) -> Iterator[None]:
    """Make sure that no worker of an earlier, killed driver still writes into this run."""
    problem = ""
    file = run.worker_lock.open("a", encoding="utf-8") if engine.group.rank == 0 else None
    deadline = time.monotonic() + ORPHAN_SECONDS
    while file is not None and not try_lock(file):
        if time.monotonic() > deadline:
            problem = f"another process still trains this run after {ORPHAN_SECONDS} s"
            break
        time.sleep(0.2)
    if any(engine.group.gather(problem)):
        raise RunError(
            problem or "rank 0 found another worker", kind="node", hint="End it, then run the command again."
        )
    try:
        yield
    finally:
        if file is not None:
            file.close()


@contextmanager
def tracking(job: Job, run: RunDirectory, engine: Engine, display: Report, *, run_id: str) -> Iterator[Report]:
    """Give rank 0 the run's tracker, and the others a report that says nothing."""
    log.bind(job=job.name, worker=engine.group.rank)
    if engine.group.rank != 0:
        yield lambda line: None
        return
    mirrors = open_mirrors(job.tracking, folder=run.root, name=job.name, run_id=run_id, params=job.train.model_dump())
    tracker = Tracker(run.metrics, attempt=next_attempt(run.metrics), mirrors=mirrors, also=display)
    try:
        yield tracker.report
    finally:
        tracker.close()


def resume(training: Training, engine: Engine, run: RunDirectory, *, run_id: str, report: Report) -> None:
    """Go on from the newest checkpoint that is whole. Rank 0 chooses, so that all ranks take the same one."""
    step: int | None = None
    notes: list[str] = []
    if engine.group.rank == 0:
        newest, notes = newest_whole(run.checkpoints, run_id=run_id)
        step = newest.step if newest else None
    step = engine.group.gather(step)[0]
    if step is not None:
        (chosen,) = [one for one in find_checkpoints(run.checkpoints, run_id=run_id) if one.step == step]
        training.restore(load_checkpoint(chosen, engine))
        engine.scaler.scale = training.progress.loss_scale
        engine.scaler.good_steps = training.progress.good_steps
    event = {"step": training.progress.step, "epoch": training.epoch, "kind": "event"}
    for note in notes:
        report({**event, "event": note})
    log.say(
        f"goes on from step {step}" if step else "begins",
        step=training.progress.step,
        event="resumed" if step else "started",
        workers=engine.group.size,
    )
    report({**event, "event": f"resumed at step {step}" if step else "started", "workers": engine.group.size})
