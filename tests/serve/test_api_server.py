"""Over a real socket: clients that go, chunks that come at once, bodies without a length."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_server import Server, serving
from api_world import World, chat, world
from fastapi import FastAPI

from ftray.serve.api.limits import Limits

STEP_SECONDS = 0.05


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    @asynccontextmanager
    async def parts() -> AsyncIterator[tuple[FastAPI, World]]:
        async with world(tmp_path, step_seconds=STEP_SECONDS) as here:
            yield here.app(limits=Limits(body_bytes=100_000)), here

    with serving(parts) as found:
        yield found


def send(server: Server, body: dict[str, Any]) -> socket.socket:
    """Send a request on a connection of its own; return the connection."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=10)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def until(server: Server, running: int, *, seconds: float) -> float:
    started = time.perf_counter()
    while server.parts.engine.running != running:
        assert time.perf_counter() - started < seconds, f"{server.parts.engine.running} still run"
        time.sleep(0.005)
    return time.perf_counter() - started


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_goes_frees_its_slots(stream: bool, n: int, server: Server) -> None:
    connection = send(server, chat(max_tokens=500, stream=stream, n=n))
    until(server, n, seconds=5)
    if stream:
        assert b"200 OK" in connection.recv(4096)
    connection.close()
    assert until(server, 0, seconds=1.0) < 1.0
    assert server.parts.engine.cancelled == n
    metrics = httpx.get(f"{server.url}/metrics", trust_env=False).text
    if stream:
        assert 'ftray_answers_total{arm="",end="cancelled",experiment="",model="base"} 1.0' in metrics


def test_the_first_chunk_comes_before_the_rest_is_there(server: Server) -> None:
    started = time.perf_counter()
    tokens = 30
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=chat(max_tokens=tokens, stream=True), trust_env=False) as answer:
        for line in answer.iter_lines():
            if line:
                assert json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["content"] == "base"
                break
        assert time.perf_counter() - started < tokens * STEP_SECONDS / 4


def test_a_chunked_body_has_a_limit_too(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 10_000

    headers = {"content-type": "application/json"}
    url = f"{server.url}/v1/chat/completions"
    try:
        answer = httpx.post(url, content=endless(), headers=headers, trust_env=False)
    except httpx.WriteError:
        # The server has answered and closed before all was sent.
        return
    assert answer.status_code == 413


def test_a_keep_alive_connection_serves_one_request_after_the_other(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        for stream in (False, True, False):
            answer = client.post("/v1/chat/completions", json=chat(max_tokens=2, stream=stream))
            assert answer.status_code == 200
        assert client.post("/v1/chat/completions", json=chat("none")).status_code == 404
        assert client.get("/healthz").status_code == 200
    assert server.parts.engine.running == 0
