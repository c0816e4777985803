"""How many trials should share one base: measured with the campaign's own trials before it begins."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ftray.artifacts import RunDirectory
from ftray.errors import is_out_of_memory
from ftray.sweep.slots import SharedBase
from ftray.sweep.trial import TrialSpec

TIMED_STEPS = 2
GAIN = 0.03
"""Share by which a trial's step must get faster for twice the slots: below it is noise."""


def measure(base: SharedBase, specs: Sequence[TrialSpec], *, start: int) -> dict[int, float]:
    """Return seconds per trial and step for `start` trials at a time, and for twice as many as long as that is faster.

    Never more than there are slots or trials. The trials measured are copies: nothing of them stays.
    """
    most = min(base.bank.slots, len(specs))
    count = min(start, most)
    seconds: dict[int, float] = {}
    while True:
        found = _seconds_per_step(base, specs[:count])
        if found is None:
            return seconds
        seconds[count] = found
        is_slower = len(seconds) > 1 and found > (1 - GAIN) * seconds[count // 2]
        if is_slower or 2 * count > most:
            return seconds
        count *= 2


def fastest(seconds: dict[int, float]) -> int:
    """Return the number of trials to train at a time: the smallest that nothing larger beats by more than noise."""
    chosen = min(seconds)
    for count in sorted(seconds):
        if seconds[count] < (1 - GAIN) * seconds[chosen]:
            chosen = count
    return chosen


def _seconds_per_step(base: SharedBase, specs: Sequence[TrialSpec]) -> float | None:
    """Return the median seconds of a step divided by its trials; None where memory does not suffice."""
    notes, limit = len(base.notes), base.limit
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
                base.step([run for run in runs if run.slot is not None and not run.is_over])
                if base.bank.device.type == "cuda":
                    torch.cuda.synchronize(base.bank.device)
                times.append(time.perf_counter() - began)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            for run in runs:
                base.leave(run.trial_id)
    if len(base.notes) > notes:
        # It ran out of memory and went on with less.
        base.limit = limit
        del base.notes[notes:]
        return None
    return min(times[1:]) / len(specs)
