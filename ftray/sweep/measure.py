"""How many trials should share one base: measured with the campaign's own trials before it begins."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ftray.artifacts import RunDirectory
from ftray.errors import is_out_of_memory
from ftray.sweep.slots import SharedBase
from ftray.sweep.trial import TrialSpec

TIMED_STEPS = 2
GAIN = 0.1
"""Share by which a trial's step must get faster for twice the slots. Below it is noise, and trials that run at the same
time learn nothing from each other."""


def measure(
    make_base: Callable[[int], SharedBase], specs: Sequence[TrialSpec], *, start: int, most: int
) -> dict[int, float]:
    """Return seconds per trial and step for `start` trials at a time, and for twice as many as long as that is faster.

    `make_base` gives a fresh base with so many slots. Never more than `most` or than there are trials; empty where not
    even one trial fits into memory. The trials measured are copies: nothing of them stays.
    """
    most = min(most, len(specs))
    count = min(start, most)
    seconds: dict[int, float] = {}
    while count >= 1 and count not in seconds:
        found = _measured(make_base, specs[:count])
        if found is None:
            if seconds:
                break
            # Not even these fit: fewer.
            count //= 2
            continue
        seconds[count] = found
        before = seconds.get(count // 2)
        if 2 * count > most or (before is not None and found > (1 - GAIN) * before):
            break
        count *= 2
    return seconds


def _measured(make_base: Callable[[int], SharedBase], specs: Sequence[TrialSpec]) -> float | None:
    """Return seconds per trial and step; None where memory does not suffice."""
    try:
        base = make_base(len(specs))
        return _seconds_per_step(base, specs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def fastest(seconds: dict[int, float]) -> int:
    """Return the number of trials to train at a time: the smallest that nothing larger beats by more than noise."""
    chosen = min(seconds)
    for count in sorted(seconds):
        if seconds[count] < (1 - GAIN) * seconds[chosen]:
            chosen = count
    return chosen


def _seconds_per_step(base: SharedBase, specs: Sequence[TrialSpec]) -> float | None:
    with tempfile.TemporaryDirectory() as place:
        runs = [
            base.join(replace(spec, trial_id=f"measured-{index}"), RunDirectory(Path(place) / str(index)))
            for index, spec in enumerate(specs)
        ]
        base.place_waiting()
        times = []
        try:
            for _ in range(1 + TIMED_STEPS):
                began = time.perf_counter()
                # One whose numbers end at once is left out: the campaign will say so.
                base.step([run for run in runs if not run.failure])
                if base.bank.device.type == "cuda":
                    torch.cuda.synchronize(base.bank.device)
                times.append(time.perf_counter() - began)
                if base.notes:
                    # It ran out of memory and went on with less.
                    return None
        finally:
            for run in runs:
                base.leave(run.trial_id)
    return min(times[1:]) / len(specs)
