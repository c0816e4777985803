"""The endpoint's statistics over many simulated experiments at once: arrays [run, event] instead of single events.

tests/serve/test_bench_statistics.py feeds the same events to ftray/serve/statistics and compares every number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from ftray.serve.experiment.statistics.betting import STAKES
from ftray.serve.experiment.statistics.comparison import MEMORY, PRIOR_MEAN, PRIOR_WEIGHT
from ftray.serve.experiment.statistics.sample_ratio import PRIOR_WEIGHT as RATIO_WEIGHT
from ftray.serve.experiment.statistics.sequences import TIGHTEST

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What happened in many experiments, in the order in which outcomes came: arrays [run, event]."""

    arm: IntArray
    """0 is the control."""
    outcome: FloatArray
    chances: FloatArray
    """[event, arm] or [run, event, arm]: what the event's unit had of each arm."""

    def chance(self, arm: int) -> FloatArray:
        return self.chances[..., arm]


def centres(outcome: FloatArray, memory: int | None = MEMORY) -> FloatArray:
    """Return the running mean before each event: `Centre`. With no memory limit, that of all events before."""
    events = outcome.shape[1]
    before = np.cumsum(outcome, axis=1) - outcome
    centre: FloatArray = (PRIOR_MEAN * PRIOR_WEIGHT + before) / (PRIOR_WEIGHT + np.arange(events))
    if memory is not None and events > memory:
        gain = 1.0 / (PRIOR_WEIGHT + memory)
        start = (1.0 - gain) * centre[:, [memory]]
        centre[:, memory + 1 :] = lfilter([gain], [1.0, gain - 1.0], outcome[:, memory:-1], axis=1, zi=start)[0]
    return centre


def fractions(
    traffic: Traffic, challenger: int, memory: int | None = MEMORY
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return psi, psi as a fraction of the largest it can be, and the smallest chance so far: `Comparison.add`."""
    centre = centres(traffic.outcome, memory)
    ours, control = traffic.chance(challenger), traffic.chance(0)
    sign = (traffic.arm == challenger) / ours - (traffic.arm == 0) / control
    psi = (traffic.outcome - centre) * sign
    smaller = np.broadcast_to(np.minimum(ours, control), psi.shape)
    bound = np.maximum(centre, 1.0 - centre) / smaller
    return psi, psi / bound, np.minimum.accumulate(smaller, axis=1)


def log_e_values(fraction: FloatArray, stakes: tuple[float, ...] = STAKES) -> tuple[FloatArray, FloatArray]:
    """Return the logarithms of the e-value and of the up half's mean wealth after each event: `Bet.add`."""
    up, down = ([np.cumsum(np.log1p(sign * stake * fraction), axis=1) for stake in stakes] for sign in (1.0, -1.0))
    return log_mean(up + down), log_mean(up)


def log_mean(logs: list[FloatArray]) -> FloatArray:
    """Return the logarithm of the mean of what these are logarithms of."""
    top = np.maximum.reduce(logs)
    mean: FloatArray = top + np.log(sum(np.exp(one - top) for one in logs) / len(logs))
    return mean


def half_widths(
    values: FloatArray, alpha: float, extra_squares: FloatArray | float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """Return running mean and half the width of its confidence sequence after each event: `Moments.interval`."""
    n = np.arange(1, values.shape[1] + 1)
    mean = np.cumsum(values, axis=1) / n
    squares = np.cumsum(values**2, axis=1) - n * mean**2
    deviation = np.sqrt(np.maximum(0.0, squares + extra_squares) / n)
    rho2 = (-2 * np.log(alpha) + np.log(1 - 2 * np.log(alpha))) / TIGHTEST
    spread = n * rho2 + 1
    return mean, deviation * np.sqrt(2 * spread / (n * n * rho2) * np.log(np.sqrt(spread) / alpha))


def ratio_log_e(arm: IntArray, chances: FloatArray) -> FloatArray:
    """Return the logarithm of the sample-ratio e-value after each unit: `SampleRatio.add`; `chances` [event, arm]."""
    fell = arm[:, :, None] == np.arange(chances.shape[1])
    seen = np.cumsum(fell, axis=1) - fell
    expected = np.cumsum(chances, axis=0) - chances
    tilt = (RATIO_WEIGHT * chances + seen) / (RATIO_WEIGHT * chances + expected)
    chosen = np.take_along_axis(tilt, arm[:, :, None], axis=2)[:, :, 0]
    log_e: FloatArray = np.cumsum(np.log(chosen) - np.log((chances * tilt).sum(axis=2)), axis=1)
    return log_e


def first_at_least(values: FloatArray, threshold: float) -> IntArray:
    """Return the position of the first value that reaches the threshold; -1 where none does."""
    reached = values >= threshold
    return np.where(reached.any(axis=1), reached.argmax(axis=1), -1)
