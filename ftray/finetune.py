"""The whole service as one function: a job in; a run directory with a verdict out.

Everything that can be wrong is found before anything is started; everything that was started can be resumed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from ftray.artifacts import RunDirectory, now, read_json, run_lock, write_json
from ftray.data.conversations import REPLAY
from ftray.errors import OUT_OF_MEMORY_HINT, InputError, Interrupted, RunError, is_out_of_memory
from ftray.follow import following
from ftray.job import LoadedJob, run_directory, run_id_of
from ftray.model.base import own_precision
from ftray.observe.measures import RunMeasures
from ftray.observe.ray_measures import RayInstruments
from ftray.observe.spans import root, span
from ftray.preflight import (
    Prepared,
    check,
    require_audit,
    require_registrable,
    require_whole_checkpoints,
    require_workers,
)
from ftray.registry.registry import open_registry
from ftray.registry.store import RECORD_FILE
from ftray.run_records import (
    FINISHED,
    failed_outcome,
    finished_result,
    result_record,
    with_own_paths,
    write_records,
    write_report,
    write_result,
)
from ftray.storage.lease import Lease
from ftray.storage.mirror import DRIVER, is_record, of_training
from ftray.tracking import require_trackers
from ftray.train.checkpoint import find_checkpoints

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's Jobs API in the environment of a command that it runs."""
Display = Callable[[dict[str, Any]], None]


def finetune(
    loaded: LoadedJob,
    *,
    display: Display,
    on_plan: Callable[[Prepared], None],
    on_sampling: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fine-tune, select, compare with the base; return result.json.

    `on_plan` is told what is about to run, `on_sampling` how many replay texts are sampled, of how many, `say` what is
    waited for.

    Raises InputError when nothing was started. A run that started and failed returns its result with the failure in
    it; an interrupted one raises Interrupted after writing its result.
    """
    require_trackers(loaded.job.tracking)
    loaded.place.require()
    require_registrable(loaded)
    run_id = run_id_of(loaded)
    run = run_directory(loaded, run_id)
    mirror = loaded.place.mirror(run.root)
    mirror.fetch(is_record, as_reader=True)
    earlier = finished_result(run, loaded)
    if earlier is not None:
        earlier = register(loaded, run, earlier)
        if not (run.report.exists() and run.diagnosis.exists()):
            write_report(run, mirror)
        return {**earlier, "reused": True}
    with root("run", job=loaded.job.name, run=run_id[:12], smoke=loaded.smoke) as told:
        result = _finetune(loaded, run_id, run, display=display, on_plan=on_plan, on_sampling=on_sampling, say=say)
        told.set(status=result["status"], verdict=result["verdict"], steps=result["steps"])
    return result


def _finetune(
    loaded: LoadedJob,
    run_id: str,
    run: RunDirectory,
    *,
    display: Display,
    on_plan: Callable[[Prepared], None],
    on_sampling: Callable[[int, int], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Do what is left of a run; as `finetune` says."""
    from ftray.sampling import require_same_texts

    mirror = loaded.place.mirror(run.root)
    with span("check"):
        prepared = check(loaded, run_id=run_id, run=run)
    require_audit(prepared.audit)
    require_whole_checkpoints(loaded, prepared.plan)
    # A folder that holds another job's checkpoints is refused before anything is written into it.
    find_checkpoints(run.checkpoints, run_id=run_id)
    require_workers(prepared.plan, say=say)
    run.create()
    with run_lock(run.driver_lock), mirror.holding(DRIVER) as lease:
        # What another machine has come to since.
        mirror.fetch(is_record)
        if prepared.datasets.awaits_sampling:
            sample_replay(loaded, prepared, on_sampling)
            prepared = check(loaded, run_id=run_id, run=run)
            require_audit(prepared.audit)
            # Nodes that nobody used meanwhile may have been given back.
            require_workers(prepared.plan, say=say)
        require_same_texts(run, run_id=run_id, digest=prepared.datasets.digests.get(REPLAY))
        write_records(loaded, prepared)
        on_plan(prepared)
        result = train_and_evaluate(loaded, prepared, display, lease=lease)
        if lease is not None:
            lease.verify()
        write_result(mirror, run, result)
        with span("report"):
            write_report(run, mirror)
            result = register(loaded, run, result)
    return result


def register(loaded: LoadedJob, run: RunDirectory, result: dict[str, Any]) -> dict[str, Any]:
    """Put a finished run's adapter, or model, into the registry; return result.json with its address, written.

    Once for each registry; a smoke run is not for keeping. Raises RunError where the registry cannot be written: the
    run stays finished, and the same command registers it.
    """
    if loaded.smoke or result["status"] not in FINISHED:
        return result
    registry, known = open_registry(loaded.storage, loaded.place.registry_url), result.get("registered")
    if known is not None and registry.has(known["name"], known["digest"]):
        return result
    if not (run.adapter / RECORD_FILE).is_file():
        from ftray.work import describe_adapter

        write_json(run.adapter / RECORD_FILE, describe_adapter(loaded, run, result))
    registered = registry.put(run.adapter, read_json(run.adapter / RECORD_FILE))
    result = {**result, "registered": {"name": registered.name, "digest": registered.digest}}
    write_result(loaded.place.mirror(run.root), run, result)
    return result


def join_cluster() -> None:
    """Connect to the cluster that this command was submitted to: it trains alone, and its numbers are the cluster's."""
    if SUBMITTED in os.environ:
        from ftray.train.cluster import connect

        connect()


def sample_replay(loaded: LoadedJob, prepared: Prepared, on_sampling: Callable[[int, int], None]) -> None:
    """Sample the texts that data.replay.sample_base asks for; once, for all workers and all later attempts."""
    from ftray.sampling import sample_base, sampling_of

    tokenizer = prepared.datasets.tokenization.tokenizer
    sampling = sampling_of(loaded, tokenizer)
    assert sampling is not None, "what awaits sampling is sampled from the base"
    sample_base(sampling, tokenizer, on_progress=on_sampling)
    loaded.place.mirror(sampling.texts.file.parent).publish(sampling.texts.file.name)


def train_and_evaluate(
    loaded: LoadedJob, prepared: Prepared, display: Display, *, lease: Lease | None = None
) -> dict[str, Any]:
    """Run the workers and return result.json, also when they fail. `lease`: what this process holds on the run."""
    started_at, started = now(), time.perf_counter()
    display = also_measured(display, loaded, prepared)
    try:
        outcome = run_workers(loaded, prepared, display, lease)
        if outcome["data_digests"] != prepared.datasets.digests:
            raise RunError(
                "the workers read other data than this process checked: a file changed in between",
                kind="data",
                given=outcome["data_digests"],
                allowed=prepared.datasets.digests,
                hint="Keep the data files as they are while a run goes on; then run the command again.",
            )
    except KeyboardInterrupt as error:
        outcome = failed_outcome("interrupted", None)
        result = result_record(loaded, prepared, outcome, started_at, started)
        write_json(prepared.run.result, result)
        with contextlib.suppress(RunError):
            if lease is not None:
                # Another machine may have taken the run over: the result in the store is its.
                lease.verify()
            loaded.place.mirror(prepared.run.root).publish(prepared.run.result.name)
        raise Interrupted(
            f"interrupted; {prepared.run.root} keeps its checkpoints",
            kind="interrupted",
            hint="Run the same command again: it goes on from the last checkpoint.",
        ) from error
    except RunError as error:
        outcome = failed_outcome("failed", error)
    except InputError as error:
        # Something was started by now: that is a failed run, not a refused job.
        outcome = failed_outcome("failed", RunError(error.message, kind="data", given=error.given, hint=error.hint))
    except OSError as error:
        outcome = failed_outcome("failed", RunError(f"the run could not go on: {error}", kind="unknown"))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        failure = RunError(f"out of memory: {first}", kind="oom", hint=OUT_OF_MEMORY_HINT)
        outcome = failed_outcome("failed", failure)
    return result_record(loaded, prepared, outcome, started_at, started)


def also_measured(display: Display, loaded: LoadedJob, prepared: Prepared) -> Display:
    """Return a display whose lines are told as numbers, too, through the Ray there is."""
    measures = RunMeasures(
        RayInstruments(), job=loaded.job.name, run_id=prepared.run_id, total_steps=prepared.plan.total_steps
    )

    def show(line: dict[str, Any]) -> None:
        display(line)
        measures(line)

    return show


def run_workers(loaded: LoadedJob, prepared: Prepared, display: Display, lease: Lease | None = None) -> dict[str, Any]:
    """Run the worker function in this process or on Ray Train; what it has left is here then."""
    from ftray.work import WorkOrder, run_ray_worker, work

    order = WorkOrder(
        loaded=loaded,
        plan=prepared.plan,
        run=prepared.run.root,
        run_id=prepared.run_id,
        sampling_precision=own_precision(),
    )
    if prepared.plan.engine == "torch":
        join_cluster()
        return work(order, told=1, display=display, datasets=prepared.datasets, lease=lease)
    from ftray.train.launch import launch

    run, mirror = prepared.run, order.mirror
    try:
        with following(run.metrics, display, mirror=mirror):
            outcome = launch(run_ray_worker, {"order": order}, plan=prepared.plan, run=run.root, place=loaded.place)
    except BaseException:
        with contextlib.suppress(RunError):
            mirror.fetch(is_training_record)
        raise
    mirror.fetch(is_training_record)
    return with_own_paths(outcome, run) if mirror.is_remote else outcome


def is_training_record(name: str) -> bool:
    """Return whether a file is what workers leave to whoever started them."""
    return of_training(name) and is_record(name)
