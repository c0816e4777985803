"""Machines on one machine: network namespaces with addresses of their own, or, without them, processes on loopback.

A host in a namespace also has a host name of its own, which its hosts file gives 127.0.1.1 as Debian does, and a folder
of its own for Ray's session: what two hosts have in common is the shared folder and the installed packages.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

NETWORK = "10.77.0"
"""First three bytes of all addresses; the laptop has .1, hosts have those that follow."""
END_SECONDS = 20.0
BECOME = 'hostname "$1"; mount --bind "$2" /etc/hosts; mount --bind "$3" "$4"; shift 4; exec "$@"'
"""What a process does before it is one of a host's: host name, hosts file, folder of the session."""


class Host(Protocol):
    """A machine that can run processes, and be lost with all of them."""

    name: str
    address: str

    def start(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process there, in a session of its own: Ctrl-C is for whoever started it."""

    def kill(self) -> int:
        """End everything that runs there with SIGKILL, at once; return how many processes that were."""


class Network(Protocol):
    """Hosts that reach each other, and a laptop that reaches them."""

    kind: str
    laptop_address: str
    """By which hosts reach the laptop."""

    def add(self, name: str) -> Host:
        """Return a new host."""

    def on_laptop(self, words: Sequence[str]) -> list[str]:
        """Return the command that runs `words` on the laptop."""

    def free_port(self, usual: int) -> int:
        """Return a port that a host may take: the usual one where it is alone at its address."""

    def close(self) -> None:
        """End all that runs on the hosts, and take everything away."""


def open_network(folder: Path, session: Path, *, loopback: bool) -> Network:
    """Return namespaces where this machine allows them, else loopback. `session`: the hosts' folder for Ray."""
    if loopback:
        return Loopback()
    network = Namespaces(folder, session)
    try:
        network.open()
    except (subprocess.CalledProcessError, FileNotFoundError, PermissionError):
        network.close()
        return Loopback()
    return network


def kill_all(processes: Sequence[psutil.Process]) -> int:
    """Kill processes and wait until they are gone; return how many there were."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=END_SECONDS)
    return len(processes)


class NamespaceHost:
    """A host that is a network namespace, plugged into the laptop's bridge."""

    def __init__(self, name: str, address: str, namespace: str, folder: Path, session: Path) -> None:
        self.name, self.address, self.namespace = name, address, namespace
        self._session = session
        self._own_session = folder / "session"
        self._hosts = folder / "hosts"
        self._own_session.mkdir(parents=True)
        self._hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n", encoding="utf-8")

    def start(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        become = ["unshare", "--uts", "--mount", "sh", "-ec", BECOME, "sh", self.name, str(self._hosts)]
        become += [str(self._own_session), str(self._session)]
        return start(["ip", "netns", "exec", self.namespace, *become, *words], environment, log)

    def kill(self) -> int:
        killed, deadline = 0, time.monotonic() + END_SECONDS
        while (alive := self._processes()) and time.monotonic() < deadline:
            killed += kill_all(alive)
        return killed

    def _processes(self) -> list[psutil.Process]:
        found = []
        for pid in ip("netns", "pids", self.namespace).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


class Namespaces:
    """Namespaces on one bridge, which is in the laptop's namespace: this machine's own network is not touched."""

    kind = "network namespaces"
    laptop_address = f"{NETWORK}.1"

    def __init__(self, folder: Path, session: Path) -> None:
        self._folder, self._session = folder, session
        self._tag = f"ftray{os.getpid()}"
        self._laptop = f"{self._tag}-laptop"
        self._hosts: list[NamespaceHost] = []

    def open(self) -> None:
        """Make the laptop. Raises CalledProcessError where namespaces are not allowed."""
        self._session.mkdir(parents=True, exist_ok=True)
        ip("netns", "add", self._laptop)
        ip("-n", self._laptop, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._laptop, "addr", "add", f"{NETWORK}.1/24", "dev", "bridge")
        for name in ("lo", "bridge"):
            ip("-n", self._laptop, "link", "set", name, "up")
        probe = ["unshare", "--uts", "--mount", "true"]
        subprocess.run(self.on_laptop(probe), check=True, capture_output=True)

    def add(self, name: str) -> NamespaceHost:
        number = len(self._hosts) + 2
        namespace, cable, address = f"{self._tag}-{name}", f"cable{number}", f"{NETWORK}.{number}"
        ip("netns", "add", namespace)
        host = NamespaceHost(name, address, namespace, self._folder / name, self._session)
        self._hosts.append(host)
        ip("-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", cable)
        ip("-n", namespace, "link", "set", cable, "netns", self._laptop)
        ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", self._laptop, "link", "set", cable, "master", "bridge", "up")
        for device in ("lo", "eth0"):
            ip("-n", namespace, "link", "set", device, "up")
        return host

    def on_laptop(self, words: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self._laptop, *words]

    def free_port(self, usual: int) -> int:
        return usual

    def close(self) -> None:
        for host in self._hosts:
            with contextlib.suppress(subprocess.CalledProcessError):
                host.kill()
        for namespace in (*(host.namespace for host in self._hosts), self._laptop):
            with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError, PermissionError):
                ip("netns", "delete", namespace)


class LoopbackHost:
    """A host that is nothing but its processes."""

    address = "127.0.0.1"

    def __init__(self, name: str) -> None:
        self.name = name
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        process = start(words, environment, log)
        self._started.append(process)
        return process

    def kill(self) -> int:
        alive: list[psutil.Process] = []
        for process in self._started:
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(process.pid)
                alive += [*root.children(recursive=True), root]
        killed = kill_all(alive)
        for process in self._started:
            process.wait(END_SECONDS)
        return killed


class Loopback:
    """Hosts that share this machine's loopback address."""

    kind = "processes on loopback"
    laptop_address = "127.0.0.1"

    def __init__(self) -> None:
        self._hosts: list[LoopbackHost] = []

    def add(self, name: str) -> LoopbackHost:
        self._hosts.append(LoopbackHost(name))
        return self._hosts[-1]

    def on_laptop(self, words: Sequence[str]) -> list[str]:
        return list(words)

    def free_port(self, usual: int) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def close(self) -> None:
        for host in self._hosts:
            host.kill()


def start(words: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own; what it says goes to `log`."""
    with log.open("ab") as said:
        return subprocess.Popen(words, env=environment, stdout=said, stderr=said, start_new_session=True)


def ip(*words: str) -> str:
    """Run the `ip` command; return what it prints. Raises CalledProcessError."""
    if shutil.which("ip") is None:
        raise FileNotFoundError("ip")
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
