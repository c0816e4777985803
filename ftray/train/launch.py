"""Run a worker function on Ray Train with one torch process group.

Lost workers are replaced by Ray Train up to a finite limit and go on from the newest whole checkpoint, which the
worker function finds by itself; Ray's own checkpoint records are not used. Nothing is reported through Ray per step:
its reports are paced by a controller poll of seconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import psutil
import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from ftray.artifacts import write_json
from ftray.errors import FAILURE_KINDS, OUT_OF_MEMORY_HINT, FtrayError, RunError, is_out_of_memory
from ftray.observe import log, spans
from ftray.storage.mirror import Mirror
from ftray.storage.place import Place
from ftray.train.address import ray_address
from ftray.train.cluster import connect, require_place, worker_resources
from ftray.train.groups import groups_of_this_job, remove_idle_groups
from ftray.train.memory import MALLOC_ENVIRONMENT
from ftray.train.plan import Plan
from ftray.train.secrecy import Secrets, is_secret, secret_names

ERROR_NOTE = ".worker-error.json"
START_SECONDS = 20
"""How long Ray Train waits for nodes that hold all workers before it looks again; it looks twice."""
MOST_WAITS = 90
"""How often it is asked to: an hour in all, for the node that takes a lost one's place, or for others' jobs to end."""
PASSED_ON = {
    "AWS_ACCESS_KEY_ID",
    "AWS_CA_BUNDLE",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CXX",
    "FTRAY_LOG",
    "GOMP_SPINCOUNT",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "PYTHONPATH",
}
PASSED_PREFIXES = ("MLFLOW_", "OTEL_", "WANDB_")
"""Environment of the driver that workers get, wherever they are: where models, modules and services are, how
threads wait. Not the keys of a store: what is passed on can be listed."""
Worker = Callable[[dict[str, Any]], dict[str, Any]]


class NodeAddresses(TorchConfig):
    """Torch's process group, in which each worker gives the others the address by which the cluster knows its node."""

    @property
    def backend_cls(self) -> type:
        """What starts the process group on all workers."""

        class Started(super().backend_cls):  # type: ignore[misc]
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
                worker_group.execute(listen_at_node_address)
                super().on_start(worker_group, backend_config)

        return Started


def listen_at_node_address() -> None:
    """Make gloo listen at this node's address for the cluster, unless the user has named an interface.

    Left alone it takes the address of the host's name, which hosts files often call 127.0.1.1: workers of other nodes
    would look for this one on their own.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """Return the network interface that has an address, None where there is none."""
    kinds = (socket.AF_INET, socket.AF_INET6)
    for name, given in psutil.net_if_addrs().items():
        if any(one.family in kinds and one.address.partition("%")[0] == address for one in given):
            return str(name)
    return None


def launch(
    worker: Worker,
    payload: dict[str, Any],
    *,
    plan: Plan,
    run: Path,
    place: Place | None = None,
    passed: Mapping[str, str] | None = None,
    secrets: Secrets | None = None,
    trainer_class: type = TorchTrainer,
) -> dict[str, Any]:
    """Run `worker(payload)` on every worker; return rank 0's small dict.

    `run`: the run's folder; `place`: the storage it is in, where that is no folder that all workers reach.
    `passed`, `secrets`: environment that workers get, where that of this process is not the user's; as `passed_on` and
    `own_secrets` give it.
    Raises the FtrayError a worker raised, or RunError `node` when workers were lost more often than allowed.
    """
    started_here = connect()
    try:
        # Nodes may have been given back since this was asked, or between two trials.
        require_place(plan, say=logging.getLogger(__name__).warning)
        place = place or Place(str(run.parent))
        mirror = place.mirror(run)
        mirror.remove(ERROR_NOTE)
        # The stubs that ray.train exports are those of its first version; at run time these are the second's.
        train: Any = ray.train
        trainer: Any = cast("Any", trainer_class)(
            _run_worker,
            train_loop_config={
                "worker": worker,
                "payload": payload,
                "place": place,
                "run": run,
                "secrets": secrets or own_secrets(),
            },
            torch_config=NodeAddresses(backend="nccl" if plan.gpus_per_worker else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=plan.workers if plan.min_workers == plan.workers else (plan.min_workers, plan.workers),
                use_gpu=plan.gpus_per_worker > 0,
                resources_per_worker=worker_resources(plan),
            ),
            run_config=train.RunConfig(
                name="checkpoints",
                storage_path=str(run),
                failure_config=train.FailureConfig(max_failures=plan.max_failures, controller_failure_limit=1),
                worker_runtime_env={"env_vars": worker_environment(has_gpu=plan.gpus_per_worker > 0, passed=passed)},
            ),
        )
        outcome = _fit(trainer, retries=plan.max_failures)
    except SystemExit as error:
        # Ray Train takes Ctrl-C for itself and ends the process with exit code 0, as if the run had been finished.
        raise KeyboardInterrupt from error
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        raise (_noted(mirror) or _cause(error)) from error
    finally:
        if started_here:
            ray.shutdown()
    if isinstance(outcome, FtrayError):
        raise outcome
    assert isinstance(outcome, dict), "rank 0 returns a dict"
    return outcome


def _fit(trainer: Any, *, retries: int) -> Any:
    """Return what rank 0 returned.

    Ray Train replaces workers that die while they work; one that dies while its group starts ends Ray's controller,
    and is retried here. So does a group for which the cluster has no room now, and it is waited for.
    """
    train: Any = ray.train
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_SECONDS))
    waits, before = MOST_WAITS, set(groups_of_this_job())
    while True:
        try:
            with own_interrupt():
                return trainer.fit().return_value
        except train.ControllerError as error:
            if _has_no_room(str(error)):
                waits -= 1
                ends = waits <= 0
            else:
                ends = retries == 0 or _cause(error).kind != "node"
                retries -= 1
            # What its frames hold would live as long as it does: the controller, and that its workers.
            given_up = error.with_traceback(None) if ends else None
        remove_idle_groups(spared=before)
        if given_up is not None:
            raise given_up


@contextlib.contextmanager
def own_interrupt() -> Iterator[None]:
    """Put back what Ctrl-C does: Ray Train's way of taking it holds the controller, and that its workers, for ever."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGINT, before)


def _has_no_room(text: str) -> bool:
    """Return whether Ray Train gave up because nodes for all workers were not there in time."""
    return "worker group startup timed out" in text


def passed_on() -> dict[str, str]:
    """Return the environment of this process that workers get, wherever they are, as far as everybody may see it."""
    passed = {name for name in _passed_names() if not is_secret(name, os.environ[name])}
    if ray_address() is None and "PATH" in os.environ:
        # Another machine has its own, and would not find its programs with this one.
        passed.add("PATH")
    return {name: os.environ[name] for name in sorted(passed)}


def own_secrets() -> Secrets:
    """Return the tokens and keys of this process that workers get."""
    return Secrets({name: os.environ[name] for name in _passed_names() if is_secret(name, os.environ[name])})


def _passed_names() -> set[str]:
    """Return the variables that workers get. Not the secrets of a submitted job: its workers have them already."""
    passed = {name for name in os.environ if name in PASSED_ON or name.startswith(PASSED_PREFIXES)}
    return passed - secret_names(os.environ)


def worker_environment(*, has_gpu: bool, passed: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a worker, which computes on a GPU or not.

    `passed`: what it gets from the process that the command runs in, where that is another than this one.
    """
    environment = {"TOKENIZERS_PARALLELISM": "false", **MALLOC_ENVIRONMENT, **spans.carrier()}
    if not has_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment | dict(passed_on() if passed is None else passed)


def _run_worker(config: dict[str, Any]) -> dict[str, Any] | FtrayError | None:
    """Run on each worker. An FtrayError would fail the same way again: it ends the run, on every worker.

    One that a single worker meets is noted in the run folder and raised, so that Ray ends the peers that wait for this
    one; the next attempt finds the note and returns it at once.
    """
    context = ray.train.get_context()
    config["secrets"].set()
    log.in_worker()
    mirror = config["place"].mirror(config["run"])
    if (noted := _noted(mirror)) is not None:
        return noted
    payload = {**config["payload"], "told": context.get_world_size()}
    try:
        outcome = config["worker"](payload)
    except FtrayError as error:
        if context.get_world_size() == 1:
            return error
        mirror.folder.mkdir(parents=True, exist_ok=True)
        write_json(mirror.folder / ERROR_NOTE, error.to_record())
        mirror.publish(ERROR_NOTE)
        raise
    return outcome if context.get_world_rank() == 0 else None


def _noted(mirror: Mirror) -> RunError | None:
    """Return the error a worker noted."""
    content = mirror.read(ERROR_NOTE)
    if content is None:
        return None
    record = json.loads(content)
    kind = record["kind"] if record["kind"] in FAILURE_KINDS else "data"
    return RunError(record["message"], kind=kind, given=record["given"], hint=record["hint"])


def _cause(error: Exception) -> RunError:
    """Name what ended the run from the text of Ray's error."""
    text = f"{error}\n{error.__cause__ or ''}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "unknown")
    # Not "OOM": Ray's sentence about any killed worker names the kernel's OOM killer among the possible causes.
    if is_out_of_memory(text):
        kind, hint = "oom", OUT_OF_MEMORY_HINT
    elif _has_no_room(text):
        kind, hint = (
            "node",
            "The cluster had no room for all workers (ray status); the same command resumes when it has.",
        )
    elif any(word in text for word in ("ActorDied", "actor died", "actor is dead", "NodeDied", "WorkerHealthCheck")):
        kind, hint = "node", "Workers were lost more often than compute.max_failures allows; the same command resumes."
    elif "gloo" in text.lower() or "nccl" in text.lower():
        kind, hint = "communication", "The workers lost each other; the same command resumes."
    else:
        kind, hint = "unknown", "The traceback is in the worker's log (ray logs); the same command resumes."
    return RunError(f"the workers failed: {last}", kind=kind, hint=hint)
