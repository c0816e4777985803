"""Shared fixtures. Real data and models are found through FTRAY_SHARED; without it their tests skip, saying so."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray.data.conversations import Example, Message

MakeExample = Callable[..., Example]

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny products: a second thread costs more than it gains, and much more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# A process keeps the mode of its first Ray: all tests must have the same.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What a shell starts in the background ignores Ctrl-C, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data and models, or skip."""
    folder = Path(os.environ.get("FTRAY_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data is not at {folder} (set FTRAY_SHARED)")
    return folder


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder with a random model for each family."""
    import torch
    from families import FAMILIES
    from transformers import AutoModelForCausalLM

    folders = {}
    for name, config in FAMILIES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
    return folders


@pytest.fixture
def make_example() -> MakeExample:
    """Return a maker of examples: alternating user and assistant turns."""

    def make(*turns: str, row: int = 0, system: str | None = None, dataset: str = "train", **columns: Any) -> Example:
        messages = [Message(role="system", content=system)] if system is not None else []
        for index, turn in enumerate(turns):
            messages.append(Message(role="assistant" if index % 2 else "user", content=turn))
        fields = {"prompt": turns[-2]} if len(turns) > 1 else {}
        return Example(messages=tuple(messages), dataset=dataset, row=row, fields=fields, columns=columns)

    return make
