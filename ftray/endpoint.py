"""The `serve` section of a job: where the endpoint listens, what it serves, and what it keeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ftray.config import Config

EngineName = Literal["bank", "vllm"]


class KeepAnswers(Config):
    """Keep prompts and answers of experiments beside their outcomes."""

    hours: Annotated[float, Field(gt=0)]
    """How long; what is older is deleted."""


class ServeConfig(Config):
    """What `ftray serve` starts."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen at. Any but a loopback address needs keys_file."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the API, its health routes and /metrics."""
    engine: EngineName = "bank"
    """bank: many adapters on one base, on CPU or GPU. vllm: vLLM's server, on GPUs (pip install 'ftray[vllm]')."""
    slots: Annotated[int, Field(ge=1)] = 16
    """Requests of one replica that are answered at a time."""
    adapters: list[Annotated[str, Field(min_length=1)]] = []
    """Registered adapters or aliases to load at the start: name, name@digest or alias. Empty: the one named as the job,
    where there is one, and every alias."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Engines; each holds the base and all adapters."""
    queue: Annotated[int, Field(ge=0)] = 64
    """Requests of one replica that may wait for a slot; more are refused with 429."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Longest time from a request to the end of its answer."""
    keys_file: str | None = None
    """File of API keys, written by `ftray keys`; null: no keys, on loopback only."""
    store: Annotated[str, Field(min_length=1)] = "sqlite"
    """Where exposures and outcomes are kept: sqlite (in the storage folder), sqlite:///FILE or postgresql://... ."""
    keep_answers: KeepAnswers | None = None
    """Null: prompts and answers are not stored."""
