"""The endpoint as its clients see it: throughput, flips of an alias, overload, overhead of experiments, kills.

FTRAY_SHARED=../shared python jobs/bench_serve/endpoint.py            everything; writes endpoint.json
FTRAY_SHARED=../shared python jobs/bench_serve/endpoint.py --quick    the same path, shorter; its numbers mean nothing

Everything is asked over HTTP of a real `ftray serve` in a process of its own. Clients share the machine with it.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from bench_report import describe_machine  # noqa: E402

ARMS = ("one", "two", "three")
PROMPT = "Once upon a time there was a little girl"
PACKAGES = ("torch", "transformers", "ray", "fastapi")
FULL = {"rounds": 3, "flips": 1000, "overload_seconds": 12.0, "overhead": 400, "kill_requests": 48, "units": 300}
QUICK = {"rounds": 1, "flips": 20, "overload_seconds": 3.0, "overhead": 20, "kill_requests": 8, "units": 20}
SLOTS, QUEUE = 16, 16
Record = dict[str, Any]


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few of everything: shows that it works")
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), help="only these cases")
    asked = parser.parse_args()
    # The job file lies in a folder of its own, and would be read from there.
    os.environ["FTRAY_SHARED"] = str(Path(os.environ.get("FTRAY_SHARED", HERE.parents[2] / "shared")).resolve())
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    counts = QUICK if asked.quick else FULL
    output = HERE / "endpoint.json"
    results: Record = {
        "schema": "ftray/bench_endpoint/1",
        "command": shlex.join(["python", *sys.argv]),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "load_before": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "counts": counts,
        "cases": {},
    }
    if asked.only and output.exists():
        results["cases"] = json.loads(output.read_text(encoding="utf-8"))["cases"]
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder:
        place = Place(Path(folder))
        for name in asked.only or CASES:
            results["cases"][name] = CASES[name](place, counts)
            print(f"{name}: {json.dumps(results['cases'][name])}", file=sys.stderr)
    if not asked.quick:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Place:
    """A storage folder with random adapters for the base."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
        base = f"{os.environ['FTRAY_SHARED']}/models/stories3M"
        job = {"name": "bench", "model": base, "data": {"train": {"path": "rows.jsonl"}}, "storage": "runs"}
        (self.folder / "job.yaml").write_text(json.dumps(job))
        for seed, name in enumerate(ARMS):
            register(self.folder / "runs", base, name, make_adapter(base, self.folder / name, seed=seed))

    def digest(self, name: str) -> str:
        (found,) = (self.folder / "runs" / "registry" / "adapters" / name).iterdir()
        return found.name

    @contextmanager
    def serving(self, **settings: Any) -> Iterator[Served]:
        """Serve the adapters; end it when this block does."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "ftray", "serve", str(self.folder / "job.yaml"), "--json", "--port", str(port)]
        for name in ARMS:
            command += ["--adapter", name]
        for key, value in {"slots": SLOTS, "queue": QUEUE, **settings}.items():
            command += ["--set", f"serve.{key}={value}"]
        with (self.folder / "serve.log").open("ab") as log:
            popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        assert popen.stdout is not None
        line = popen.stdout.readline()
        assert line.strip().endswith(b"}"), (self.folder / "serve.log").read_text()
        try:
            yield Served(popen=popen, url=json.loads(line)["url"])
        finally:
            if popen.poll() is None:
                popen.terminate()
                popen.wait(timeout=60)


@dataclass(frozen=True)
class Served:
    """A running endpoint."""

    popen: subprocess.Popen[bytes]
    url: str

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=256)
        return httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits, trust_env=False)


def make_adapter(base: str, folder: Path, *, seed: int) -> Path:
    """Write a PEFT folder with random factors, small enough to leave the base's language."""
    import torch
    from peft import LoraConfig, get_peft_model

    from ftray.model.base import load_model

    model: Any = get_peft_model(
        load_model(base),  # type: ignore[arg-type]
        LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    model.save_pretrained(folder)
    return folder


def register(storage: Path, base: str, name: str, folder: Path) -> None:
    from ftray.model.base import identify, load_tokenizer
    from ftray.registry.probing import fingerprint_of_folder, text_probes
    from ftray.registry.record import adapter_shape
    from ftray.registry.registry import open_registry

    tokenizer, identity = load_tokenizer(base), identify(base)
    probes = text_probes(tokenizer)
    record = {
        "name": name, "kind": "adapter", "verdict": "ship", "verdict_reasons": [], "metrics": {}, "data_digests": {},
        "base": {"name": identity.name, "digest": identity.digest, "model": base}, **adapter_shape(folder),
        "template": {"name": "tokenizer", "source": None}, "stop_token_ids": [tokenizer.bos_token_id], "run_id": None,
        "fingerprint": fingerprint_of_folder(folder, base, kind="adapter", probes=probes), "job": {"model": base},
        "card": "",
    }  # fmt: skip
    open_registry(storage).put(folder, record)


async def ask(client: httpx.AsyncClient, model: str, tokens: int, **extra: Any) -> Record:
    body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, **extra}
    answer = await client.post("/v1/completions", json=body)
    answer.raise_for_status()
    record: Record = answer.json()
    return record


def models() -> list[str]:
    return ["stories3m", *(f"stories3m:{name}" for name in ARMS)]


# Cases


def throughput(place: Place, counts: Record) -> Record:
    """16 requests at a time over four arms, against the same requests one after the other."""

    async def story(served: Served, lengths: Sequence[int]) -> Record:
        together, alone, waits = [], [], []
        async with served.client() as client:
            wanted = [(models()[index % 4], tokens) for index, tokens in enumerate(lengths)]
            await asyncio.gather(*(ask(client, model, 4) for model, _ in wanted))
            for _ in range(counts["rounds"]):
                began = time.perf_counter()
                said = await asyncio.gather(*(ask(client, *one) for one in wanted))
                together.append(time.perf_counter() - began)
                began = time.perf_counter()
                for index, one in enumerate(wanted):
                    start = time.perf_counter()
                    single = await ask(client, *one)
                    waits.append(time.perf_counter() - start)
                    assert single["choices"][0]["text"] == said[index]["choices"][0]["text"], "company changes nothing"
                alone.append(time.perf_counter() - began)
        tokens = sum(answer["usage"]["completion_tokens"] for answer in said)
        ratios = [one / other for one, other in zip(alone, together, strict=True)]
        return {
            "tokens": tokens,
            "tokens_per_second": tokens / statistics.median(together),
            "over_one_by_one": statistics.median(ratios),
            "ratios": ratios,
        }

    lengths = random.Random(0)
    cases = {"48": [48] * 16, "8-128": [lengths.randint(8, 128) for _ in range(16)]}
    with place.serving() as served:
        return {name: asyncio.run(story(served, wanted)) for name, wanted in cases.items()}


def flips(place: Place, counts: Record) -> Record:
    """Promotions and rollbacks of an alias under load: failed requests, and answers of another than the named arm."""

    async def story(served: Served) -> Record:
        async with served.client() as client:
            expected = {
                place.digest(name)[:12]: (await ask(client, f"stories3m:{name}", 8))["choices"][0]["text"]
                for name in ARMS[:2]
            }
            first = {"name": "one", "digest": place.digest("one")}
            (await client.post("/v1/adapters/flip/promote", json=first)).raise_for_status()
            found = {"requests": 0, "failed": 0, "wrong": 0}
            done = asyncio.Event()

            async def load() -> None:
                while not done.is_set():
                    found["requests"] += 1
                    try:
                        answer = await ask(client, "stories3m:flip", 8)
                    except httpx.HTTPError:
                        found["failed"] += 1
                        continue
                    said = answer["choices"][0]["text"]
                    found["wrong"] += said != expected.get(answer["system_fingerprint"])

            asking = [asyncio.create_task(load()) for _ in range(4)]
            seconds = []
            for flip in range(counts["flips"]):
                start = time.perf_counter()
                if flip % 2 == 0:
                    second = {"name": "two", "digest": place.digest("two")}
                    answer = await client.post("/v1/adapters/flip/promote", json=second)
                else:
                    answer = await client.post("/v1/adapters/flip/rollback", json={})
                answer.raise_for_status()
                seconds.append(time.perf_counter() - start)
            done.set()
            await asyncio.gather(*asking)
            return {**found, "flips": counts["flips"], "flip_seconds_median": statistics.median(seconds)}

    with place.serving() as served:
        return asyncio.run(story(served))


def overload(place: Place, counts: Record) -> Record:
    """Goodput at the peak, and at four times as many requests as the endpoint can answer; how fast it refuses."""

    async def open_loop(client: httpx.AsyncClient, rate: float, seconds: float) -> Record:
        answered, rejected, waits, others = [], [], [], []

        async def one() -> None:
            start = time.perf_counter()
            answer = await client.post(
                "/v1/completions",
                json={"model": "stories3m:one", "prompt": PROMPT, "max_tokens": 32, "temperature": 0},
            )
            took = time.perf_counter() - start
            if answer.status_code == 200:
                answered.append(took)
            elif answer.status_code in (429, 503):
                rejected.append(took)
                waits.append(answer.headers.get("retry-after"))
            else:
                others.append(answer.status_code)

        began, tasks = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(one()))
        ended = time.perf_counter()
        in_time = len(answered)
        await asyncio.gather(*tasks)
        return {
            "offered_per_second": rate,
            "goodput_per_second": in_time / (ended - began),
            "answered": len(answered),
            "rejected": len(rejected),
            "others": others,
            "reject_seconds_median": statistics.median(rejected) if rejected else None,
            "without_retry_after": sum(wait is None for wait in waits),
        }

    async def capacity(client: httpx.AsyncClient, seconds: float) -> float:
        done = 0

        async def keep_asking(until: float) -> None:
            nonlocal done
            while time.perf_counter() < until:
                await ask(client, "stories3m:one", 32)
                done += 1

        began = time.perf_counter()
        await asyncio.gather(*(keep_asking(began + seconds) for _ in range(SLOTS)))
        return done / (time.perf_counter() - began)

    async def story(served: Served) -> Record:
        async with served.client() as client:
            await capacity(client, 2.0)
            peak = await capacity(client, counts["overload_seconds"])
            found = await open_loop(client, 4 * peak, counts["overload_seconds"])
            return {"peak_per_second": peak, **found, "goodput_share": found["goodput_per_second"] / peak}

    with place.serving() as served:
        return asyncio.run(story(served))


def overhead(place: Place, counts: Record) -> Record:
    """What an experiment adds to a request of one token: the same requests with and without, in turn."""

    async def story(served: Served) -> Record:
        async with served.client() as client:
            spec = {
                "name": "over",
                "arms": [{"name": "left", "model": "stories3m:one"}, {"name": "right", "model": "stories3m:two"}],
                "control": "left",
            }
            (await client.post("/v1/experiments", json=spec)).raise_for_status()
            plain, assigned = [], []
            for number in range(counts["overhead"]):
                for model, seconds in (("stories3m:one", plain), ("exp:over", assigned)):
                    start = time.perf_counter()
                    await ask(client, model, 1, user=f"user-{number}")
                    seconds.append(time.perf_counter() - start)
            differences = sorted(one - other for one, other in zip(assigned, plain, strict=True))
            return {
                "requests": counts["overhead"],
                "plain_seconds_median": statistics.median(plain),
                "added_seconds_p50": statistics.median(differences),
                "added_seconds_p99": differences[int(0.99 * (len(differences) - 1))],
                "added_seconds_p99_of_distributions": _quantile(assigned, 0.99) - _quantile(plain, 0.99),
            }

    with place.serving() as served:
        return asyncio.run(story(served))


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def engine_killed(place: Place, counts: Record) -> Record:
    """SIGKILL of one of two engines while they answer: failed requests, and answers that became others."""

    async def story(served: Served) -> Record:
        async with served.client() as client:
            whole = {model: (await ask(client, model, 96))["choices"][0]["text"] for model in models()}
            wanted = [models()[index % 4] for index in range(counts["kill_requests"])]
            asked = [asyncio.create_task(ask(client, model, 96)) for model in wanted]
            await asyncio.sleep(0.5)
            engines = [
                child
                for child in psutil.Process(served.popen.pid).children(recursive=True)
                if "ServeReplica:ftray:engine" in " ".join(child.cmdline())
            ]
            engines[0].kill()
            answers = await asyncio.gather(*asked, return_exceptions=True)
            failed = [answer for answer in answers if isinstance(answer, BaseException)]
            wrong = [
                answer
                for model, answer in zip(wanted, answers, strict=True)
                if not isinstance(answer, BaseException) and answer["choices"][0]["text"] != whole[model]
            ]
            return {
                "engines": len(engines),
                "requests": len(wanted),
                "failed": len(failed),
                "wrong": len(wrong),
                "errors": sorted({str(error)[:120] for error in failed}),
            }

    with place.serving(replicas=2, queue=64) as served:
        return asyncio.run(story(served))


def service_killed(place: Place, counts: Record) -> Record:
    """SIGKILL of the whole service while outcomes come in: acknowledged ones lost, and ones that count twice."""
    store = f"sqlite:///{place.folder / 'killed.sqlite'}"

    async def feed(client: httpx.AsyncClient, acknowledged: dict[str, bool]) -> None:
        spec = {
            "name": "kill",
            "arms": [{"name": "base", "model": "stories3m"}, {"name": "one", "model": "stories3m:one"}],
            "control": "base",
        }
        (await client.post("/v1/experiments", json=spec)).raise_for_status()

        async def one(number: int) -> None:
            try:
                answer = await ask(client, "exp:kill", 1, user=f"user-{number}")
                body = {"response_id": answer["id"], "value": number % 2 == 0, "idempotency_key": f"key-{number}"}
                told = await client.post("/v1/feedback", json=body)
            except httpx.HTTPError:
                return
            if told.status_code == 200:
                acknowledged[f"user-{number}"] = number % 2 == 0

        for begin in range(0, counts["units"], 8):
            await asyncio.gather(*(one(number) for number in range(begin, begin + 8)))

    async def feed_and_kill(served: Served, acknowledged: dict[str, bool]) -> None:
        async with served.client() as client:
            feeding = asyncio.create_task(feed(client, acknowledged))
            while len(acknowledged) < counts["units"] // 2:
                await asyncio.sleep(0.01)
            os.killpg(served.popen.pid, signal.SIGKILL)
            served.popen.wait()
            await feeding

    async def look(served: Served, acknowledged: dict[str, bool]) -> Record:
        async with served.client() as client:
            before = (await client.get("/v1/experiments/kill/report")).json()
            repeated = []
            for unit, value in acknowledged.items():
                key = f"key-{unit.removeprefix('user-')}"
                body = {"experiment": "kill", "unit": unit, "value": value, "idempotency_key": key}
                repeated.append((await client.post("/v1/feedback", json=body)).json().get("status"))
            after = (await client.get("/v1/experiments/kill/report")).json()
            counted = sum(arm["outcomes"] for arm in before["arms"])
            return {
                "acknowledged": len(acknowledged),
                "counted_after_restart": counted,
                "lost": sum(status != "duplicate" for status in repeated),
                "counted_twice": sum(arm["outcomes"] for arm in after["arms"]) - counted,
            }

    acknowledged: dict[str, bool] = {}
    with place.serving(store=store) as served:
        asyncio.run(feed_and_kill(served, acknowledged))
    with place.serving(store=store) as served:
        return asyncio.run(look(served, acknowledged))


CASES = {
    "throughput": throughput,
    "flips": flips,
    "overload": overload,
    "overhead": overhead,
    "engine_killed": engine_killed,
    "service_killed": service_killed,
}

if __name__ == "__main__":
    main()
