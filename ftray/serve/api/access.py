"""What every route does before its own work: who asks, may they, how often, and is the body small and whole.

It is part of the route itself, so that a route without it cannot be written: `scoped` makes the class of its routes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message

from ftray.observe.spans import NOTHING, Span, span
from ftray.serve.api.keys import SCOPES, Caller, Keyring, Scope
from ftray.serve.api.limits import Limits, Rate
from ftray.serve.api.metrics import Meters
from ftray.serve.api.problems import Problem, status_of
from ftray.serve.api.strict_json import read_strictly

Need = Scope | Literal["any", "open"]
"""A scope; or any key; or nothing, which health routes need."""
NEEDS: tuple[Need, ...] = (*SCOPES, "any", "open")
UNTRACED: tuple[Need, ...] = ("metrics", "open")
"""What machines ask every few seconds: spans of it would hide the others."""
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True)
class Access:
    """Who is let in, and with how much."""

    keys: Keyring
    rate: Rate
    limits: Limits

    def admit(self, request: Request, need: Need) -> Caller:
        """Return who asks. Raises Problem: 401 without a key, 403 with one for other things, 429 for too many."""
        if need == "open":
            return Caller(scopes=frozenset())
        if self.keys.is_open:
            _require_own_machine(request)
        caller = self.keys.identify(request.headers.get("authorization"))
        if caller is None:
            raise Problem(
                401,
                "Give a valid API key: Authorization: Bearer KEY.",
                code="invalid_api_key",
            )
        if not caller.may(None if need == "any" else need):
            raise Problem(403, f"This key has not the scope {need!r}.", code="missing_scope", kind="permission_error")
        if caller.name is not None:
            self.rate.take(caller.name)
        return caller


def _require_own_machine(request: Request) -> None:
    """Raise Problem (403) for what a foreign web page sends through this machine's own browser.

    Without keys whoever is on this machine may do everything, and a page that somebody looks at is not: it is told by
    its Origin, or, where its name has been made to point here, by the Host.
    """
    origin = request.headers.get("origin")
    asked = [request.url.hostname, urlsplit(origin).hostname if origin is not None else "localhost"]
    if request.headers.get("sec-fetch-site") == "cross-site" or not all(map(_is_own, asked)):
        raise Problem(
            403,
            "Without API keys only this machine itself is answered, by a loopback name. Make keys: ftray keys add.",
            code="foreign_origin",
            kind="permission_error",
        )


def _is_own(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


class GuardedRoute(APIRoute):
    """A route that says what it needs."""

    need: Need


def scoped(access: Access, need: Need, meters: Meters) -> type[GuardedRoute]:
    """Return the class of routes that need a scope; each of their requests is counted."""

    class Scoped(GuardedRoute):
        def get_route_handler(self) -> Handler:
            inner = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                caller = access.admit(request, need)
                body = _Body(request, access.limits)
                checked = JsonRequest(request.scope, body.receive)
                checked.state.caller = caller
                return await inner(checked)

            def note(told: Span, status: int) -> None:
                meters.request(self.path, status)
                told.set(http__response__status_code=status)

            async def counted(request: Request) -> Response:
                with traced(request, self.path, need) as told:
                    try:
                        response = await guarded(request)
                    except Exception as error:
                        note(told, status_of(error))
                        raise
                    note(told, response.status_code)
                    return response

            return counted

    Scoped.need = need
    return Scoped


def traced(request: Request, path: str, need: Need) -> Span:
    """Return the span of a request, below its caller's."""
    if need in UNTRACED:
        return NOTHING
    return span(
        f"{request.method} {path}",
        parent=request.headers.get("traceparent"),
        # What the caller did wrong is no error of the endpoint's.
        blames=lambda error: isinstance(error, Exception) and status_of(error) >= 500,
        http__request__method=request.method,
        http__route=path,
    )


def caller_of(request: Request) -> Caller:
    """Return who sent a request that a route has let in."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller


class _Body:
    """Reads a body up to its limit, whatever Content-Length says or does not say."""

    def __init__(self, request: Request, limits: Limits) -> None:
        self._receive: Callable[[], Awaitable[Message]] = request.receive
        self._limits = limits
        self._left = limits.body_bytes
        self._whole = False
        self._until = asyncio.get_running_loop().time() + limits.body_seconds
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > limits.body_bytes:
            _too_large(limits)

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError as error:
            raise HTTPException(408, "The body did not come in time.", {"connection": "close"}) from error
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._left < 0:
                _too_large(self._limits)
        return message


def _too_large(limits: Limits) -> NoReturn:
    # What is read inside FastAPI comes out of it as it is only where it is an HTTPException.
    raise HTTPException(413, f"The body is longer than {limits.body_bytes} bytes.", {"connection": "close"})


class JsonRequest(Request):
    """A request whose JSON can be passed on."""

    async def json(self) -> Any:
        """Return the body. Raises JSONDecodeError for what is no such JSON."""
        if not hasattr(self, "_json"):
            try:
                text = (await self.body()).decode()
            except UnicodeDecodeError as error:
                raise json.JSONDecodeError("it is not UTF-8", "", 0) from error
            self._json = read_strictly(text)
        return self._json
