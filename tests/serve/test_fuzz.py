"""The whole OpenAPI document under schemathesis: no 5xx but 503, answers as the document says, no way past the keys."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from api_server import Server, serving
from api_world import BASE, World, chat, experiment, tell, world
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ftray.serve.api.application import document
from ftray.serve.api.keys import Keyring, add_key
from ftray.serve.api.limits import Limits

EXAMPLES = 20
"""Of each operation, in each mode."""
CHECKS: list[Any] = [
    status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance,
]  # fmt: skip
OPEN = {"/healthz", "/readyz"}


def operations() -> list[Any]:
    """Return every operation of the document, which is a function of the code alone."""
    found: list[Any] = []

    async def story(here: World) -> None:
        schema = schemathesis.openapi.from_dict(document(here.app()))
        found.extend(result.ok() for result in schema.get_all_operations())

    with tempfile.TemporaryDirectory() as folder:
        tell(Path(folder), story)
    return found


OPERATIONS = operations()
CASES = [
    (operation, mode)
    for operation in OPERATIONS
    for mode in GenerationMode
    # What takes nothing cannot be asked wrongly.
    if mode is GenerationMode.POSITIVE or operation.path not in OPEN
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("world")

    @asynccontextmanager
    async def parts() -> AsyncIterator[tuple[FastAPI, str]]:
        _, key = add_key(folder / "keys.json", name="root", scopes=["admin"])
        async with world(folder) as here:
            await here.serve("tuned")
            limits = Limits(requests_per_second=None)
            yield here.app(keys=Keyring(folder / "keys.json"), limits=limits, page=lambda report, history: "<p>"), key

    with serving(parts) as found:
        bearer = {"authorization": f"Bearer {found.parts}"}
        with httpx.Client(base_url=found.url, headers=bearer, trust_env=False) as client:
            assert client.post("/v1/experiments", json=experiment()).status_code == 201
            assert client.post("/v1/chat/completions", json=chat("exp:greeting", user="u")).status_code == 200
        yield found


def known(case: Any) -> None:
    """Name what there is, so that more than the 404s is tried."""
    parameters = {"model": BASE, "name": "greeting", "alias": "champion"}
    for name in case.path_parameters or {}:
        case.path_parameters[name] = parameters[name]
    if isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = BASE if len(case.body) % 2 else "exp:greeting"
        if "unit" in case.body:
            case.body["experiment"], case.body["unit"] = "greeting", "u"


@pytest.mark.parametrize(("operation", "mode"), CASES, ids=[f"{one.label}-{mode.value}" for one, mode in CASES])
def test_every_operation(operation: Any, mode: GenerationMode, server: Server) -> None:
    headers = {"authorization": f"Bearer {server.parts}"}
    tried = 0

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(mode))
    def check(case: Any) -> None:
        nonlocal tried
        tried += 1
        if mode is GenerationMode.POSITIVE and tried % 2:
            known(case)
        response = case.call(base_url=server.url, headers=headers)
        if response.status_code >= 500:
            assert response.status_code == 503, response.text
            assert "Retry-After" in response.headers
        checks = CHECKS + ([negative_data_rejection] if mode is GenerationMode.NEGATIVE else [])
        case.validate_response(response, checks=checks, headers=headers)

    check()
    assert tried > 0


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.label)
def test_nobody_gets_past_the_keys(operation: Any, server: Server) -> None:
    @settings(max_examples=3, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(GenerationMode.POSITIVE))
    def check(case: Any) -> None:
        bare = case.call(base_url=server.url)
        assert bare.status_code == (200 if operation.path in OPEN else 401)
        headers = {"authorization": f"Bearer {server.parts}"}
        response = case.call(base_url=server.url, headers=headers)
        case.validate_response(response, checks=[ignored_auth], headers=headers)

    check()
