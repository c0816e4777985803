"""A real PostgreSQL server for the tests of a process, where its binaries are installed. It refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MISSING = "no PostgreSQL server here: neither initdb in PATH nor /usr/lib/postgresql"
ACCOUNTS = ("postgres", "nobody")


def find_binaries() -> Path | None:
    """Return the folder of initdb and postgres, the newest first."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]), reverse=True)
    on_path = shutil.which("initdb")
    candidates = [*found, *([Path(on_path).resolve()] if on_path else [])]
    return next((path.parent for path in candidates if (path.parent / "postgres").exists()), None)


@contextmanager
def postgres_server(binaries: Path) -> Iterator[PostgresServer]:
    """Run a server that listens on a socket in a folder of its own, and nowhere else."""
    # Not below pytest's folder: a socket's path is short, and another account has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="ftray-pg-"))
    server = PostgresServer(binaries, folder)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


class PostgresServer:
    """A server that can be stopped and started again."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries = binaries
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.databases = 0
        self.account: dict[str, object] = {}
        if os.geteuid() == 0:
            known = {one.pw_name: one for one in pwd.getpwall()}
            user = next(known[name] for name in ACCOUNTS if name in known)
            self.account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(folder, user.pw_uid, user.pw_gid)

    def initialise(self) -> None:
        options = ("-D", "data", "-U", "ftray", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        command = [str(self.binaries / "initdb"), *options]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=120, **self.account)

    def start(self) -> None:
        settings = ("fsync=off", "shared_buffers=16MB", "max_connections=20", "listen_addresses=")
        command = [str(self.binaries / "postgres"), "-D", "data", "-k", str(self.folder)]
        command += [word for setting in settings for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self.account)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        command = [str(self.binaries / "pg_isready"), "-q", "-h", str(self.folder)]
        while subprocess.run(command, check=False).returncode != 0:
            assert self.process is not None
            log = (self.folder / "log").read_text(encoding="utf-8")
            assert self.process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # a fast shutdown: it does not wait for connections
            self.process.wait(timeout=60)
            self.process = None

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        import psycopg

        self.databases += 1
        name = f"test{self.databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql://ftray@/{database}?host={self.folder}"
