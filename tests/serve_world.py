"""A tiny base with registered adapters, and an endpoint of theirs in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from ftray.model.base import identify, load_model, load_tokenizer
from ftray.quickstart.pretrain import tiny_base
from ftray.registry.probing import fingerprint_of_folder, text_probes
from ftray.registry.record import adapter_shape
from ftray.registry.registry import open_registry

START_SECONDS = 120.0


def write_adapter(base: Path, folder: Path, *, seed: int, rank: int = 4) -> Path:
    """Write a PEFT folder with random factors that change every answer."""
    model: Any = get_peft_model(
        load_model(str(base)),  # type: ignore[arg-type]
        LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear"),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return folder


def register(storage: Path, base: Path, name: str, folder: Path, *, verdict: str = "ship") -> str:
    """Register an adapter with its fingerprint; return name@digest."""
    tokenizer = load_tokenizer(str(base))
    identity = identify(str(base))
    record = {
        "name": name,
        "kind": "adapter",
        "base": {"name": identity.name, "digest": identity.digest, "model": str(base)},
        **adapter_shape(folder),
        "run_id": None,
        "data_digests": {},
        "metrics": {},
        "verdict": verdict,
        "verdict_reasons": [],
        "template": {"name": "tokenizer", "source": None},
        "stop_token_ids": [tokenizer.eos_token_id],
        "fingerprint": fingerprint_of_folder(folder, str(base), kind="adapter", probes=text_probes(tokenizer)),
        "job": {"model": str(base)},
        "card": "",
    }
    registered = open_registry(storage).put(folder, record)
    return f"{registered.name}@{registered.digest}"


@dataclass(frozen=True)
class ServeWorld:
    """A storage folder with a base, a job file, and adapters `one`, `two` and `three`."""

    folder: Path
    adapters: dict[str, str]
    """name@digest by name."""

    @property
    def base(self) -> Path:
        return self.folder / "tiny"

    @property
    def storage(self) -> Path:
        return self.folder / "runs"

    @property
    def job(self) -> Path:
        return self.folder / "job.yaml"

    def digest(self, name: str) -> str:
        return self.adapters[name].partition("@")[2]


def make_world(folder: Path) -> ServeWorld:
    """Make the base, the adapters and the job."""
    tiny_base(folder / "tiny", seed=0)
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    adapters = {}
    for seed, name in enumerate(("one", "two", "three"), start=1):
        made = write_adapter(folder / "tiny", folder / "adapters" / name, seed=seed)
        adapters[name] = register(folder / "runs", folder / "tiny", name, made)
    job = {"name": "world", "model": "tiny", "data": {"train": {"path": "rows.jsonl"}}, "storage": "runs"}
    (folder / "job.yaml").write_text(json.dumps(job))
    return ServeWorld(folder=folder, adapters=adapters)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """`ftray serve` as a process."""

    popen: subprocess.Popen[bytes]
    ready: dict[str, Any]
    errors: Path

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def kill(self) -> None:
        """End it and everything it started, without a word."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def stop(self) -> tuple[int, list[dict[str, Any]]]:
        """Ask it to end; return its exit code and what else it printed."""
        self.popen.terminate()
        rest, _ = self.popen.communicate(timeout=60)
        return self.popen.returncode, [json.loads(line) for line in rest.splitlines()]


@contextmanager
def serving(
    world: ServeWorld, *words: str, sets: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Run `ftray serve` inside this block; yield when it is ready."""
    errors = world.folder / "serve-errors.log"
    command = [sys.executable, "-m", "ftray", "serve", str(world.job), "--json", "--port", str(free_port())]
    for name in world.adapters.values():
        command += ["--adapter", name]
    for setting in sets:
        command += ["--set", setting]
    with errors.open("wb") as file:
        popen = subprocess.Popen(
            [*command, *words],
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    assert popen.stdout is not None
    process = Process(popen=popen, ready={}, errors=errors)
    try:
        line = popen.stdout.readline()
        assert line, f"ftray serve ended: {errors.read_text()}"
        process.ready = json.loads(line)
        yield process
    finally:
        if popen.poll() is None:
            popen.terminate()
            try:
                popen.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        popen.stdout.close()
