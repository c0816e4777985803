"""A tiny job, and one Ray for all tests that need it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from submit_world import LiveRay, make_job, running_ray

from ftray.quickstart.pretrain import tiny_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    tiny_base(folder)
    return folder


@pytest.fixture
def job(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)
    return make_job(tmp_path / "job", base)


@pytest.fixture(scope="session")
def live_ray() -> Iterator[LiveRay]:
    with running_ray() as ray:
        yield ray
