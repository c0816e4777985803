from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_world import Store, on_machine, running_store


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    """Return a store that speaks S3."""
    with running_store() as running:
        yield running


@pytest.fixture
def url(store: Store, tmp_path: Path) -> Iterator[str]:
    """Return a place in the store, seen from a machine that has never seen it."""
    with on_machine(tmp_path / "cache"):
        yield store.new_url()
