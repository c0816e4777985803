"""A registry in each kind of store."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_world import record_of, write_files

from ftray.registry.registry import Registered, Registry, open_registry

Put = Callable[..., Registered]


@pytest.fixture(params=["folder", "memory", "once"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.delenv("FTRAY_REGISTRY", raising=False)
    urls = {"folder": None, "memory": f"memory://{secrets.token_hex(4)}/r", "once": f"once://{tmp_path / 'objects'}"}
    return open_registry(tmp_path / "runs", urls[request.param])


@pytest.fixture
def put(registry: Registry, tmp_path: Path) -> Put:
    """Register files that hold `text` under a name."""

    def register(name: str, text: str = "weights", **record: str) -> Registered:
        folder = write_files(tmp_path / secrets.token_hex(4), text)
        return registry.put(folder, record_of(name, **record))

    return register
