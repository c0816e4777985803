"""The Ray cluster that RAY_ADDRESS names, and the first contact with it."""

from __future__ import annotations

import os
import re
import socket
from urllib.parse import urlsplit

from ftray.errors import InputError

VARIABLE = "RAY_ADDRESS"
AUTO = "auto"
"""Ray's word for one that runs on this machine."""
OWN = ("", "local")
"""Words for one that is started in this process."""
PLACE = re.compile(r"[^\s/?#@]+:[0-9]{1,5}")
ANSWER_SECONDS = 10.0
SETTINGS = b"\x04"
"""The type of HTTP/2's first frame (RFC 9113, 6.5): the fourth byte of its head."""
FRAME_HEAD_BYTES = 9
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + SETTINGS + bytes(5)
"""What a client begins with (RFC 9113, 3.4), with settings of none."""


def ray_address() -> str | None:
    """Return the cluster of RAY_ADDRESS as it stands there; None where Ray is started in this process."""
    given = os.environ.get(VARIABLE, "")
    return None if given in OWN else given


def is_dashboard(address: str) -> bool:
    """Return whether an address is one that takes submitted jobs, and no processes."""
    return "://" in address


def require_answer(address: str) -> None:
    """Raise InputError `bad_address`, or `no_cluster` where no Ray listens: Ray itself would try for many minutes.

    A cluster speaks HTTP/2 and greets with its settings; with RAY_USE_TLS it is enough that somebody listens.
    """
    if address == AUTO:
        return
    host, port = _place(address)
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            connection.sendall(HTTP2_GREETING)
            with connection.makefile("rb") as answer:
                greeting = answer.read(FRAME_HEAD_BYTES)
    except (OSError, UnicodeError) as error:
        raise no_cluster(address, f"no Ray cluster answers at {address} ({error})") from error
    if greeting[3:4] != SETTINGS:
        what = "what answers there is a web server" if greeting.startswith(b"HTTP") else "who listens there is no Ray"
        raise no_cluster(address, f"no Ray cluster answers at {address}: {what}, or one with TLS (RAY_USE_TLS=1)")


def _place(address: str) -> tuple[str, int]:
    """Return host and port of an address that processes join a cluster at. Raises InputError `bad_address`."""
    try:
        parts = urlsplit(f"//{address}")
        if PLACE.fullmatch(address) and parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise InputError(
        f"{VARIABLE}={address} is no address that a process joins a cluster at",
        kind="bad_address",
        given=address,
        allowed="HOST:PORT as `ray start` prints it (usually port 6379), or auto for a Ray on this machine",
        hint=f"Correct {VARIABLE}, or unset it to start Ray here. To send a job to a dashboard (http://HOST:8265): "
        "ftray submit JOB --address URL.",
    )


def no_cluster(address: str, message: str) -> InputError:
    """Return what is said of an address that no cluster answers at."""
    return InputError(
        message,
        kind="no_cluster",
        given=address,
        allowed=f"the address of a running cluster, or no {VARIABLE} to start Ray on this machine",
        hint=f"Check {VARIABLE} (port 6379 in most clusters, not the dashboard's) and that it is up (ray status).",
    )


def refused(address: str, error: Exception) -> InputError:
    """Return what is said of a cluster that answers and does not take this process: what Ray means by its error."""
    told = " ".join(f"{error} {error.__cause__ or ''}".split())
    if "Could not find any running Ray instance" in told:
        return no_cluster(address, "there is no Ray on this machine")
    if "Version mismatch" in told:
        return InputError(
            f"the cluster at {address} runs other versions. {told}",
            kind="version_mismatch",
            given=address,
            allowed="a cluster with the same Ray and the same Python",
            hint="Use the cluster's versions here. RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL=minor takes another patch of "
            "Python.",
        )
    if "node to connect to" in told:
        return InputError(
            f"this machine is no node of the cluster at {address}",
            kind="no_cluster",
            given=address,
            allowed=f"{VARIABLE} on a machine that is one of the cluster's nodes",
            hint="From any other machine: ftray submit JOB --address http://HEAD:8265, the cluster's dashboard.",
        )
    return bad_token(address, has_token=os.environ.get("RAY_AUTH_MODE", "").lower() == "token", joining=told)


def bad_token(address: str, *, has_token: bool, joining: str | None = None) -> InputError:
    """Return what is said of a token that a cluster refuses, or misses.

    `joining`: what Ray says to a process that joins; it does not always say that it is the token.
    """
    message = f"the cluster at {address} {'does not accept this token' if has_token else 'asks for a token'}"
    hint = "`ray get-auth-token` on the head node prints it; on Kubernetes it is in the cluster's secret."
    if joining is not None:
        message = f"the cluster at {address} answers, and does not let this process in: {joining}"
        hint += " Set RAY_AUTH_MODE=token with it; where the cluster has no token, unset that."
    return InputError(
        message,
        kind="bad_token",
        given="a token" if has_token else "no token",
        allowed="the cluster's token in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH",
        hint=hint,
    )
