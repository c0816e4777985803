"""A benchmark's run as a fresh process, watched from outside: seconds from start to end, and the memory of its tree."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a run wrote to its standard output, and what it took."""

    output: str
    seconds: float
    """From the start of the process to its end: imports, data, model and Ray included."""
    peak_process_bytes: int
    """Of the largest process."""
    peak_total_bytes: int
    """Of all processes together; pages they share count in each."""
    load_average: float
    """Of the machine, over the minute before: near 0 when it was quiet."""


def watch(
    command: Sequence[str], environment: Mapping[str, str], log: Path, *, limit_seconds: float | None = None
) -> Seen:
    """Run a command to its end and watch the memory of its processes. Its messages go to `log`.

    The benchmark ends with it where it fails, or has not ended after `limit_seconds`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    load_average = os.getloadavg()[0]
    started = time.perf_counter()
    largest = total = 0
    output = log.with_suffix(".out")
    with log.open("w", encoding="utf-8") as messages, output.open("w", encoding="utf-8") as answer:
        process = subprocess.Popen(
            command,
            stdout=answer,
            stderr=messages,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **environment},
        )
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            sizes = resident_bytes(watched)
            largest, total = max([largest, *sizes]), max(total, sum(sizes))
            if limit_seconds is not None and time.perf_counter() - started > limit_seconds:
                end_tree(watched)
                raise SystemExit(_told(command, f"has not ended after {limit_seconds:g} s", log, output))
            time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise SystemExit(_told(command, f"ended with {process.returncode}", log, output))
    return Seen(
        output=output.read_text(encoding="utf-8"),
        seconds=seconds,
        peak_process_bytes=largest,
        peak_total_bytes=total,
        load_average=load_average,
    )


def resident_bytes(root: psutil.Process) -> list[int]:
    """Return the resident bytes of a process and of all it has started."""
    sizes = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                sizes.append(process.memory_info().rss)
    return sizes


def end_tree(root: psutil.Process) -> None:
    """Kill a process and all it has started."""
    for process in [*root.children(recursive=True), root]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _told(command: Sequence[str], what: str, log: Path, output: Path) -> str:
    tail = (log.read_text(encoding="utf-8") + output.read_text(encoding="utf-8")).splitlines()[-30:]
    return "\n".join([f"{' '.join(command)}\n{what}:", *tail])
