"""This process while it works: libraries kept quiet, and SIGTERM treated as Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftray.observe.log import is_json
from ftray.observe.spans import require_exporter

QUIET = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # OpenMP threads that wait spin for milliseconds by default, which ruins whoever shares the cores, and themselves;
    # without any spinning a step of a small model takes twice as long. This much costs nothing on idle cores.
    "GOMP_SPINCOUNT": "10000",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Settings that libraries read when they are imported; what the user has set stays."""

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128")


def quieten_libraries() -> None:
    """Turn progress bars, hints and statistics of libraries off, before they are imported.

    Raises InputError where the environment asks for log lines or spans that there are none of.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    require_exporter(os.environ)
    is_json()
    if not any(Path(device).exists() for device in GPU_DEVICES):
        # DeepSpeed, which other libraries import, would warn that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt inside this block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
