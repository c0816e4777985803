"""A store that speaks S3 on this machine's loopback, and working copies of it as on several machines."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from moto.server import ThreadedMotoServer

from ftray.storage.objects import Objects

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "key-of-the-tests", "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests"}


@dataclass(frozen=True)
class Store:
    """A running store."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.endpoint, "AWS_DEFAULT_REGION": "us-east-1"}

    def new_url(self) -> str:
        """Return a place in it that nobody has used."""
        return f"s3://{BUCKET}/{secrets.token_hex(6)}/runs"


@contextlib.contextmanager
def running_store() -> Iterator[Store]:
    """Run a store with one bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = Store(f"http://{host}:{port}")
    try:
        with speaking_to(store):
            import fsspec

            fsspec.filesystem("s3").mkdir(BUCKET)
        yield store
    finally:
        server.stop()


@contextlib.contextmanager
def speaking_to(store: Store) -> Iterator[None]:
    """Let this process and those it starts speak to a store."""
    with mock.patch.dict(os.environ, store.environment):
        yield


@contextlib.contextmanager
def on_machine(cache: Path, **more: str) -> Iterator[None]:
    """Work as on a machine of its own: with a working copy of its own."""
    with mock.patch.dict(os.environ, {"FTRAY_CACHE": str(cache), **more}):
        yield


def names(url: str) -> set[str]:
    """Return the objects of a place."""
    return set(Objects(url).find())
