"""The first contact with a cluster: whether somebody answers there, who it is, and whether our token is taken."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress

import httpx

from ftray.errors import InputError
from ftray.submit.address import HINT
from ftray.train.address import AUTO, bad_token

CONNECT_SECONDS = 4.0
FIRST_ANSWER_SECONDS = 9.0
"""How long an address may stay silent, whatever the reason: names that do not resolve, firewalls that drop."""


def first_answer(address: str, headers: Mapping[str, str]) -> str:
    """Return the cluster's version of Ray. Raises InputError `no_cluster` or `bad_token`, within ten seconds."""
    answers: list[httpx.Response | Exception] = []

    def ask() -> None:
        try:
            answers.append(httpx.get(f"{address}/api/version", headers=dict(headers), timeout=CONNECT_SECONDS))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            answers.append(error)

    # A name server that does not answer blocks without a limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(FIRST_ANSWER_SECONDS)
    answer = answers[0] if answers else TimeoutError("no answer")
    if isinstance(answer, Exception):
        raise no_cluster(address, f"nobody answers at {address} ({type(answer).__name__})") from answer
    if answer.status_code in (401, 403):
        raise bad_token(address, has_token=bool(headers))
    with suppress(ValueError):
        version = answer.json().get("ray_version") if answer.status_code == 200 else None
        if isinstance(version, str):
            return version
    raise no_cluster(address, f"what answers at {address} is no job server of Ray (status {answer.status_code})")


def no_cluster(address: str, message: str) -> InputError:
    """Return what is said of an address that no cluster answers at."""
    return InputError(
        message,
        kind="no_cluster",
        given=address,
        allowed="the dashboard of a running Ray cluster, which serves the Jobs API",
        hint=f"{HINT} On Kubernetes: kubectl port-forward service/NAME-head-svc 8265.",
    )


def own_address() -> str:
    """Return the job server of the Ray on this machine."""
    from ray.dashboard.utils import ray_address_to_api_server_url

    try:
        address: str = ray_address_to_api_server_url(None)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise no_cluster(AUTO, "there is no Ray on this machine") from error
    return address
