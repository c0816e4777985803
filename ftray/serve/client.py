"""Speak to a running endpoint: what `ftray experiment` and the jobs that replay traffic use."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

import httpx

from ftray.errors import FtrayError, InputError, RunError

DEFAULT_URL = "http://127.0.0.1:8000"
SECONDS = 30.0
"""Longest wait for an answer that is no generated text."""
REFUSED = {400, 401, 403, 404, 413, 422}


class Endpoint:
    """One endpoint, and who asks it."""

    def __init__(self, url: str | None = None, *, key: str | None = None, seconds: float = SECONDS) -> None:
        """`url`: else FTRAY_URL, else the default address; `key`: else FTRAY_API_KEY, else none."""
        self.url = (url or os.environ.get("FTRAY_URL") or DEFAULT_URL).rstrip("/")
        key = key or os.environ.get("FTRAY_API_KEY")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx.Client(base_url=self.url, headers=headers, timeout=seconds, trust_env=False)
        except httpx.InvalidURL as error:
            raise self._unreachable(f"that is no address ({error})") from error

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str) -> Any:
        """Return what a route says."""
        return self._ask("GET", path).json()

    def text(self, path: str) -> str:
        """Return what a route says, as text."""
        return self._ask("GET", path).text

    def post(self, path: str, body: dict[str, Any], *, headers: dict[str, str] | None = None) -> Any:
        """Send a record; return the answer.

        Raises InputError for what the endpoint refuses, RunError for a conflict or an endpoint that is too busy.
        """
        return self._ask("POST", path, body=body, headers=headers).json()

    def _ask(
        self, method: str, path: str, *, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        try:
            answer = self._client.request(method, path, json=body, headers=headers)
        except httpx.TimeoutException as error:
            raise RunError(
                f"the endpoint at {self.url} did not answer in time",
                kind="node",
                given=path,
                hint="Ask again; /metrics shows how busy it is.",
            ) from error
        except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
            raise self._unreachable("nobody answers there") from error
        if answer.status_code < 400:
            return answer
        raise _refusal(answer, path)

    def _unreachable(self, why: str) -> InputError:
        return InputError(
            f"there is no endpoint at {self.url}: {why}",
            kind="no_endpoint",
            given=self.url,
            allowed="the address that `ftray serve` prints",
            hint="Start one with `ftray serve`, or name another with --url or FTRAY_URL.",
        )


def _refusal(answer: httpx.Response, path: str) -> FtrayError:
    """Return an error of the API as one of ours."""
    try:
        error = answer.json()["error"]
        message, param, code = error["message"], error.get("param"), error.get("code")
    except (ValueError, KeyError, TypeError):
        message, param, code = f"{path} answers {answer.status_code}: {answer.text[:200]}", None, None
    hint = {
        401: "Set FTRAY_API_KEY, or give --key.",
        403: "Use a key with the scope that this needs; `ftray keys list` shows the scopes.",
    }.get(answer.status_code, "")
    if answer.status_code in REFUSED:
        return InputError(message, kind=str(code or answer.status_code), given=path, hint=hint, path=param)
    return RunError(
        message, kind=str(code or answer.status_code), given=path, hint="Look again, and repeat it if need be."
    )
