"""The server of the vllm engine: one that runs already, or a child process that this engine starts and ends.

FTRAY_VLLM_URL names one that runs (and FTRAY_VLLM_KEY its API key); otherwise the vllm package starts one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx

from ftray.errors import InputError
from ftray.serve.asking import EngineLost

URL, KEY = "FTRAY_VLLM_URL", "FTRAY_VLLM_KEY"
START_SECONDS = 900.0
"""How long a server may take to load its base."""
STOP_SECONDS = 20.0
MAX_RANK = 256
MAX_LORAS = 32
MAX_LOGPROBS = 64
"""What a fingerprint keeps."""
DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where to ask."""

    url: str
    key: str | None
    process: subprocess.Popen[bytes] | None = None
    """The child, where there is one."""

    def client(self) -> httpx.AsyncClient:
        """Return a client; a read may take as long as an answer."""
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        timeout = httpx.Timeout(10.0, read=None)
        return httpx.AsyncClient(base_url=self.url, headers=headers, limits=limits, timeout=timeout, trust_env=False)


def find_server(model: str, *, slots: int, url: str | None = None) -> Server:
    """Return the server at `url`, else at FTRAY_VLLM_URL, else a child that begins to load `model`.

    Raises InputError `missing_extra` when there is neither a URL nor the vllm package.
    """
    url = url or os.environ.get(URL)
    if url is not None:
        return Server(url=url.rstrip("/").removesuffix("/v1"), key=os.environ.get(KEY))
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "the vllm engine needs vLLM, which is not installed, or the address of a server",
            kind="missing_extra",
            given="vllm",
            allowed=f"the vllm package, or {URL}",
            hint=f"pip install 'ftray[vllm]', on a machine with a GPU; or set {URL} to a running server; or serve with "
            "`engine: bank`.",
            path="serve.engine",
        )
    port, key = _free_port(), secrets.token_urlsafe(24)
    environment = {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_API_KEY": key}
    process = subprocess.Popen(serve_command(model, port=port, slots=slots), env=environment, stdout=sys.stderr)
    return Server(url=f"http://127.0.0.1:{port}", key=key, process=process)


def serve_command(model: str, *, port: int, slots: int) -> list[str]:
    """Return the command of a server that takes adapters while it runs."""
    beside = Path(sys.executable).parent / "vllm"
    program = str(beside) if beside.is_file() else shutil.which("vllm") or "vllm"
    return [
        program, "serve", model, "--host", "127.0.0.1", "--port", str(port), "--dtype", DTYPE,
        "--enable-lora", "--max-loras", str(min(slots, MAX_LORAS)), "--max-lora-rank", str(MAX_RANK),
        "--max-num-seqs", str(slots), "--max-logprobs", str(MAX_LOGPROBS),
    ]  # fmt: skip


async def wait_until_up(server: Server, client: httpx.AsyncClient, *, seconds: float = START_SECONDS) -> None:
    """Return when the server answers. Raises EngineLost when it ends, or does not come."""
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + seconds, 0.05
    while True:
        if server.process is not None and server.process.poll() is not None:
            raise EngineLost(f"vLLM's server ended with exit code {server.process.returncode} while it was starting")
        try:
            if (await client.get("/health")).status_code == httpx.codes.OK:
                return
        except httpx.TransportError as error:
            if loop.time() > end:
                raise EngineLost(f"vLLM's server at {server.url} does not answer: {error}") from error
        if loop.time() > end:
            raise EngineLost(f"vLLM's server at {server.url} is not healthy")
        await asyncio.sleep(pause)
        pause = min(1.0, 2 * pause)


def end_server(server: Server) -> None:
    """End the child, where there is one."""
    if server.process is None:
        return
    server.process.terminate()
    try:
        server.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
