"""How many replay rows, and which: properties of a choice by content."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ftray.data.mixing import choose_replay, count_replay


@dataclass(frozen=True)
class Row:
    digest: str


fractions = st.floats(min_value=0.001, max_value=0.99)
digests = st.lists(st.text("0123456789abcdef", min_size=1, max_size=3), min_size=1, max_size=40)


def rows_of(digests: list[str]) -> list[Row]:
    return [Row(digest) for digest in digests]


@given(st.integers(1, 100_000), fractions)
def test_the_fraction_is_reached_within_one_row(num_task_rows: int, fraction: float) -> None:
    count = count_replay(num_task_rows, fraction)
    assert count >= 1
    wanted = fraction * num_task_rows / (1 - fraction)
    assert abs(count - wanted) <= 1
    assert abs(count / (count + num_task_rows) - fraction) <= 1 / (count + num_task_rows)


@given(digests, st.integers(0, 120), st.integers(), st.randoms())
def test_the_choice_is_a_function_of_content_and_seed(
    digests: list[str], count: int, seed: int, shuffle: random.Random
) -> None:
    shuffled = list(digests)
    shuffle.shuffle(shuffled)
    chosen = choose_replay(rows_of(digests), count, seed=seed)
    assert len(chosen) == count
    assert Counter(chosen) == Counter(choose_replay(rows_of(shuffled), count, seed=seed))


@given(st.sets(st.integers(0, 10_000), min_size=1, max_size=40), st.integers(0, 200), st.integers())
def test_every_row_is_seen_equally_often(numbers: set[int], count: int, seed: int) -> None:
    rows = rows_of([str(number) for number in numbers])
    times = Counter(choose_replay(rows, count, seed=seed))
    most = max(times.values(), default=0)
    assert most - min(times[row] for row in rows) <= 1


@given(st.sets(st.integers(0, 10_000), min_size=2, max_size=40), st.integers())
def test_an_appended_row_takes_at_most_one_place(numbers: set[int], seed: int) -> None:
    *rows, last = rows_of([str(number) for number in numbers])
    count = len(rows) // 2
    before, after = (set(choose_replay(some, count, seed=seed)) for some in (rows, [*rows, last]))
    assert len(before - after) <= 1
    assert after - before <= {last}


def test_another_seed_chooses_other_rows() -> None:
    rows = rows_of([str(number) for number in range(100)])
    first, second = (set(choose_replay(rows, 20, seed=seed)) for seed in (0, 1))
    assert first != second
