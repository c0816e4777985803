"""One attempt of a worker at a run: it alone writes, it is tracked, and it goes on where the last attempt was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ftray.artifacts import RunDirectory, try_lock
from ftray.errors import InputError, RunError
from ftray.job import Job
from ftray.observe import log
from ftray.storage.lease import Lease
from ftray.storage.mirror import WORKER, Mirror, of_training
from ftray.storage.publisher import Publisher
from ftray.tracking import Tracker, next_attempt, open_mirrors
from ftray.train.checkpoint import find_checkpoints, load_checkpoint, newest_whole
from ftray.train.engine import Engine
from ftray.train.loop import Report
from ftray.train.state import Training

ORPHAN_SECONDS = 60
"""How long to wait for a worker of a killed driver to notice that it is alone."""


@contextmanager
def sole_worker(
    run: RunDirectory, engine: Engine, mirror: Mirror, lease: Lease | None = None
) -> Iterator[Lease | None]:
    """Make sure that no worker of an earlier, killed driver still writes into this run; fetch what it has left.

    `lease`: the one that this process holds on the run already. Gives what must be held while it is published.
    """
    problem = ""
    with ExitStack() as held:
        if engine.group.rank == 0:
            run.create()
            deadline = time.monotonic() + ORPHAN_SECONDS
            file = held.enter_context(run.worker_lock.open("a", encoding="utf-8"))
            while not problem and not try_lock(file):
                problem = _too_long(deadline)
            while not problem and lease is None and mirror.is_remote:
                try:
                    lease = held.enter_context(mirror.holding(WORKER))
                except InputError as error:
                    if error.kind != "run_locked":
                        raise
                    problem = _too_long(deadline)
        if any(engine.group.gather(problem)):
            raise RunError(
                problem or "rank 0 found another worker", kind="node", hint="End it, then run the command again."
            )
        if mirror.is_remote:
            mirror.fetch(of_training)
            # Nobody writes before all have read.
            engine.group.gather(None)
        yield lease


def _too_long(deadline: float) -> str:
    """Wait for a moment; return what is wrong once it is too late."""
    time.sleep(0.2)
    if time.monotonic() < deadline:
        return ""
    return f"another process still trains this run after {ORPHAN_SECONDS} s"


@contextmanager
def publishing(mirror: Mirror, engine: Engine, lease: Lease | None) -> Iterator[Publisher]:
    """Publish what rank 0 writes, all the while; the other ranks write nothing."""
    if engine.group.rank != 0:
        yield Publisher()
        return
    with mirror.publishing(of_training, lease=lease) as publisher:
        yield publisher


def share_checkpoints(mirror: Mirror, publisher: Publisher, engine: Engine) -> None:
    """Give every rank the checkpoints that rank 0 has written, on whichever machine it is (collective)."""
    if not mirror.is_remote or engine.group.size == 1:
        return
    if engine.group.rank == 0:
        publisher.flush()
    engine.group.gather(None)
    if engine.group.rank != 0:
        mirror.fetch(lambda name: name.startswith("checkpoints/"))
    engine.group.gather(None)


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
