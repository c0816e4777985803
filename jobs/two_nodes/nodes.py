"""A Ray cluster of real nodes on these hosts, and the laptop that asks it: `ray start` as cluster/README.md says it."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hosts import Host, Network

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 300.0
PAUSE_SECONDS = 0.2
STORE_BYTES = 200_000_000
NAMES = ("second", "third", "fourth", "fifth", "sixth", "seventh")
"""Of nodes, in the order in which they join."""
CPUS = 1
"""Of each node: two workers never stand on one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command on the laptop did."""

    words: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def document(self) -> Any:
        """The JSON it printed."""
        try:
            return json.loads(self.stdout)
        except ValueError:
            raise SystemExit(f"{' '.join(self.words)} printed no JSON:\n{self.stdout}\n{self.stderr}") from None


def until(said: Callable[[], Any], what: str, *, seconds: float = PATIENCE_SECONDS) -> Any:
    """Return what is said as soon as it is something. The show ends where it is not, in time."""
    deadline = time.monotonic() + seconds
    while not (found := said()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(PAUSE_SECONDS)
    return found


class Cluster:
    """A head and the nodes that have joined it, with a token."""

    def __init__(self, network: Network, *, folder: Path, session: Path) -> None:
        self.network = network
        self._folder, self._session = folder, session
        self.token = secrets.token_hex(32)
        self._ports = {name: network.free_port(usual) for name, usual in (("gcs", 6379), ("dashboard", 8265))}
        self.serve_port = network.free_port(8000)
        self._hosts: dict[str, Host] = {}
        self._commands: dict[str, list[str]] = {}

    @property
    def hosts(self) -> list[Host]:
        """Those that are up, the head first."""
        return list(self._hosts.values())

    @property
    def head(self) -> Host:
        return self.hosts[0]

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:{self._ports['dashboard']}"

    def start(self) -> None:
        """Start the head, which keeps a CPU like every node; commands of jobs run there and reserve none."""
        host = self.network.add("head")
        words = ["--head", f"--port={self._ports['gcs']}", f"--temp-dir={self._session}", "--include-dashboard=true"]
        words += [f"--dashboard-host={host.address}", f"--dashboard-port={self._ports['dashboard']}"]
        words += [f"--ray-client-server-port={self.network.free_port(10001)}"]
        self._start(host, words)
        until(lambda: self.num_nodes() == 1, "a job server that answers")

    def next_name(self) -> str:
        """Return the name of a host that there has not been: a lost one is not made again."""
        return next(name for name in NAMES if name not in self._commands)

    def join(self, name: str) -> Host:
        """Start another node on a host of its own; return when the cluster has it."""
        host, before = self.network.add(name), self.num_nodes()
        self._start(host, [f"--address={self.head.address}:{self._ports['gcs']}"])
        until(lambda: self.num_nodes() == before + 1, f"{name} in the cluster")
        return host

    def lose(self, name: str) -> int:
        """Kill everything that runs on a node's host; return how many processes that were."""
        return self._hosts.pop(name).kill()

    def command(self, name: str) -> str:
        """Return the command that started a node."""
        return shlex.join(self._commands[name])

    def _start(self, host: Host, words: list[str]) -> None:
        command = ["start", "--block", f"--node-ip-address={host.address}", f"--num-cpus={CPUS}", *words]
        command += [f"--object-store-memory={STORE_BYTES}"]
        command += [f"--dashboard-agent-listen-port={self.network.free_port(52365)}"]
        self._hosts[host.name], self._commands[host.name] = host, ["ray", *command]
        # The hosts share this machine's home; their working copies of a store are their own.
        environment = self._environment() | {"FTRAY_CACHE": str(self._folder / "caches" / host.name)}
        host.start([str(BIN / "ray"), *command], environment, self._folder / f"{host.name}.log")

    def _environment(self) -> dict[str, str]:
        """Return what a node's shell has: the token, and the environment in which `python` has Ray and ftray."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "FTRAY_", "PYTHON"))}
        return kept | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
        }

    def num_nodes(self) -> int:
        """Return how many nodes are alive, 0 while nobody answers."""
        answer = self.ftray("status", "--json")
        return int(answer.document["cluster"]["nodes"]) if answer.exit_code == 0 else 0

    def ftray(self, *words: str, **environment: str) -> Answer:
        """Run ftray on the laptop, to its end."""
        return self.run(sys.executable, "-m", "ftray", *words, **environment)

    def run(self, *words: str, **environment: str) -> Answer:
        """Run a command on the laptop, to its end."""
        started = time.monotonic()
        process = self.begin(*words, **environment)
        try:
            stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.monotonic() - started
        return Answer(words=words, exit_code=process.returncode, stdout=stdout, stderr=stderr, seconds=seconds)

    def begin(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """Start a command on the laptop, with `more` in its environment."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        kept.pop("FTRAY_STORAGE", None)
        environment = kept | {
            "PYTHONPATH": str(REPOSITORY),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "COLUMNS": "160",
            **more,
        }
        return subprocess.Popen(
            self.network.on_laptop(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def detach(self, *arguments: str, enough: Callable[[], Any], what: str) -> Answer:
        """Run ftray on the laptop until there is enough of it, then press Ctrl-C."""
        started = time.monotonic()
        words = (sys.executable, "-m", "ftray", *arguments)
        process = self.begin(*words)
        try:
            until(lambda: process.poll() is not None or enough(), what)
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
        seconds = time.monotonic() - started
        return Answer(words=words, exit_code=process.returncode, stdout=stdout, stderr=stderr, seconds=seconds)
