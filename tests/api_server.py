"""The API behind a real uvicorn on loopback, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

START_SECONDS = 60.0
Parts = Callable[[], AbstractAsyncContextManager[tuple[FastAPI, Any]]]


@dataclass
class Server:
    """A server that answers."""

    url: str
    parts: Any
    """What the application stands on."""
    loop: asyncio.AbstractEventLoop


@contextmanager
def serving(parts: Parts) -> Iterator[Server]:
    """Serve the application that `parts` yields, until the end of this block."""
    listener = socket.create_server(("127.0.0.1", 0))
    servers: list[uvicorn.Server] = []
    ready = threading.Event()
    found: list[Server] = []
    failed: list[BaseException] = []

    async def main() -> None:
        async with parts() as (app, own):
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
            server = uvicorn.Server(config)
            servers.append(server)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            found.append(Server(url=url, parts=own, loop=asyncio.get_running_loop()))
            task = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started and not task.done():
                await asyncio.sleep(0.01)
            ready.set()
            await task

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="server")
    thread.start()
    assert ready.wait(START_SECONDS), "it does not start"
    try:
        assert not failed, failed
        yield found[0]
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(START_SECONDS)
        listener.close()
    assert not failed, failed
