"""A real Ray with a job server that asks for a token, a tiny job, and the command line against them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from typer.testing import CliRunner

from ftray.cli import app
from ftray.submit.client import Cluster

NONE: Mapping[str, str] = {}
COLOURS = ("red", "blue", "green", "grey")
JOB = """\
name: boxes
model: base
data:
  train: {path: train.jsonl, prompt: "{question}", completion: "{colour}"}
  test: {path: test.jsonl, prompt: "{question}", completion: "{colour}"}
train: {learning_rate: 5.0e-3, max_steps: 4, batch_size: 8, log_every: 2, evaluate_every: 2, checkpoint_every: 2}
evaluate: {task: {max_new_tokens: 4}}
compute: {workers: 0}
"""


def write_rows(path: Path, numbers: range) -> None:
    rows = [{"question": f"What colour is box {i}?", "colour": COLOURS[i % 4]} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_job(folder: Path, base: Path, *, name: str = "boxes", **changes: dict[str, Any]) -> Path:
    """Make the job's folder; return its file. `changes`: settings of sections, each in the place of its own, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", range(48))
    write_rows(folder / "test.jsonl", range(48, 56))
    content = yaml.safe_load(JOB) | {"name": name}
    for section, settings in changes.items():
        content[section] = {**content.get(section, {}), **settings}
    (folder / "job.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "base").symlink_to(base)
    return folder / "job.yaml"


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)


@dataclass(frozen=True)
class LiveRay:
    """A running Ray."""

    address: str
    token: str
    folder: Path
    gcs: str = ""
    """Where other nodes join it."""
    metrics_port: int = 0

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a user of this cluster."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "FTRAY_"))}
        return {**kept, "RAY_AUTH_TOKEN": self.token, **more}

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """Start ftray in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "ftray", *words, "--address", self.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**more),
        )

    def ftray(self, *words: str, **more: str) -> Answer:
        """Run ftray in this process."""
        result = CliRunner().invoke(
            app, [*words, "--address", self.address], env={"RAY_AUTH_TOKEN": self.token, "FTRAY_STORAGE": None, **more}
        )
        return Answer(result.exit_code, result.stdout, result.stderr)

    def cluster(self) -> Cluster:
        """Return the seam to this cluster."""
        return Cluster(self.address, token=self.token)

    def metrics(self) -> str:
        """Return what Prometheus would read from the node."""
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10).text

    def get(self, path: str) -> str:
        """Return what the dashboard says."""
        answer = httpx.get(f"{self.address}{path}", headers={"Authorization": f"Bearer {self.token}"}, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_ray(
    *, cpus: int = 4, gcs: int | None = None, more: Sequence[str] = (), environment: Mapping[str, str] = NONE
) -> Iterator[LiveRay]:
    """Start a head node with a job server and a token; end it with everything it started.

    `gcs`: its port; `more`: words for `ray start`; `environment`: of the node, beside what is always there.
    """
    # Paths of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="ft-"))
    token, port, metrics = secrets.token_hex(32), free_port(), free_port()
    gcs = gcs or free_port()
    words = ["--head", f"--port={gcs}", f"--num-cpus={cpus}", f"--temp-dir={folder}", "--include-dashboard=true"]
    words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--ray-client-server-port={free_port()}"]
    words += [f"--metrics-export-port={metrics}", *more]
    ray = LiveRay(f"http://127.0.0.1:{port}", token, folder, f"127.0.0.1:{gcs}", metrics)
    with running_node(ray, words, environment) as process:
        wait_until_it_answers(ray, process)
        yield ray
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_node(
    ray: LiveRay, words: Sequence[str], more: Mapping[str, str] = NONE
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `ray start` with these words; end it with everything it started."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    environment = {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray.token, "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_metrics_report_interval_ms": "500", **more}
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--object-store-memory=120000000", *words]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    with (ray.folder / "head.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        # Commands of jobs have sessions of their own, and outlive the node.
        started = tree(process.pid)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
        kill_all(started)


def tree(root: int) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    return []


def kill_all(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def wait_until_it_answers(ray: LiveRay, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    headers = {"Authorization": f"Bearer {ray.token}"}
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{ray.address}/api/jobs/", headers=headers, timeout=5).status_code == 200:
                return
        assert process.poll() is None, (ray.folder / "head.log").read_text()
        time.sleep(0.3)
    raise AssertionError(f"no job server after 90 s: {(ray.folder / 'head.log').read_text()}")


def until(said: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    """Return what is said as soon as something is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := said():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {what}")
