"""A stand-in of vLLM's OpenAI server: its documented routes over a real tiny model with PEFT, on loopback.

It has the faults a server may have: it can answer with the base whatever it is asked for, take no adapters, tell few
log-probabilities, or know no `logprob_token_ids`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from peft import PeftModel

from ftray.model.base import load_model, load_tokenizer

BASE_NAME = "served-base"


@dataclass(kw_only=True)
class StandIn:
    """What the server does, and what it has been asked."""

    base: Path
    answers_as_base: bool = False
    takes_adapters: bool = True
    max_logprobs: int = 64
    knows_token_ids: bool = True
    tells_of_prompts: bool = True
    seconds_a_token: float = 0.0
    loras: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    key: str | None = None

    def __post_init__(self) -> None:
        self.model: Any = load_model(str(self.base)).eval()
        self.tokenizer = load_tokenizer(str(self.base))

    def named(self, name: str) -> Any:
        return self.model if name == BASE_NAME or self.answers_as_base else self.loras[name]

    @torch.no_grad()
    def next(self, name: str, tokens: list[int]) -> torch.Tensor:
        logits: torch.Tensor = self.named(name)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        return logits.log_softmax(dim=-1)


def error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": status}}, status_code=status)


def make_app(stand_in: StandIn) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def check(request: Request, follow: Any) -> Response:
        if stand_in.key is not None and request.headers.get("Authorization") != f"Bearer {stand_in.key}":
            return error(401, "Unauthorized")
        answer: Response = await follow(request)
        return answer

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        base = {"id": BASE_NAME, "object": "model", "root": str(stand_in.base), "parent": None, "max_model_len": 200}
        loras = [{"id": name, "object": "model", "parent": BASE_NAME} for name in stand_in.loras]
        return {"object": "list", "data": [base, *loras]}

    if stand_in.takes_adapters:

        @app.post("/v1/load_lora_adapter")
        async def load(request: Request) -> Response:
            body = await request.json()
            name = body["lora_name"]
            if name in stand_in.loras:
                return error(400, f"The lora adapter '{name}' has already been loaded.")
            if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
                return error(404, f"Loading lora {name} failed: No adapter found for {body['lora_path']}")
            stand_in.loras[name] = PeftModel.from_pretrained(load_model(str(stand_in.base)), body["lora_path"]).eval()
            return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

        @app.post("/v1/unload_lora_adapter")
        async def unload(request: Request) -> Response:
            name = (await request.json())["lora_name"]
            if stand_in.loras.pop(name, None) is None:
                return error(404, f"The lora adapter '{name}' cannot be found.")
            return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await request.json()
        stand_in.asked.append(body)
        if body["model"] != BASE_NAME and body["model"] not in stand_in.loras:
            return error(404, f"The model `{body['model']}` does not exist.")
        if (body.get("logprobs") or 0) > stand_in.max_logprobs:
            return error(400, f"Requested sample logprobs of {body['logprobs']}, which is greater than max allowed")
        if isinstance(body["prompt"][0], list):
            return JSONResponse({"choices": [of_prompt(stand_in, body, index) for index in range(len(body["prompt"]))]})
        if not body.get("stream"):
            whole = [chunk async for chunk in chunks(stand_in, body)]
            return JSONResponse({"choices": [joined(whole)]})
        return StreamingResponse(events(stand_in, body), media_type="text/event-stream")

    return app


async def events(stand_in: StandIn, body: dict[str, Any]) -> AsyncIterator[str]:
    stand_in.running += 1
    try:
        count = 0
        async for choice in chunks(stand_in, body):
            count += len(choice["token_ids"])
            yield f"data: {json.dumps({'object': 'text_completion', 'choices': [choice]})}\n\n"
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        stand_in.running -= 1


async def chunks(stand_in: StandIn, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Generate token by token; sampling is by the seed alone, as far as these tests need it."""
    prompt, answer, said = list(body["prompt"]), [], ""
    generator = torch.Generator().manual_seed(body.get("seed", 0) % 2**31)
    stops = set(body.get("stop_token_ids") or [])
    while True:
        logprobs = stand_in.next(body["model"], prompt + answer)
        if body["temperature"] > 0:
            token = int(torch.multinomial((logprobs / body["temperature"]).softmax(dim=-1), 1, generator=generator))
        else:
            token = int(logprobs.argmax())
        answer.append(token)
        whole = stand_in.tokenizer.decode(answer, skip_special_tokens=True)
        if whole.endswith("�") and len(answer) < body["max_tokens"]:
            whole = said
        reason = "stop" if token in stops else "length" if len(answer) == body["max_tokens"] else None
        for stop in body.get("stop") or []:
            if stop in whole:
                whole, reason = whole[: whole.index(stop)], "stop"
        new, said = whole[len(said) :], max(said, whole, key=len)
        shown = told(stand_in, body, logprobs, token) if body.get("logprobs") is not None else None
        yield {"index": 0, "text": new, "logprobs": shown, "finish_reason": reason, "token_ids": [token]}
        if reason is not None:
            return
        await asyncio.sleep(stand_in.seconds_a_token)


def told(stand_in: StandIn, body: dict[str, Any], logprobs: torch.Tensor, token: int) -> dict[str, Any]:
    tokens = logprobs.topk(min(body["logprobs"], len(logprobs))).indices.tolist()
    if stand_in.knows_token_ids and body.get("logprob_token_ids"):
        tokens = body["logprob_token_ids"]
    assert body["return_tokens_as_token_ids"]
    return {
        "tokens": [f"token_id:{token}"],
        "token_logprobs": [float(logprobs[token])],
        "top_logprobs": [{f"token_id:{other}": float(logprobs[other]) for other in tokens}],
    }


def of_prompt(stand_in: StandIn, body: dict[str, Any], index: int) -> dict[str, Any]:
    """Return what a prompt of several is told: here of its last token alone, which is all that is read."""
    *before, last = body["prompt"][index]
    logprob = float(stand_in.next(body["model"], before)[last])
    entry = {str(last): {"logprob": logprob, "rank": 1, "decoded_token": "?"}}
    shown = [None, *[{} for _ in before[1:]], entry] if stand_in.tells_of_prompts else None
    return {"index": index, "text": "", "finish_reason": "length", "prompt_logprobs": shown}


def joined(whole: list[dict[str, Any]]) -> dict[str, Any]:
    return {**whole[-1], "text": "".join(chunk["text"] for chunk in whole), "logprobs": whole[0]["logprobs"]}


@contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    """Serve on loopback; give the address."""
    server = uvicorn.Server(
        uvicorn.Config(make_app(stand_in), host="127.0.0.1", port=0, log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
