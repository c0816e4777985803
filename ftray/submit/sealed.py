"""Secrets on their way to a job: named on the command line, shown nowhere.

What the Jobs API is told (environment, metadata, entrypoint) is kept and shown to everybody who may list jobs. So the
values are split in two halves of which neither says anything: a random pad, which the job's environment names, and the
values XOR that pad, an entry of the cluster's key-value store that the driver deletes when it ends. Driver and workers
put them together and set them in their own environment. Whoever may run code on the cluster while the job runs can do
the same: Ray does not separate its users.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftray.errors import InputError
from ftray.train.secrecy import SECRET_NAMES, secret_names

TICKET = "FTRAY_SECRETS"
"""Environment of a job with secrets: the entry's name and the pad."""
SETUP_HOOK = "ftray.submit.sealed.receive"
"""What Ray calls when a worker of the job starts."""
MOST_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """Secrets in two halves."""

    entry: str
    """Name of the entry in the cluster's key-value store: that of a package, which is how the Jobs API writes there."""
    content: bytes
    ticket: str

    def __repr__(self) -> str:
        return f"Sealed({self.entry})"


def seal(values: Mapping[str, str]) -> Sealed:
    """Split secrets. Raises InputError `too_large`."""
    plain = json.dumps(dict(values)).encode()
    if len(plain) > MOST_BYTES:
        raise InputError(
            f"the secrets have {len(plain):,} bytes; at most {MOST_BYTES:,} travel with a job",
            kind="too_large",
            given=sorted(values),
            allowed="tokens and keys",
            hint="Keep a larger secret in a file that the cluster's nodes mount.",
        )
    pad = secrets.token_bytes(len(plain))
    entry = f"_ftray_sealed_{secrets.token_hex(16)}.zip"
    return Sealed(entry=entry, content=_xor(plain, pad), ticket=f"{entry} {pad.hex()}")


def unseal(content: bytes, ticket: str) -> dict[str, str]:
    """Put the two halves together."""
    pad = bytes.fromhex(ticket.split()[1])
    values: dict[str, str] = json.loads(_xor(content, pad))
    return values


def entry_of(environment: Mapping[str, str]) -> str | None:
    """Return the name of the entry that a job's environment speaks of."""
    ticket = environment.get(TICKET)
    return ticket.split()[0] if ticket else None


def receive() -> None:
    """Set this job's secrets in the environment of this process; nothing where it has none.

    Raises InputError `missing_secrets` when their entry is gone.
    """
    ticket = os.environ.get(TICKET)
    if ticket is None:
        return
    content = _read(ticket.split()[0])
    if not content:
        raise InputError(
            "the secrets of this submission are gone",
            kind="missing_secrets",
            given=sorted(secret_names(os.environ)) or None,
            hint="They are deleted when a submission ends. Submit the job again.",
        )
    values = unseal(content, ticket)
    os.environ.update(values)
    os.environ[SECRET_NAMES] = ",".join(sorted(values))


def receive_as_driver() -> None:
    """Set the secrets in this process, and delete their entry when it ends: its workers have ended then, too."""
    receive()
    if TICKET in os.environ:
        atexit.register(_delete, os.environ[TICKET].split()[0])


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(left ^ right for left, right in zip(one, other, strict=True))


def _store() -> Any:
    """Return the cluster's key-value store: this process's, or, before and after its Ray, by the job's address."""
    import ray._raylet
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    raylet: Any = ray._raylet  # has no types
    return internal_kv_get_gcs_client() or raylet.GcsClient(address=os.environ["RAY_ADDRESS"])


def _read(entry: str) -> bytes | None:
    content: bytes | None = _store().internal_kv_get(_key(entry), None)
    return content


def _delete(entry: str) -> None:
    _store().internal_kv_del(_key(entry), False, None)


def _key(entry: str) -> bytes:
    """Return where the Jobs API puts a package of this name."""
    return f"gcs://{entry}".encode()
