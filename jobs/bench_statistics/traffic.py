"""Simulated experiments: who falls to which arm under which weights, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from simulation import FloatArray, IntArray, Traffic

USERS, REQUESTS = 400, 20
USER_CONCENTRATION = 2.0
"""Users' own rates are Beta with mean `rate` and this concentration: some are nearly always served well, some never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One kind of experiment; the control is the first arm."""

    name: str
    rates: tuple[float, ...]
    shares: tuple[tuple[float, ...], ...]
    """The weights' shares, stage after stage, each for as long as the others."""
    events: int
    drift: float = 0.0
    """By how much all rates rise from the first event to the last."""
    answering: tuple[float, ...] | None = None
    """Share of each arm's units that send feedback; None: all."""


def simulate(setting: Setting, runs: int, random: np.random.Generator) -> Traffic:
    """Return outcomes of `runs` experiments, one for each unit."""
    stages = np.array(setting.shares)
    chances = stages[np.arange(setting.events) * len(stages) // setting.events]
    arm = draw_arms(chances, runs, random, answering=setting.answering)
    rates = np.array(setting.rates)[arm] + setting.drift * np.linspace(0, 1, setting.events)
    outcome = (random.random(arm.shape) < rates).astype(np.float64)
    return Traffic(arm=arm, outcome=outcome, chances=chances)


def draw_arms(
    chances: FloatArray, runs: int, random: np.random.Generator, *, answering: Sequence[float] | None = None
) -> IntArray:
    """Return arms [run, event], drawn with chances [event, arm] and then thinned to the units that answer."""
    seen = chances if answering is None else chances * np.array(answering)
    ends = np.cumsum(seen, axis=1) / seen.sum(axis=1, keepdims=True)
    arms: IntArray = (random.random((runs, len(chances)))[:, :, None] >= ends[:, :-1]).sum(axis=2)
    return arms


def simulate_users(rate: float, runs: int, random: np.random.Generator) -> tuple[Traffic, Traffic]:
    """Return the requests of few users with many requests each, as they come, and the users' first ones alone."""
    chances = np.full((USERS, 2), 0.5)
    arm_of_user = draw_arms(chances, runs, random)
    rate_of_user = random.beta(USER_CONCENTRATION * rate, USER_CONCENTRATION * (1 - rate), size=(runs, USERS))
    user = random.permuted(np.tile(np.repeat(np.arange(USERS), REQUESTS), (runs, 1)), axis=1)
    arm = np.take_along_axis(arm_of_user, user, axis=1)
    outcome = (random.random(user.shape) < np.take_along_axis(rate_of_user, user, axis=1)).astype(np.float64)
    first = np.zeros(user.shape, dtype=bool)
    np.put_along_axis(first, np.array([np.unique(row, return_index=True)[1] for row in user]), True, axis=1)
    requests = Traffic(arm=arm, outcome=outcome, chances=np.full((USERS * REQUESTS, 2), 0.5))
    units = Traffic(arm=arm[first].reshape(runs, USERS), outcome=outcome[first].reshape(runs, USERS), chances=chances)
    return requests, units
