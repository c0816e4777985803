"""As many copies of the base as there is room for, and no more."""

from __future__ import annotations

from typing import Literal

import pytest

from ftray.sweep.place import base_bytes, most_slots, num_trainers, shortage, trainers_that_fit

GIB = 2**30


def test_a_trainer_for_each_gpu_or_each_cpu() -> None:
    assert trainers_that_fit([{"CPU": 16, "GPU": 2, "memory": 64 * GIB}, {"CPU": 8, "GPU": 1}], base=GIB) == 3
    assert trainers_that_fit([{"CPU": 4, "memory": 64 * GIB}, {"CPU": 2, "memory": 64 * GIB}], base=GIB) == 6


def test_memory_limits_the_copies_on_cpus() -> None:
    eight_billion = base_bytes(8_000_000_000, "bf16")
    assert trainers_that_fit([{"CPU": 64, "memory": 128 * GIB}], base=eight_billion) == 6
    assert trainers_that_fit([{"CPU": 64, "memory": 8 * GIB}], base=eight_billion) == 1


def test_the_job_and_its_trials_limit_them_too() -> None:
    nodes = [{"CPU": 8.0, "memory": 64.0 * GIB}]
    assert num_trainers("auto", nodes, base=0, num_trials=3) == 3
    assert num_trainers(2, nodes, base=0, num_trials=16) == 2
    assert num_trainers(99, nodes, base=0, num_trials=16) == 8


def test_trials_that_learn_from_others_come_in_waves() -> None:
    assert most_slots("auto", num_trials=16, workers=2, learns=False) == 8
    assert most_slots("auto", num_trials=16, workers=2, learns=True) == 4
    assert most_slots("auto", num_trials=3, workers=2, learns=True) == 1
    assert most_slots("auto", num_trials=1000, workers=2, learns=True) == 32
    assert most_slots(40, num_trials=4, workers=2, learns=True) == 40


@pytest.mark.parametrize(
    ("asked", "held", "num_trials", "is_told"),
    [(8, 2, 16, True), (2, 2, 16, False), ("auto", 1, 16, False), (8, 2, 2, False), (8, 2, 3, True)],
)
def test_fewer_trainers_than_asked_for_are_told(
    asked: int | Literal["auto"], held: int, num_trials: int, is_told: bool
) -> None:
    told = shortage(asked, held=held, num_trials=num_trials)
    assert told == (f"sweep.workers asks for {asked}: there is room for {held}" if is_told else None)
