"""An ASGI application that can be told to take no more requests while those under way end."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
RETRY_AFTER_SECONDS = 5
ALWAYS_OPEN = "/healthz"
"""Still answers while the others are closed: the process lives."""


class Drain:
    """Pass requests on to an application, and count those under way; refuse new ones with 503 once closed."""

    def __init__(self, inner: Application) -> None:
        self._inner = inner
        self.under_way = 0
        self.is_closed = False

    def close(self) -> int:
        """Take no more requests; return how many are under way."""
        self.is_closed = True
        return self.under_way

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        if self.is_closed and scope["path"] != ALWAYS_OPEN:
            await _refuse(send)
            return
        self.under_way += 1
        try:
            await self._inner(scope, receive, send)
        finally:
            self.under_way -= 1


async def _refuse(send: Send) -> None:
    error = {"message": "The endpoint is shutting down.", "type": "server_error", "param": None, "code": "draining"}
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(RETRY_AFTER_SECONDS).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
