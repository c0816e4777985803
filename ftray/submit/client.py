"""A cluster through its Jobs API: the seam to Ray's client. Its answers become records, its failures sentences."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient, JobType

from ftray.errors import RunError
from ftray.submit.contact import first_answer, own_address
from ftray.submit.submission import ID, Submission, moment, state_of
from ftray.submit.versions import Versions
from ftray.train.address import AUTO, bad_token

ANSWER_SECONDS = 60.0
UPLOAD_SECONDS = 600.0
SETTLE_SECONDS = 10.0
STOP_SECONDS = 60
"""How long a stopped run may take to write what it has; Ray's own patience is 3 s."""


TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
"""Loggers of Ray's client that say what ftray says itself."""


class Taken(Exception):
    """The id of a submission is taken: another submission of the same job was quicker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A living node."""

    address: str
    is_head: bool
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a cluster has given out, and what waits for it."""

    used: Mapping[str, float] | None
    """Amounts by Ray's names (CPU, GPU); None where its autoscaler does not tell."""
    waiting: Sequence[tuple[Mapping[str, float], int]] = ()
    """Resources that tasks, actors and placement groups ask for and have not got, and how often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrypointResources:
    """What is reserved for the process that runs the command; without any it runs on the head node."""

    cpus: float = 0
    gpus: float = 0
    memory: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the Jobs API is asked to run."""

    id: str
    entrypoint: str
    working_dir: Path
    module: Path | None
    environment: Mapping[str, str]
    setup_hook: str | None
    metadata: Mapping[str, str]
    resources: EntrypointResources = field(default_factory=EntrypointResources)


class _Client(JobSubmissionClient):
    """Ray's client, but its requests end."""

    def _do_request(self, method: str, endpoint: str, *, data: bytes | None = None, **options: Any) -> Any:
        options.setdefault("timeout", ANSWER_SECONDS if data is None else UPLOAD_SECONDS)
        return super()._do_request(method, endpoint, data=data, **options)


class Cluster:
    """One cluster. Raises InputError for what it refuses, RunError `communication` when it stops answering."""

    def __init__(self, address: str, *, token: str | None) -> None:
        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        self.address = own_address() if address == AUTO else address
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._ray_version = first_answer(self.address, self._headers)
        with self._asking(), _only_address(self.address):
            self._client = _Client(self.address, headers=dict(self._headers))

    def versions(self) -> Versions:
        """Return what the cluster runs."""
        with self._asking():
            answer = self._client._do_request("GET", "/api/v0/cluster_metadata")
        data = answer.json().get("data", {}) if answer.status_code == 200 else {}
        return Versions(ray=self._ray_version, python=data.get("pythonVersion") or data.get("python_version"))

    def nodes(self) -> list[Node]:
        """Return the living nodes; a cluster that has just started is waited for until it knows its own."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            with self._asking():
                answer = self._client._do_request("GET", "/api/v0/nodes?detail=true&limit=10000")
            rows = answer.json()["data"]["result"]["result"] if answer.status_code == 200 else []
            nodes = [_node(row) for row in rows if row["state"] == "ALIVE"]
            if any(node.is_head for node in nodes) or time.monotonic() > deadline:
                return nodes
            time.sleep(0.5)

    def load(self) -> Load:
        """Return what is given out and what waits, as the cluster's autoscaler saw it last, seconds ago."""
        with self._asking():
            answer = self._client._do_request("GET", "/api/cluster_status")
        told = answer.json()["data"] if answer.status_code == 200 else {}
        # A cluster that has just started, or whose autoscaler is of the second version, has no report.
        return _load((told.get("clusterStatus") or {}).get("loadMetricsReport") or {})

    def submissions(self) -> list[Submission]:
        """Return what ftray has submitted, the first one first."""
        with self._asking():
            jobs = self._client.list_jobs()
        known = [job for job in jobs if job.type is JobType.SUBMISSION and ID.match(job.submission_id or "")]
        return [_submission(job) for job in sorted(known, key=lambda job: job.start_time or 0)]

    def submission(self, submission_id: str) -> Submission:
        """Return one submission."""
        with self._asking():
            return _submission(self._client.get_job_info(submission_id))

    def environment(self, submission_id: str) -> dict[str, str]:
        """Return the environment a submission was given."""
        with self._asking():
            job = self._client.get_job_info(submission_id)
        return dict((job.runtime_env or {}).get("env_vars") or {})

    def submit(self, order: Order) -> None:
        """Queue a submission. Raises Taken where its id is."""
        runtime: dict[str, Any] = {
            "working_dir": str(order.working_dir),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **order.environment},
        }
        if order.module is not None:
            runtime["py_modules"] = [str(order.module)]
        if order.setup_hook is not None:
            runtime["worker_process_setup_hook"] = order.setup_hook
        resources = order.resources
        try:
            with self._asking():
                self._client.submit_job(
                    entrypoint=order.entrypoint,
                    submission_id=order.id,
                    runtime_env=runtime,
                    metadata=dict(order.metadata),
                    entrypoint_num_cpus=resources.cpus or None,
                    entrypoint_num_gpus=resources.gpus or None,
                    entrypoint_memory=resources.memory or None,
                )
        except RunError as error:
            if f"{order.id} already exists" in error.message:
                raise Taken(order.id) from error
            raise

    def run(self, submission_id: str, entrypoint: str) -> None:
        """Queue a command that needs no files."""
        with self._asking():
            self._client.submit_job(entrypoint=entrypoint, submission_id=submission_id)

    def forget(self, submission_id: str) -> None:
        """Delete what the cluster knows of a submission that has ended."""
        with self._asking():
            self._client.delete_job(submission_id)

    def stop(self, submission_id: str) -> None:
        """Ask a submission to end; it takes its time."""
        with self._asking():
            self._client.stop_job(submission_id)

    def log(self, submission_id: str) -> str:
        """Return what a submission has said so far."""
        with self._asking():
            text: str = self._client.get_job_logs(submission_id)
        return text

    def tail(self, submission_id: str) -> Iterator[str]:
        """Yield what a submission says, from its beginning to its end, in pieces of whole lines."""
        pieces = self._client.tail_job_logs(submission_id)

        async def next_piece() -> str | None:
            return await anext(pieces, None)

        # The runner ends what is under way when Ctrl-C ends this.
        with asyncio.Runner() as runner:
            while True:
                with self._asking(), warnings.catch_warnings():
                    # Ray's client speaks to aiohttp as an older one wanted it.
                    warnings.filterwarnings("ignore", "ssl=None is deprecated", DeprecationWarning)
                    piece = runner.run(next_piece())
                if piece is None:
                    return
                yield piece

    def put(self, name: str, content: bytes) -> None:
        """Write an entry of the cluster's key-value store, as a package that no job names."""
        with self._asking():
            answer = self._client._do_request("PUT", f"/api/packages/gcs/{name}", data=content)
            if answer.status_code != 200:
                raise RuntimeError(answer.text)

    def holds(self, name: str) -> bool:
        """Return whether there is such an entry."""
        with self._asking():
            return bool(self._client._package_exists(f"gcs://{name}"))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what goes wrong with the Jobs API into one screen."""
        try:
            yield
        except AuthenticationError as error:
            raise bad_token(self.address, has_token=bool(self._headers)) from error
        except (requests.RequestException, ConnectionError, OSError) as error:
            raise RunError(
                f"the job server at {self.address} does not answer any more ({type(error).__name__})",
                kind="communication",
                given=self.address,
                hint="What was submitted goes on. Ask again when the cluster can be reached.",
            ) from error
        except RuntimeError as error:
            raise RunError(
                f"the job server at {self.address} refuses: {_reason(str(error))}",
                kind="communication",
                given=self.address,
                hint="The dashboard's log on the head node (dashboard_JobHead.log) has the rest.",
            ) from error


def _node(row: Mapping[str, Any]) -> Node:
    has = row.get("resources_total") or {}
    cpus, gpus = float(has.get("CPU", 0)), float(has.get("GPU", 0))
    return Node(address=row["node_ip"], is_head=row["is_head_node"], cpus=cpus, gpus=gpus)


def _load(report: Mapping[str, Any]) -> Load:
    """Return what an autoscaler's report says."""
    usage = report.get("usage")
    waiting = [(dict(wanted), int(count)) for wanted, count in report.get("resourceDemand", [])]
    for group, count in report.get("pgDemand", []):
        # A placement group: its bundles come together or not at all.
        waiting += [(dict(bundle), int(count) * int(times)) for bundle, times in group["bundles"]]
    used = None if usage is None else {name: float(pair[0]) for name, pair in usage.items() if name in ("CPU", "GPU")}
    return Load(used=used, waiting=waiting)


def _submission(job: Any) -> Submission:
    return Submission(
        id=job.submission_id,
        state=state_of(job.status.value, job.driver_exit_code),
        exit_code=job.driver_exit_code,
        message=job.message or "",
        metadata=job.metadata or {},
        submitted_at=moment(job.start_time),
        ended_at=moment(job.end_time),
    )


def _reason(text: str) -> str:
    """Return the last line of an answer that may hold a traceback."""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it gives no reason")


@contextmanager
def _only_address(address: str) -> Iterator[None]:
    """Let Ray's client take this address: variables are stronger than its argument."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before
