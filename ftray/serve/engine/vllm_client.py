"""What the vllm engine asks of a server: vLLM's documented routes, and what their refusals mean."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx

from ftray.errors import InputError
from ftray.serve.asking import AdapterSource, EngineFull, EngineLost
from ftray.serve.engine.vllm_server import MAX_LOGPROBS

USUAL_LOGPROBS = 20
"""What a server tells that was not asked for more when it started."""
_TOKEN = "token_id:"


class VllmClient:
    """Requests to one server."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def base_card(self) -> dict[str, Any]:
        """Return the server's card of its base."""
        try:
            response = await self._http.get("/v1/models")
        except httpx.TransportError as error:
            raise EngineLost(f"vLLM's server does not answer: {error}") from error
        if response.status_code != httpx.codes.OK:
            raise _refusal(response)
        cards: list[dict[str, Any]] = [card for card in response.json()["data"] if not card.get("parent")]
        if not cards:
            raise EngineLost("vLLM's server names no base")
        return cards[0]

    async def load_lora(self, name: str, source: AdapterSource) -> None:
        """Let the server load an adapter under a name. Raises InputError for what it does not take."""
        body = {"lora_name": name, "lora_path": str(source.folder.resolve())}
        response = await self._post("/v1/load_lora_adapter", body)
        if response.status_code == httpx.codes.BAD_REQUEST and "already been loaded" in response.text:
            # By an engine before this one. A name is a digest, and what answers to it is proven.
            return
        if (
            response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED)
            and "lora" not in response.text
        ):
            raise InputError(
                "vLLM's server does not take adapters while it runs",
                kind="unsupported_server",
                given=response.text[:200],
                allowed="a server with LoRA, changed at run time",
                hint="Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.",
                path="serve.engine",
            )
        if response.status_code != httpx.codes.OK:
            raise InputError(
                f"vLLM's server does not load {source.name}: {_message(response)}",
                kind="unsupported_adapter",
                given=response.status_code,
                allowed="adapters that vLLM serves: plain LoRA, up to the server's --max-lora-rank",
                hint="Serve it with `engine: bank`.",
            )

    async def unload_lora(self, name: str) -> None:
        """Let the server forget an adapter."""
        await self._post("/v1/unload_lora_adapter", {"lora_name": name})

    async def next_logprobs(self, model: str, probe: Sequence[int], wanted: Sequence[int]) -> dict[int, float]:
        """Return the log-probabilities of `wanted` as the token after a probe, as far as the server tells them.

        Servers tell those of named tokens, or of the likeliest only; what is missing then is asked for as the last
        token of a prompt.
        """
        body: dict[str, Any] = {
            "model": model,
            "prompt": list(probe),
            "max_tokens": 1,
            "temperature": 0.0,
            "return_tokens_as_token_ids": True,
            "logprob_token_ids": list(wanted),
        }
        response = await self._post("/v1/completions", {**body, "logprobs": MAX_LOGPROBS})
        if response.status_code == httpx.codes.BAD_REQUEST:
            response = await self._post("/v1/completions", {**body, "logprobs": USUAL_LOGPROBS})
        if response.status_code != httpx.codes.OK:
            raise _refusal(response)
        told = response.json()["choices"][0]["logprobs"]["top_logprobs"][0]
        known = {token_of(name): float(value) for name, value in told.items()}
        missing = [token for token in wanted if token not in known]
        return known | await self._last_logprobs(model, probe, missing)

    async def _last_logprobs(self, model: str, probe: Sequence[int], tokens: Sequence[int]) -> dict[int, float]:
        """Return the log-probability of each token behind the probe, each from a prompt that ends with it."""
        if not tokens:
            return {}
        body = {
            "model": model,
            "prompt": [[*probe, token] for token in tokens],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
        }
        response = await self._post("/v1/completions", body)
        if response.status_code != httpx.codes.OK:
            raise _refusal(response)
        choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
        told = [(choice.get("prompt_logprobs") or [{}])[-1] for choice in choices]
        return {
            token: float(last[str(token)]["logprob"])
            for token, last in zip(tokens, told, strict=True)
            if str(token) in last
        }

    async def chunks(self, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a streamed completion."""
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise _refusal(response)
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    chunk: dict[str, Any] = json.loads(data)
                    if "error" in chunk:
                        raise EngineLost(f"vLLM's server: {chunk['error']}")
                    yield chunk
        except httpx.TransportError as error:
            raise EngineLost(f"vLLM's server does not answer: {error}") from error

    async def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        try:
            return await self._http.post(path, json=body)
        except httpx.TransportError as error:
            raise EngineLost(f"vLLM's server does not answer: {error}") from error


def token_of(name: str) -> int:
    """Return the token that the server calls so where it was asked for `return_tokens_as_token_ids`."""
    return int(name.removeprefix(_TOKEN))


def _message(response: httpx.Response) -> str:
    try:
        told = response.json()
    except ValueError:
        return response.text[:300]
    error = told.get("error", told) if isinstance(told, dict) else told
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]


def _refusal(response: httpx.Response) -> Exception:
    """Return what a refused request means."""
    status = response.status_code
    if status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        return EngineFull(float(response.headers.get("Retry-After", "1") or 1))
    if status in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY):
        return InputError(
            f"vLLM's server refuses the request: {_message(response)}",
            kind="refused_by_server",
            given=status,
            hint="Change what its message names.",
        )
    return EngineLost(f"vLLM's server answers {status}: {_message(response)}")
