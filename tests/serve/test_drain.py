"""The door of the endpoint: open, then closed for everybody but those inside and the health route."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ftray.serve.drain import Drain


async def call(app: Drain, path: str) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    await app({"type": "http", "path": path, "headers": []}, receive, send)
    return sent


def test_a_closed_door_lets_those_inside_end_and_refuses_others() -> None:
    async def story() -> None:
        go_on = asyncio.Event()

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/healthz":
                await go_on.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})

        app = Drain(inner)
        running = asyncio.create_task(call(app, "/v1/models"))
        await asyncio.sleep(0)
        assert app.close() == 1
        refused = await call(app, "/v1/models")
        assert refused[0]["status"] == 503
        assert (b"retry-after", b"5") in refused[0]["headers"]
        assert (await call(app, "/healthz"))[0]["status"] == 200
        go_on.set()
        assert (await running)[0]["status"] == 200
        assert app.under_way == 0

    asyncio.run(story())


def test_a_request_that_fails_is_not_under_way_any_more() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("no")

    app = Drain(broken)
    with pytest.raises(RuntimeError):
        asyncio.run(call(app, "/v1/models"))
    assert app.under_way == 0
