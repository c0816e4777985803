"""The Ray cluster that RAY_ADDRESS names, and the first contact with it."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from ftray.errors import InputError

VARIABLE = "RAY_ADDRESS"
NEARBY = ("auto", "local")
"""Ray's words for one that runs on this machine, and for one that is started."""
ANSWER_SECONDS = 10.0
SETTINGS = b"\x04"
"""The type of HTTP/2's first frame (RFC 9113, 6.5): the fourth byte of its head."""
FRAME_HEAD_BYTES = 9
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + SETTINGS + bytes(5)
"""What a client begins with (RFC 9113, 3.4), with settings of none."""


def ray_address() -> str | None:
    """Return the cluster of RAY_ADDRESS: HOST:PORT, `auto` or `local`; None without it.

    Raises InputError `bad_address` for an address of another kind.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return None
    if given in NEARBY:
        return given
    try:
        parts = urlsplit(f"//{given}")
        is_place = "://" not in given and bool(parts.hostname) and parts.port is not None
    except ValueError:
        is_place = False
    if is_place:
        return given
    raise InputError(
        f"{VARIABLE}={given} is no address that a process joins a cluster at",
        kind="bad_address",
        given=given,
        allowed="HOST:PORT as `ray start` prints it (usually port 6379), or auto for a Ray on this machine",
        hint=f"Correct {VARIABLE}. What has a dashboard's address (http://HOST:8265) takes jobs: "
        "ftray submit JOB --address URL.",
    )


def require_answer(address: str) -> None:
    """Raise InputError `no_cluster` where no Ray listens: Ray itself would try for many minutes.

    A cluster speaks HTTP/2 and greets with its settings; with RAY_USE_TLS it is enough that somebody listens.
    """
    if address in NEARBY:
        return
    parts = urlsplit(f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            connection.sendall(HTTP2_GREETING)
            greeting = connection.recv(FRAME_HEAD_BYTES, socket.MSG_WAITALL)
    except OSError as error:
        raise no_cluster(address, f"no Ray cluster answers at {address} ({error})") from error
    if greeting[3:4] != SETTINGS:
        what = "what answers there is a web server" if greeting.startswith(b"HTTP") else "who listens there is no Ray"
        raise no_cluster(address, f"no Ray cluster answers at {address}: {what}")


def no_cluster(address: str, message: str) -> InputError:
    """Return what is said of an address that no cluster answers at."""
    return InputError(
        message,
        kind="no_cluster",
        given=address,
        allowed=f"the address of a running cluster, or no {VARIABLE} to start Ray on this machine",
        hint=f"Check {VARIABLE} (port 6379 in most clusters, not the dashboard's) and that it is up (ray status).",
    )


def refused(address: str, reason: str) -> InputError:
    """Return what is said of a cluster that answers and does not take this process."""
    if "Version mismatch" in reason:
        return InputError(
            f"the cluster at {address} runs other versions. {' '.join(reason.split())}",
            kind="version_mismatch",
            given=address,
            allowed="a cluster with the same Ray and the same minor version of Python",
            hint="Use the cluster's versions here.",
        )
    has_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    return InputError(
        f"the cluster at {address} answers, and does not let this process in",
        kind="bad_token",
        given="a token" if has_token else "no token",
        allowed="the cluster's token, with RAY_AUTH_MODE=token, in RAY_AUTH_TOKEN or the file of RAY_AUTH_TOKEN_PATH",
        hint="`ray get-auth-token` on the head node prints it. Where the cluster has none, unset RAY_AUTH_MODE.",
    )
