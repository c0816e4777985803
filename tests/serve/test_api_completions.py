"""The two routes that answer: OpenAI's shapes, streamed and whole, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from api_world import BASE, World, chat, events, tell

from ftray.serve.api.openai_answers import ChatCompletion, TextCompletion


def test_a_chat_has_openai_s_shape(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with here.client() as client:
            answer = await client.post("/v1/chat/completions", json=chat(metadata={"page": "1"}))
            assert answer.status_code == 200, answer.text
            body = answer.json()
            ChatCompletion.model_validate(body)
            assert body["id"].startswith("chatcmpl-")
            assert answer.headers["x-request-id"] == body["id"]
            assert body["model"] == BASE
            assert body["system_fingerprint"] == "base"
            assert body["metadata"] == {"page": "1"}
            assert body["choices"][0]["message"]["content"].startswith("base ")
            assert body["choices"][0]["finish_reason"] == "stop"
            assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}

    tell(tmp_path, story)


def test_a_streamed_chat_says_the_same_as_a_whole_one(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with here.client() as client:
            wanted = chat(n=2, seed=5, logprobs=True, top_logprobs=2, max_tokens=4)
            whole = (await client.post("/v1/chat/completions", json=wanted)).json()
            options = {"stream": True, "stream_options": {"include_usage": True}}
            answer = await client.post("/v1/chat/completions", json=wanted | options)
            assert answer.headers["content-type"].startswith("text/event-stream")
            *data, done = events(answer.text)
            assert done == "[DONE]"
            *chunks, last = map(json.loads, data)
            assert last["choices"] == []
            assert last["usage"] == whole["usage"]
            assert all(chunk["usage"] is None for chunk in chunks)
            for choice in whole["choices"]:
                own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
                assert own[0]["delta"]["role"] == "assistant"
                assert "".join(one["delta"].get("content", "") for one in own) == choice["message"]["content"]
                assert [one["finish_reason"] for one in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
                tokens = [token for one in own for token in one["logprobs"]["content"]]
                assert tokens == choice["logprobs"]["content"]
            assert whole["choices"][0]["message"] != whole["choices"][1]["message"]
            assert len(whole["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2

    tell(tmp_path, story)


def test_completions_take_texts_and_tokens_and_several_of_them(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with here.client() as client:

            async def ask(prompt: Any, **more: Any) -> Any:
                body = {"model": BASE, "prompt": prompt, **more}
                answer = await client.post("/v1/completions", json=body)
                assert answer.status_code == 200, answer.text
                TextCompletion.model_validate(answer.json())
                return answer.json()

            assert here.engine.asks == []
            assert (await ask("once"))["usage"]["completion_tokens"] == 16, "OpenAI's default"
            body = await ask(["once", "twice"], n=2, logprobs=1, max_tokens=3, seed=1)
            assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
            assert body["usage"] == {"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18}
            first = body["choices"][0]
            assert "".join(first["logprobs"]["tokens"]) == first["text"]
            for offset, token in zip(first["logprobs"]["text_offset"], first["logprobs"]["tokens"], strict=True):
                assert first["text"][offset:].startswith(token)
            alone = await ask("twice", max_tokens=3, seed=1)
            assert alone["choices"][0]["text"] == body["choices"][2]["text"], "who shares the request changes nothing"
            await ask([5, 6])
            await ask([[5, 6], [7]], max_tokens=1)
            assert [ask.prompt for ask in here.engine.asks[-3:]] == [(5, 6), (5, 6), (7,)]

    tell(tmp_path, story)


def test_messages_reach_the_template_as_templates_know_them(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"where": "Bonn"}'}}
        messages = [
            {"role": "developer", "content": "Be short."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}],
                "name": "a",
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        ]
        async with here.client() as client:
            wanted = chat(messages=messages, tools=[tool], tool_choice="auto")
            assert (await client.post("/v1/chat/completions", json=wanted)).status_code == 200
            ask = here.engine.asks[-1]
            assert ask.messages is not None
            assert [dict(message) for message in ask.messages] == [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "One\ntwo", "name": "a"},
                {"role": "assistant", "content": "", "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"where": "Bonn"}}}
                ]},
                {"role": "tool", "content": "rain", "tool_call_id": "c1"},
            ]  # fmt: skip
            assert ask.tools == (tool,)
            await client.post("/v1/chat/completions", json=wanted | {"tool_choice": "none"})
            assert here.engine.asks[-1].tools == ()
            call["function"]["arguments"] = "[1]"  # type: ignore[index]
            refused = await client.post("/v1/chat/completions", json=wanted)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "messages[2].tool_calls[0].function.arguments"

    tell(tmp_path, story)


INERT: list[tuple[dict[str, Any], str]] = [
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"logit_bias": {"5": 10}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"store": True}, "store"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
]


@pytest.mark.parametrize(("more", "param"), INERT, ids=[param for _, param in INERT])
def test_a_parameter_that_would_change_nothing_is_refused_by_name(
    more: dict[str, Any], param: str, tmp_path: Path
) -> None:
    async def story(here: World) -> None:
        async with here.client() as client:
            answer = await client.post("/v1/chat/completions", json=chat(**more))
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["param"] == param
            assert error["code"] == "unsupported_parameter"
            assert error["type"] == "invalid_request_error"
            assert "leave it out" in error["message"]
            assert here.engine.asks == []

    tell(tmp_path, story)


def test_the_same_parameters_pass_where_they_say_what_is_so_anyway(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        harmless = {
            "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"},
            "tool_choice": "auto", "parallel_tool_calls": True, "store": False, "modalities": ["text"],
            "service_tier": "auto", "logprobs": False, "n": 1, "top_p": 1, "temperature": 1, "stop": None, "user": "u",
        }  # fmt: skip
        async with here.client() as client:
            answer = await client.post("/v1/chat/completions", json=chat(**harmless))
            assert answer.status_code == 200, answer.text

    tell(tmp_path, story)


USER = {"role": "user", "content": "x"}
IMAGE = {"role": "user", "content": [{"type": "image_url"}]}
WRONG: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("unknown", {"colour": "red"}, "colour", "unknown_parameter"),
    ("nested", {"messages": [USER | {"colour": 1}]}, "messages[0].colour", "unknown_parameter"),
    ("missing", {"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ("image", {"messages": [IMAGE]}, "messages[0].content[0].type", "invalid_value"),
    ("role", {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0]", "invalid_value"),
    ("no messages", {"messages": []}, "messages", "invalid_value"),
    ("temperature", {"temperature": 3}, "temperature", "invalid_value"),
    ("a text", {"temperature": "1"}, "temperature", "invalid_value"),
    ("true is no number", {"n": True}, "n", "invalid_value"),
    ("five stops", {"stop": ["a"] * 5}, "stop", "invalid_value"),
    ("no stop", {"stop": ""}, None, "invalid_value"),
    ("top_logprobs alone", {"top_logprobs": 2}, None, "invalid_value"),
    ("two limits", {"max_tokens": 2, "max_completion_tokens": 3}, None, "invalid_value"),
    ("not streamed", {"stream_options": {"include_usage": True}}, None, "invalid_value"),
    ("too many", {"n": 17}, "n", "too_much"),
    ("too long", {"max_completion_tokens": 100_000}, "max_completion_tokens", "too_much"),
    ("long stop", {"stop": "x" * 300}, "stop", "too_much"),
    ("long prompt", {"messages": [{"role": "user", "content": "x" * 300_000}]}, "messages", "too_much"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "param", "code"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_named(more: dict[str, Any], param: str | None, code: str, tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with here.client() as client:
            answer = await client.post("/v1/chat/completions", json=chat(**more))
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert (error["param"], error["code"]) == (param, code), error["message"]

    tell(tmp_path, story)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("GET", "/v1/chat/completions", None, 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"", 400, "missing_required_parameter"),
        ("POST", "/v1/chat/completions", b'{"model": "\\ud800"}', 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b'{"temperature": NaN}', 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b'"\xff"', 400, "invalid_json"),
        ("GET", "/v1/models/other", None, 404, "model_not_found"),
        ("GET", "/v1/models/tiny:..", None, 404, "model_not_found"),
    ],
)  # fmt: skip
def test_every_error_has_openai_s_shape(
    method: str, path: str, content: bytes | None, status: int, code: str, tmp_path: Path
) -> None:
    async def story(here: World) -> None:
        async with here.client() as client:
            headers = {"content-type": "application/json"}
            answer = await client.request(method, path, content=content, headers=headers)
            assert answer.status_code == status, answer.text
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert answer.json()["error"]["code"] == code

    tell(tmp_path, story)


def test_models_are_named_by_name_digest_and_alias(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        digest = here.digests["tuned"]
        older = here.put("other")
        async with here.client() as client:
            promoted = {"name": "tuned", "digest": digest, "generation": 0}
            assert (await client.post("/v1/adapters/champion/promote", json=promoted)).status_code == 200
            ids = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
            assert ids == [BASE, f"tiny:tuned@{digest[:12]}", "tiny:tuned", "tiny:champion"]
            for model in ids:
                shown = await client.get(f"/v1/models/{model}")
                assert shown.json()["id"] == model
                answer = (await client.post("/v1/chat/completions", json=chat(model))).json()
                who = "base" if model == BASE else digest[:12]
                assert answer["system_fingerprint"] == who
                assert answer["choices"][0]["message"]["content"].split(" ")[0] == who
                assert answer["model"] == model
            for model in ("other", "tiny:other", f"tiny:tuned@{older[:12]}", "tiny:../x", "tiny:TUNED", "exp:none", ""):
                refused = await client.post("/v1/chat/completions", json=chat(model))
                assert refused.status_code == (400 if model == "" else 404), model

    tell(tmp_path, story)
