"""`ftray serve` as a user runs it: a process of its own with Ray Serve in it, asked over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serve_world import Process, ServeWorld, free_port, make_world, register, serving, write_adapter

from ftray.serve.api.keys import add_key

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
PROMPT = "What colour has the sea today?"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ServeWorld:
    return make_world(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def endpoint(world: ServeWorld) -> Iterator[Process]:
    with serving(world, sets=["serve.replicas=2", "serve.slots=4"]) as process:
        yield process


def complete(url: str, model: str, *, tokens: int = 12, **extra: Any) -> dict[str, Any]:
    """Return a greedy answer."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, **extra}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    record: dict[str, Any] = answer.json()
    return record


def text(record: dict[str, Any]) -> str:
    return str(record["choices"][0]["text"])


def test_base_and_adapters_answer_each_in_its_own_way(world: ServeWorld, endpoint: Process) -> None:
    assert endpoint.ready["event"] == "ready"
    models = endpoint.ready["models"]
    assert models[0] == "tiny"
    assert {"tiny:one", "tiny:two", "tiny:three"} <= set(models)
    said = {name: text(complete(endpoint.url, name)) for name in ("tiny", "tiny:one", "tiny:two", "tiny:three")}
    assert len(set(said.values())) == 4, said
    by_digest = complete(endpoint.url, f"tiny:one@{world.digest('one')[:12]}")
    assert text(by_digest) == said["tiny:one"]
    assert by_digest["system_fingerprint"] == world.digest("one")[:12]


def test_many_at_a_time_get_what_each_gets_alone(endpoint: Process) -> None:
    models = ["tiny", "tiny:one", "tiny:two", "tiny:three"]
    alone = {model: text(complete(endpoint.url, model)) for model in models}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda model: (model, text(complete(endpoint.url, model))), models * 6))
    assert all(said == alone[model] for model, said in together)


def test_promotion_and_rollback_change_what_an_alias_answers(world: ServeWorld, endpoint: Process) -> None:
    url = endpoint.url
    one, two = world.digest("one"), world.digest("two")
    promoted = httpx.post(f"{url}/v1/adapters/champion/promote", json={"name": "one", "digest": one, "generation": 0})
    assert promoted.status_code == 200, promoted.text
    generation = promoted.json()["generation"]
    assert text(complete(url, "tiny:champion")) == text(complete(url, "tiny:one"))
    body = {"name": "two", "digest": two, "generation": generation}
    assert httpx.post(f"{url}/v1/adapters/champion/promote", json=body).status_code == 200
    assert text(complete(url, "tiny:champion")) == text(complete(url, "tiny:two"))
    assert httpx.post(f"{url}/v1/adapters/champion/promote", json=body).status_code == 409
    assert httpx.post(f"{url}/v1/adapters/champion/rollback", json={}).status_code == 200
    assert text(complete(url, "tiny:champion")) == text(complete(url, "tiny:one"))


def test_flips_under_load_fail_nobody_and_mix_nobody_up(world: ServeWorld, endpoint: Process) -> None:
    url = endpoint.url
    expected = {world.digest(name)[:12]: text(complete(url, f"tiny:{name}", tokens=4)) for name in ("one", "two")}
    httpx.post(f"{url}/v1/adapters/flip/promote", json={"name": "one", "digest": world.digest("one")})
    done = threading.Event()
    wrong: list[Any] = []
    asked = [0]

    def ask() -> None:
        while not done.is_set():
            record = complete(url, "tiny:flip", tokens=4)
            asked[0] += 1
            if text(record) != expected.get(record["system_fingerprint"]):
                wrong.append(record)

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for flip in range(40):
            name = ("two", "one")[flip % 2]
            body = {"name": name, "digest": world.digest(name)}
            assert httpx.post(f"{url}/v1/adapters/flip/promote", json=body, timeout=30).status_code == 200
        done.set()
        for one in asking:
            one.result()
    assert not wrong
    assert asked[0] > 10


def test_an_adapter_that_is_registered_later_can_be_promoted(
    world: ServeWorld, endpoint: Process, tmp_path: Path
) -> None:
    made = write_adapter(world.base, tmp_path / "late", seed=9)
    digest = register(world.storage, world.base, "late", made).partition("@")[2]
    answer = httpx.post(
        f"{endpoint.url}/v1/adapters/newest/promote", json={"name": "late", "digest": digest}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    # Both replicas have it: whoever is asked answers alike.
    said = {text(complete(endpoint.url, "tiny:newest")) for _ in range(6)}
    assert len(said) == 1
    assert said != {text(complete(endpoint.url, "tiny"))}


def test_an_engine_that_is_killed_breaks_off_no_answer(endpoint: Process) -> None:
    whole = text(complete(endpoint.url, "tiny:one", tokens=60))
    engines = [
        child
        for child in psutil.Process(endpoint.popen.pid).children(recursive=True)
        if "ServeReplica:ftray:engine" in " ".join(child.cmdline())
    ]
    assert len(engines) == 2
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(complete, endpoint.url, "tiny:one", tokens=60) for _ in range(8)]
        time.sleep(0.15)
        engines[0].kill()
        said = [text(one.result()) for one in asked]
    assert said == [whole] * 8


def test_experiments_outlive_the_process(world: ServeWorld, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    # Who has no admin key is not told the arms.
    key = add_key(folder / "keys.json", name="tester", scopes=["admin"])[1]
    sets = [f"serve.store=sqlite:///{folder / 'outcomes.sqlite'}", f"serve.keys_file={folder / 'keys.json'}"]
    headers = {"authorization": f"Bearer {key}"}
    acknowledged: list[str] = []
    with serving(world, sets=sets) as process:
        spec = {
            "name": "ab",
            "arms": [{"name": "base", "model": "tiny"}, {"name": "tuned", "model": "tiny:one"}],
            "control": "base",
        }
        made = httpx.post(f"{process.url}/v1/experiments", json=spec, headers=headers, timeout=30)
        assert made.status_code == 201, made.text
        arms = {}
        for unit in range(12):
            said = answer_unit(process.url, unit, headers)
            arms[unit] = said.headers["x-ftray-arm"]
            body = {"response_id": said.json()["id"], "value": unit % 2 == 0, "idempotency_key": f"key-{unit}"}
            if httpx.post(f"{process.url}/v1/feedback", json=body, headers=headers, timeout=30).status_code == 200:
                acknowledged.append(f"key-{unit}")
        assert set(arms.values()) == {"base", "tuned"}
        process.kill()
    assert len(acknowledged) == 12
    with serving(world, sets=sets) as process:
        report = httpx.get(f"{process.url}/v1/experiments/ab/report", headers=headers, timeout=30).json()
        assert sum(arm["outcomes"] for arm in report["arms"]) == 12
        for unit, arm in arms.items():
            assert answer_unit(process.url, unit, headers).headers["x-ftray-arm"] == arm
        again = {"experiment": "ab", "unit": "unit-0", "value": True, "idempotency_key": "key-0"}
        assert (
            httpx.post(f"{process.url}/v1/feedback", json=again, headers=headers, timeout=30).json()["status"]
            == "duplicate"
        )
        code, rest = process.stop()
    assert code == 0
    assert rest == [{"event": "stopped", "url": process.url}]


def answer_unit(url: str, unit: int, headers: dict[str, str]) -> httpx.Response:
    body = {"model": "exp:ab", "prompt": PROMPT, "max_tokens": 2}
    return httpx.post(
        f"{url}/v1/completions", json=body, headers={**headers, "X-Ftray-Unit": f"unit-{unit}"}, timeout=60
    )


def test_a_stop_lets_answers_end(world: ServeWorld) -> None:
    with serving(world) as process:
        whole = text(complete(process.url, "tiny:two", tokens=200))
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(complete, process.url, "tiny:two", tokens=200)
            time.sleep(0.1)
            code, _ = process.stop()
            assert text(asked.result()) == whole
    assert code == 0


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["--adapter", "nobody"], "unknown_adapter"),
        (["--host", "0.0.0.0"], None),
        (["--set", "serve.engine=vllm"], None),
    ],
    ids=["an adapter that is not registered", "everybody without keys", "vllm that is not there"],
)
def test_what_cannot_be_served_is_refused(world: ServeWorld, words: list[str], kind: str | None) -> None:
    done = serve_once(world, *words)
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)
    assert error["hint"]
    assert kind is None or error["kind"] == kind


def test_a_port_that_is_taken_is_refused(world: ServeWorld) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = serve_once(world, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert json.loads(done.stdout)["kind"] == "port_taken"


def test_an_adapter_that_answers_as_its_base_is_refused(world: ServeWorld, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from ftray.registry.registry import open_registry

    dead = tmp_path / "dead"
    dead.mkdir()
    source = world.folder / "adapters" / "one"
    weights = load_file(source / "adapter_model.safetensors")
    save_file({name: one * ("lora_B" not in name) for name, one in weights.items()}, dead / "adapter_model.safetensors")
    (dead / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    registry = open_registry(world.storage)
    alive = registry.resolve("one").record
    # The digest is that of the files, so that only the proof can tell.
    registered = registry.put(dead, {**alive, "name": "dead"})
    done = serve_once(world, "--adapter", f"dead@{registered.digest}")
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["kind"] == "not_live"


def serve_once(world: ServeWorld, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ftray", "serve", str(world.job), "--json"]
    if "--port" not in words:
        command += ["--port", str(free_port())]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=120)
