"""One process at a time, among machines that share nothing but a store: what a lock of the kernel is in a folder.

Each tenure is an object of its own, created where there is none and numbered: of any number of contenders one creates
the next. Its holder writes it again and again. Whoever wants it watches: a tenure that has been silent for as long as
it holds is over, by the watcher's own clock alone, so that clocks of machines need not agree. A holder that finds a
higher number has lost it, and publishes no more; between two looks it may still be putting one object.

Processes of one machine hold a lock of the kernel in the working copy first: what this machine has left, it takes back
at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from ftray.artifacts import now
from ftray.errors import InputError, RunError
from ftray.storage.objects import Objects, encoded

LEASE_SECONDS = 30.0
RENEW_SECONDS = 5.0
WATCH_SECONDS = 0.5
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LEEWAY_SECONDS = 30.0
_TENURE = re.compile(r"(\d{8})\.json$")


class Held(Protocol):
    """What allows to write."""

    def verify(self) -> None:
        """Raise LeaseLost once another process has it; what has not been verified for a while is asked now."""


class LeaseLost(RunError):
    """Another process holds what this one held: it must write no more."""


class Lease:
    """A lease on what `what` calls. `machine` tells this machine's processes from others'."""

    def __init__(
        self,
        objects: Objects,
        name: str,
        *,
        what: str,
        machine: str,
        seconds: float = LEASE_SECONDS,
        every: float = RENEW_SECONDS,
    ) -> None:
        self._objects = objects
        self._name = name
        self._what = what
        self._machine = machine
        self._seconds, self._every = seconds, every
        self._number = 0
        self._beats = 0
        self._token = secrets.token_hex(8)
        self._verified = 0.0
        self._loss: LeaseLost | None = None
        self._renewing = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def number(self) -> int:
        """Which tenure it is."""
        return self._number

    def acquire(self) -> None:
        """Begin the next tenure. Raises InputError `run_locked` while another holder renews the present one."""
        while True:
            number, record = self._newest()
            if record is not None and not self._is_over(record):
                self._watch(number, record)
            self._number, began = number + 1, time.monotonic()
            if self._objects.create(self._tenure(self._number), self._content()):
                self._verified = began
                break
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def _is_over(self, record: dict[str, Any]) -> bool:
        return bool(record["released"]) or record["machine"] == self._machine

    def _watch(self, number: int, record: dict[str, Any]) -> None:
        """Return when the tenure has been silent for as long as it holds, or has been released."""
        deadline = time.monotonic() + float(record["seconds"])
        while time.monotonic() < deadline:
            time.sleep(WATCH_SECONDS)
            number_now, seen = self._newest()
            if seen is not None and seen["released"]:
                return
            if (number_now, seen) != (number, record):
                raise InputError(
                    f"{self._what} is already being worked on ({(seen or record)['holder']})",
                    kind="run_locked",
                    given=self._what,
                    hint="Wait for it, or end that process; then run the same command again: it resumes.",
                )

    def _newest(self) -> tuple[int, dict[str, Any] | None]:
        numbers = self._numbers()
        if not numbers:
            return 0, None
        return numbers[-1], self._objects.read_json(self._tenure(numbers[-1]))

    def _numbers(self) -> list[int]:
        return tenures(self._objects, self._name)

    def _tenure(self, number: int) -> str:
        return f"{self._name}/{number:08d}.json"

    def _content(self, *, released: bool = False) -> bytes:
        return encoded(
            {
                "schema": "ftray/lease/1",
                "holder": f"process {os.getpid()} on {socket.gethostname()}",
                "machine": self._machine,
                "token": self._token,
                "beat": self._beats,
                "renewed_at": now(),
                "seconds": self._seconds,
                "released": released,
            }
        )

    def _run(self) -> None:
        while not self._done.wait(self._every):
            try:
                self._renew()
            except LeaseLost:
                return
            except RunError:
                continue  # The store does not answer: nothing can be published either, and `verify` asks again.

    def _renew(self) -> None:
        with self._renewing:
            self._require_kept()
            began = time.monotonic()
            if self._numbers()[-1:] != [self._number]:
                self._loss = lost(self._what)
                self._require_kept()
            self._beats += 1
            self._objects.write(self._tenure(self._number), self._content())
            self._verified = began

    def _require_kept(self) -> None:
        if self._loss is not None:
            raise self._loss

    def verify(self) -> None:
        """Raise LeaseLost once another process has it; what has not been verified for a while is asked now."""
        self._require_kept()
        if time.monotonic() - self._verified > self._seconds / 2:
            self._renew()

    def release(self) -> None:
        """End the tenure; others need not wait for it."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(RunError):
            if self._loss is None and self._numbers()[-1:] == [self._number]:
                self._objects.write(self._tenure(self._number), self._content(released=True))
                for number in self._numbers()[:-1]:
                    self._objects.remove(self._tenure(number))


class Tenancy:
    """A tenure that another process holds and this one writes under: of a command, for the workers that it started."""

    def __init__(self, objects: Objects, name: str, number: int, *, what: str, seconds: float = LEASE_SECONDS) -> None:
        self._objects = objects
        self._name = name
        self._number = number
        self._what = what
        self._seconds = seconds
        self._loss: LeaseLost | None = None
        self._verified = 0.0

    def verify(self) -> None:
        """Raise LeaseLost once there is a later tenure."""
        if self._loss is not None:
            raise self._loss
        began = time.monotonic()
        if began - self._verified < self._seconds / 2:
            return
        if tenures(self._objects, self._name)[-1:] != [self._number]:
            self._loss = lost(self._what)
            raise self._loss
        self._verified = began


def tenures(objects: Objects, name: str) -> list[int]:
    """Return the numbers of a lease's tenures that are there, the present one last."""
    found = (_TENURE.search(one) for one in objects.find(name))
    return sorted(int(match.group(1)) for match in found if match)


def lost(what: str) -> LeaseLost:
    """Return the error of a process whose tenure is over."""
    return LeaseLost(
        f"another process has taken over {what}: this one was silent for too long",
        kind="node",
        given=what,
        hint="Nothing that is there is lost: the other process goes on with it.",
    )


@contextlib.contextmanager
def hold(objects: Objects, name: str, *, what: str, machine: str) -> Iterator[Lease]:
    """Hold a lease inside this block. Raises InputError `run_locked` while another process holds it."""
    lease = Lease(objects, name, what=what, machine=machine)
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


def machine_id(cache: Path) -> str:
    """Return what tells this machine's working copies from others': made once, with the cache, and what runs now.

    An image of a machine has its cache, too; a machine that was started anew waits as another one would.
    """
    file = cache / "machine"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f".machine.{secrets.token_hex(4)}"
        part.write_text(secrets.token_hex(16), encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(part, file)
        part.unlink()
    boot = BOOT_ID.read_text(encoding="utf-8").strip() if BOOT_ID.exists() else ""
    return f"{file.read_text(encoding='utf-8').strip()} {boot}".strip()


def is_leased(folder: Path, *, leeway: float = LEEWAY_SECONDS) -> bool:
    """Return whether the newest tenure, as it was fetched, says that somebody works: for people only.

    It trusts the clocks: `leeway` is the seconds that they may differ.
    """
    tenures = sorted(folder.glob("*.json"))
    if not tenures:
        return False
    record = json.loads(tenures[-1].read_bytes())
    age = (datetime.now(UTC) - datetime.fromisoformat(record["renewed_at"])).total_seconds()
    return not record["released"] and age < float(record["seconds"]) + leeway
