"""`tiny` is the module tiny_training.py, which the rank processes of these tests import by its name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Return the makers of tiny models, rows and plans."""
    spec = importlib.util.spec_from_file_location("tiny_training", HERE / "tiny_training.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
