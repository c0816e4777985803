from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_world import Store, on_machine, running_store, speaking_to


@pytest.fixture(scope="session")
def only_store() -> Iterator[Store]:
    """Run one store for all tests: fsspec keeps the first connection to S3 that a process makes."""
    with running_store() as running:
        yield running


@pytest.fixture(scope="module")
def store(only_store: Store) -> Iterator[Store]:
    """Return a store that speaks S3."""
    # Not for the whole session: the tests of other rooms have no keys.
    with speaking_to(only_store):
        yield only_store


@pytest.fixture
def url(store: Store, tmp_path: Path) -> Iterator[str]:
    """Return a place in the store, seen from a machine that has never seen it."""
    with on_machine(tmp_path / "cache"):
        yield store.new_url()
