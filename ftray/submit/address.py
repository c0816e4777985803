"""Where the cluster's job server answers, and the token it is asked with."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from ftray.errors import InputError
from ftray.train.address import AUTO

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Ray's dashboard on this machine, or the near end of `kubectl port-forward`."""
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
HINT = "Give the address of the dashboard, whose port is usually 8265: --address http://HEAD:8265."


def job_server(flag: str | None, environment: Mapping[str, str]) -> str:
    """Return the URL of the job server, or `auto` for a Ray on this machine: the flag, else the environment's.

    Raises InputError `bad_address` for an address of another kind.
    """
    given = flag or next((environment[name] for name in ADDRESS_VARIABLES if environment.get(name)), DEFAULT_ADDRESS)
    if given == AUTO:
        return AUTO
    scheme, separator, place = given.partition("://")
    if not separator:
        scheme, place = "http", given
    if scheme not in ("http", "https") or not place.strip("/"):
        raise InputError(
            f"{given!r} is no address of a job server",
            kind="bad_address",
            given=given,
            allowed="http://HOST:PORT, https://HOST:PORT, HOST:PORT, or auto for a Ray on this machine",
            hint=HINT,
        )
    return f"{scheme}://{place.rstrip('/')}"


def auth_token(environment: Mapping[str, str]) -> str | None:
    """Return the token that Ray's variables name; a token in the home folder counts in RAY_AUTH_MODE=token only."""
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    given = environment.get("RAY_AUTH_TOKEN_PATH")
    if not given and environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    file = Path(given).expanduser() if given else Path.home() / ".ray" / "auth_token"
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        if not given:
            return None
        raise InputError(
            f"there is no token at {file}",
            kind="bad_token",
            given=f"RAY_AUTH_TOKEN_PATH={given}",
            allowed="a file that holds the cluster's token",
            hint="Correct the path, or set RAY_AUTH_TOKEN.",
        ) from None


def is_own(address: str) -> bool:
    """Return whether an address is one of this machine's: only then a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
