"""Every route there is: who may use it, what it says of itself, how much it takes; and the adapters' routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_world import BASE, World, chat, client_of, tell, until, world

from ftray.errors import InputError
from ftray.serve.api.access import GuardedRoute, Need
from ftray.serve.api.application import document
from ftray.serve.api.keys import Keyring, Scope, add_key
from ftray.serve.api.limits import Limits
from ftray.serve.api.problems import Problem, problem_of
from ftray.serve.asking import DeadlinePassed, EngineLost, UnknownAdapter

OPEN = {"/healthz", "/readyz"}
TOO_SMALL: dict[Need, tuple[Scope, ...]] = {
    "infer": ("feedback",), "feedback": ("infer",), "metrics": ("infer", "feedback"),
    "admin": ("infer", "feedback", "metrics"),
}  # fmt: skip


def request_of(route: GuardedRoute) -> tuple[str, str]:
    """Return a method and a path of a route."""
    (method,) = route.methods - {"HEAD"}
    path = route.path
    for name, value in (("{model}", BASE), ("{name}", "greeting"), ("{alias}", "champion")):
        path = path.replace(name, value)
    return method, path


def test_no_route_but_health_answers_without_a_key_or_with_a_lesser_one(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        path = tmp_path / "keys.json"
        _, infer = add_key(path, name="infer", scopes=["infer"])
        _, feedback = add_key(path, name="feedback", scopes=["feedback"])
        _, both = add_key(path, name="both", scopes=["infer", "feedback"])
        _, all_three = add_key(path, name="three", scopes=["infer", "feedback", "metrics"])
        texts: dict[tuple[Scope, ...], str] = {("infer",): infer, ("feedback",): feedback, ("infer", "feedback"): both}
        texts["infer", "feedback", "metrics"] = all_three
        app = here.app(keys=Keyring(path))
        assert len(app.routes) == 19
        async with client_of(app) as client:
            for route in app.routes:
                assert isinstance(route, GuardedRoute), f"{route} lets everybody in"
                method, place = request_of(route)
                bare = await client.request(method, place)
                if route.need == "open":
                    assert place in OPEN
                    assert bare.status_code == 200
                    continue
                assert bare.status_code == 401, place
                wrong = await client.request(method, place, headers={"authorization": "Bearer ftray_x"})
                assert wrong.status_code == 401, place
                if route.need != "any":
                    headers = {"authorization": f"Bearer {texts[TOO_SMALL[route.need]]}"}
                    lesser = await client.request(method, place, headers=headers)
                    assert lesser.status_code == 403, place
            assert here.engine.asks == []

    tell(tmp_path, story)


def test_a_key_is_asked_for_before_the_body_is_read(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        add_key(tmp_path / "keys.json", name="ann", scopes=["infer"])
        read = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal read
            for _ in range(10):
                read += 1
                yield b"x" * 1000

        async with client_of(here.app(keys=Keyring(tmp_path / "keys.json"))) as client:
            assert (await client.post("/v1/chat/completions", content=body())).status_code == 401
            assert read == 0

    tell(tmp_path, story)


def test_the_document_names_keys_errors_and_no_others(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with here.client() as client:
            found = (await client.get("/openapi.json")).json()
        assert found == document(here.app())
        assert "HTTPValidationError" not in str(found)
        for path, operations in found["paths"].items():
            for operation in operations.values():
                assert ("security" in operation) == (path not in OPEN)
                assert "503" in operation["responses"]
        chat_schema = found["components"]["schemas"]["ChatRequest"]["properties"]
        assert chat_schema["presence_penalty"]["enum"] == [None, 0]

    tell(tmp_path, story)


def test_a_body_is_counted_while_it_is_read(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        read = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal read
            while True:
                read += 1
                yield b" " * 1000

        async with here.client(limits=Limits(body_bytes=20_000)) as client:
            headers = {"content-type": "application/json"}
            chunked = await client.post("/v1/chat/completions", content=endless(), headers=headers)
            assert chunked.status_code == 413
            assert chunked.json()["error"]["code"] == "too_large"
            assert read == 21
            declared = await client.post("/v1/feedback", content=b" " * 20_001, headers=headers)
            assert declared.status_code == 413
            assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200

    tell(tmp_path, story)


def test_a_body_that_does_not_come_is_408(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async def stalled() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(60)

        async with here.client(limits=Limits(body_seconds=0.1)) as client:
            answer = await client.post("/v1/chat/completions", content=stalled())
            assert answer.status_code == 408
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    tell(tmp_path, story)


def test_a_key_s_rate(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        path = tmp_path / "keys.json"
        _, ann = add_key(path, name="ann", scopes=["infer"])
        _, bob = add_key(path, name="bob", scopes=["infer"])
        limits = Limits(requests_per_second=0.5, burst=2)
        async with client_of(here.app(keys=Keyring(path), limits=limits), key=ann) as client:
            statuses = [(await client.get("/v1/models")).status_code for _ in range(3)]
            assert statuses == [200, 200, 429]
            refused = await client.get("/v1/models")
            assert refused.headers["retry-after"] == "2"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            other = await client.get("/v1/models", headers={"authorization": f"Bearer {bob}"})
            assert other.status_code == 200, "each key has its own"
            assert (await client.get("/healthz")).status_code == 200

    tell(tmp_path, story)


def test_a_full_queue_is_429_and_ends_what_it_began(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with here.client() as client:
            running = [asyncio.create_task(client.post("/v1/chat/completions", json=chat())) for _ in range(2)]
            await until(lambda: here.engine.running + here.engine.waiting == 2)
            refused = await client.post("/v1/chat/completions", json=chat(n=2))
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "3"
            assert refused.json()["error"]["code"] == "engine_full"
            assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
            assert here.engine.running + here.engine.waiting == 0

    tell(tmp_path, story, slots=1, queue=1, step_seconds=0.02)


@pytest.mark.parametrize("stream", [False, True])
def test_the_deadline(stream: bool, tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with here.client(limits=Limits(deadline_seconds=0.15)) as client:
            answer = await client.post("/v1/chat/completions", json=chat(stream=stream))
            if stream:
                # It had begun in time: the rest cannot be a status any more.
                assert answer.status_code == 200
                assert '"code":"deadline_passed"' in answer.text.strip().split("\n\n")[-1]
                assert "[DONE]" not in answer.text
            else:
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "1"
                assert answer.json()["error"]["code"] == "deadline_passed"
            assert here.engine.running == 0
            metrics = (await client.get("/metrics")).text
            assert 'end="deadline_passed"' in metrics

    tell(tmp_path, story, step_seconds=0.05)


def test_an_engine_that_is_not_ready_is_503(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        why: list[str | None] = ["The base is being loaded."]
        async with here.client(why_not_ready=lambda: why[0]) as client:
            for answer in (await client.get("/readyz"), await client.post("/v1/chat/completions", json=chat())):
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "1"
                assert answer.json()["error"]["code"] == "not_ready"
            why[0] = None
            assert (await client.get("/readyz")).json() == {"status": "ready"}
            assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200

    tell(tmp_path, story)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineLost(), 503, "engine_lost"),
        (UnknownAdapter("x"), 503, "model_not_loaded"),
        (DeadlinePassed(), 503, "deadline_passed"),
        (InputError("too long", kind="too_long", path="messages", hint="Shorten it."), 400, "too_long"),
        (ValueError("a bug"), 500, "internal"),
    ],
)
def test_what_the_engine_raises(error: Exception, status: int, code: str, tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async def broken(ask: Any) -> Any:
            raise error
            yield  # pragma: no cover

        here.engine.generate = broken  # type: ignore[method-assign]
        app = here.app()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for stream in (False, True):
                answer = await client.post("/v1/chat/completions", json=chat(stream=stream))
                assert answer.status_code == status
                assert answer.json()["error"]["code"] == code
                assert ("retry-after" in answer.headers) == (status == 503)

    tell(tmp_path, story)


def test_a_problem_crosses_processes(tmp_path: Path) -> None:
    import pickle

    problem = Problem(429, "later", code="c", kind="k", param="p", retry_after=2.0)
    again = pickle.loads(pickle.dumps(problem))
    assert vars(again) == vars(problem)
    assert problem_of(KeyError()) is None


def test_promote_and_roll_back(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("one")
        two, bad = here.put("two"), here.put("bad", verdict="do_not_ship")
        path = tmp_path / "keys.json"
        _, key = add_key(path, name="root", scopes=["admin"])
        async with client_of(here.app(keys=Keyring(path)), key=key) as client:

            async def promote(name: str, digest: str, **more: Any) -> httpx.Response:
                body = {"name": name, "digest": digest, **more}
                return await client.post("/v1/adapters/champion/promote", json=body)

            async def fingerprint() -> Any:
                answer = await client.post("/v1/chat/completions", json=chat(f"{BASE}:champion"))
                return answer.json().get("system_fingerprint", answer.status_code)

            first = await promote("one", here.digests["one"][:12], generation=0, reason="the first")
            assert (first.json()["generation"], first.json()["by"]) == (1, "key root")
            assert await fingerprint() == here.digests["one"][:12]
            lost = await promote("two", two, generation=0)
            assert (lost.status_code, lost.json()["error"]["code"]) == (409, "lost_swap")
            assert await fingerprint() == here.digests["one"][:12]
            assert two in here.engine.loaded, "it was loaded before the alias was to move"
            assert (await promote("two", two, generation=1)).json()["generation"] == 2
            assert await fingerprint() == two[:12]
            refused = await promote("bad", bad, generation=2)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_shippable")
            forced = await promote("bad", bad, generation=2, force="a test of the alarm")
            assert (forced.json()["reason"], forced.json()["forced"]) == ("a test of the alarm", True)
            back = await client.post("/v1/adapters/champion/rollback", json={"generation": 3, "reason": "bad"})
            assert back.json()["digest"] == two
            assert await fingerprint() == two[:12]
            assert (await client.post("/v1/adapters/champion/rollback", json={"generation": 3})).status_code == 409
            assert (await client.post("/v1/adapters/nobody/rollback")).status_code == 404
            assert (await promote("nobody", two)).status_code == 404
            listed = (await client.get("/v1/adapters")).json()
            assert {one["name"]: one["loaded"] for one in listed["data"]} == {"one": True, "two": True, "bad": True}
            assert [(one["alias"], one["generation"]) for one in listed["aliases"]] == [("champion", 4)]

    tell(tmp_path, story)


def test_an_adapter_that_is_not_live_is_not_promoted(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        dead, foreign = here.put("dead"), here.put("foreign", base={"name": "other", "digest": "1" * 64})
        here.engine.refused.add(dead)
        async with here.client() as client:
            for name, digest, status, code in (
                ("dead", dead, 400, "not_live"),
                ("foreign", foreign, 409, "other_base"),
            ):
                answer = await client.post("/v1/adapters/champion/promote", json={"name": name, "digest": digest})
                assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert here.registry.aliases() == {}

    tell(tmp_path, story)


def test_an_alias_that_was_moved_elsewhere_is_followed_once_it_can_answer(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("one")
        two, dead = here.put("two"), here.put("dead")
        here.engine.refused.add(dead)
        here.registry.promote("champion", "one", here.digests["one"])
        async with here.client() as client:

            async def fingerprint() -> Any:
                return (await client.post("/v1/chat/completions", json=chat(f"{BASE}:champion"))).json()[
                    "system_fingerprint"
                ]

            assert await fingerprint() == here.digests["one"][:12], "known from the start"
            here.registry.promote("champion", "two", two)
            await here.catalogue.refresh()
            assert await fingerprint() == two[:12]
            here.registry.promote("champion", "dead", dead)
            await here.catalogue.refresh()
            assert await fingerprint() == two[:12], "what cannot answer does not take over"
            here.registry.delete_alias("champion")
            await here.catalogue.refresh()
            assert (await client.post("/v1/chat/completions", json=chat(f"{BASE}:champion"))).status_code == 404

    tell(tmp_path, story)


def test_flips_under_load_answer_from_an_arm_that_was_promoted_and_fail_nobody(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("one", "two")
        async with here.client() as client:
            body = {name: {"name": name, "digest": here.digests[name]} for name in ("one", "two")}
            await client.post("/v1/adapters/champion/promote", json=body["one"])
            statuses: list[int] = []
            is_over = False

            async def load() -> None:
                while not is_over:
                    answer = await client.post("/v1/chat/completions", json=chat(f"{BASE}:champion", max_tokens=2))
                    statuses.append(answer.status_code)
                    said = answer.json()
                    assert said["choices"][0]["message"]["content"].startswith(said["system_fingerprint"])

            loads = [asyncio.create_task(load()) for _ in range(4)]
            for number in range(40):
                name = ("two", "one")[number % 2]
                assert (await client.post("/v1/adapters/champion/promote", json=body[name])).status_code == 200
                answer = await client.post("/v1/chat/completions", json=chat(f"{BASE}:champion", max_tokens=1))
                assert answer.json()["system_fingerprint"] == here.digests[name][:12], "from the flip's 200 on"
            is_over = True
            await asyncio.gather(*loads)
            assert set(statuses) == {200}
            assert len(statuses) > 40

    tell(tmp_path, story)


def test_the_metrics(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.serve("tuned")
        async with here.client() as client:
            for model in (BASE, "tiny:tuned"):
                await client.post("/v1/chat/completions", json=chat(model, max_tokens=4))
            await client.post("/v1/chat/completions", json=chat("tiny:none"))
            answer = await client.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain")
            digest = here.digests["tuned"][:12]
            for line in (
                'ftray_time_to_first_token_seconds_count{arm="",experiment="",model="base"} 1.0',
                f'ftray_inter_token_seconds_count{{arm="",experiment="",model="{digest}"}} 3.0',
                f'ftray_completion_tokens_total{{arm="",experiment="",model="{digest}"}} 4.0',
                'ftray_requests_total{route="/v1/chat/completions",status="404"} 1.0',
                'ftray_requests_total{route="/v1/chat/completions",status="200"} 2.0',
                "ftray_engine_slots 64.0",
                "ftray_engine_adapters 1.0",
                "ftray_engine_steps_total 7.0",
            ):
                assert line in answer.text.splitlines()

    tell(tmp_path, story)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:3000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "rebound.example:8000"}, 403),
    ],
    ids=["nobody's page", "a page of this machine", "another page", "a sandboxed page", "across", "rebound"],
)
def test_without_keys_no_foreign_page_is_answered(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async def story() -> None:
        async with world(tmp_path) as parts, parts.client() as client:
            answer = await client.get("/v1/models", headers=headers)
            assert answer.status_code == status
            assert (await client.get("/healthz", headers=headers)).status_code == 200

    asyncio.run(story())


def test_with_keys_a_page_with_a_key_may_be_anywhere(tmp_path: Path) -> None:
    async def story() -> None:
        _, key = add_key(tmp_path / "keys.json", name="page", scopes=["infer"])
        async with world(tmp_path) as parts, parts.client(keys=Keyring(tmp_path / "keys.json")) as client:
            headers = {"authorization": f"Bearer {key}", "origin": "https://app.example", "host": "api.example"}
            assert (await client.get("/v1/models", headers=headers)).status_code == 200

    asyncio.run(story())
