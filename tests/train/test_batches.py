"""Which examples make up a step, and that sharing them out loses, repeats and reorders none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.data.tokenization import TokenizedExample
from ftray.train.batches import Sharing, StepSampler, count_labels, share_out

CAPACITY = 16


def rows_of(lengths: Sequence[int]) -> list[TokenizedExample]:
    return [
        TokenizedExample(
            tokens=np.full(length, row, dtype=np.int32), is_label=np.arange(length) > 0, prompt_length=1,
            dataset="train", row=row, digest=f"{row:064x}",
        )
        for row, length in enumerate(lengths)
    ]  # fmt: skip


def sharing(workers: int, micro_batch_size: int, packed_length: int | None = None) -> Sharing:
    return Sharing(workers=workers, micro_batch_size=micro_batch_size, packed_length=packed_length)


def labelled(shares: list[list[list[TokenizedExample]]]) -> list[int]:
    """Return the rows with labels of all workers and micro-batches, sorted."""
    return sorted(one.row for share in shares for batch in share for one in batch if one.is_label.any())


# Sharing


@given(
    st.lists(st.integers(2, CAPACITY), min_size=1, max_size=24),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from([None, CAPACITY]),
)
def test_every_example_is_computed_once_by_equally_busy_workers(
    lengths: list[int], workers: int, micro: int, packed: int | None
) -> None:
    examples = rows_of(lengths)
    shares = share_out(examples, sharing(workers, micro, packed))
    assert labelled(shares) == list(range(len(lengths)))
    assert len(shares) == workers
    assert len({len(share) for share in shares}) == 1
    assert all(batch for share in shares for batch in share)
    assert sum(count_labels(batch) for share in shares for batch in share) == count_labels(examples)
    for share in shares:
        for batch in share:
            if packed is None:
                assert len(batch) <= micro
            else:
                assert sum(len(one.tokens) for one in batch) <= micro * packed


@given(st.lists(st.integers(2, 40), min_size=1, max_size=24), st.integers(1, 5))
def test_no_worker_has_more_than_its_share_of_the_examples(lengths: list[int], workers: int) -> None:
    shares = share_out(rows_of(lengths), sharing(workers, 1))
    counts = [sum(bool(one.is_label.any()) for batch in share for one in batch) for share in shares]
    assert max(counts) <= -(-len(lengths) // workers)


def test_one_times_eight_is_two_times_four_is_four_times_two() -> None:
    examples = rows_of([5, 9, 2, 7, 7, 3, 11, 4])
    for workers, micro in ((1, 8), (2, 4), (4, 2)):
        shares = share_out(examples, sharing(workers, micro))
        assert [len(share) for share in shares] == [1] * workers
        assert [len(share[0]) for share in shares] == [micro] * workers
        assert labelled(shares) == list(range(8))


def test_tokens_are_balanced() -> None:
    shares = share_out(rows_of([8, 7, 6, 5, 4, 3, 2, 1]), sharing(2, 4))
    assert [sum(len(one.tokens) for batch in share for one in batch) for share in shares] == [18, 18]


def test_a_worker_without_work_computes_the_shortest_example_without_labels() -> None:
    shares = share_out(rows_of([9, 4]), sharing(3, 1))
    idle = shares[2]
    assert [len(batch) for batch in idle] == [1]
    assert len(idle[0][0].tokens) == 4
    assert count_labels(idle[0]) == 0


def test_packed_rows_are_filled() -> None:
    shares = share_out(rows_of([10, 6, 8, 8, 16]), sharing(1, 1, CAPACITY))
    assert [sum(len(one.tokens) for one in batch) for batch in shares[0]] == [16, 16, 16]


def test_a_first_token_is_never_counted() -> None:
    row = rows_of([3])[0]
    everything = TokenizedExample(
        tokens=row.tokens, is_label=np.ones(3, dtype=bool), prompt_length=0, dataset="train", row=0, digest="0"
    )
    assert count_labels([everything, row]) == 4


# Sampling


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_every_example_is_seen_once_an_epoch(count: int, batch_size: int, epoch: int) -> None:
    sampler = StepSampler(rows_of([3] * count), batch_size=batch_size, seed=1)
    first = epoch * sampler.steps_per_epoch
    steps = [sampler.step(first + position) for position in range(sampler.steps_per_epoch)]
    assert Counter(one.row for step in steps for one in step) == Counter(range(count))
    assert all(len(step) == batch_size for step in steps[:-1])
    assert 1 <= len(steps[-1]) <= batch_size


def order(examples: Sequence[TokenizedExample], *, epoch: int = 0, seed: int = 0) -> list[str]:
    sampler = StepSampler(examples, batch_size=4, seed=seed)
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    return [one.digest for step in steps for one in sampler.step(step)]


def test_the_order_depends_on_seed_and_epoch_and_not_on_the_files_order() -> None:
    examples = rows_of([3] * 30)
    assert order(list(reversed(examples))) == order(examples)
    assert len({tuple(order(examples, epoch=epoch, seed=seed)) for epoch in range(3) for seed in range(3)}) == 9


def test_a_step_can_be_asked_for_in_any_order() -> None:
    sampler = StepSampler(rows_of([3] * 10), batch_size=3, seed=0)
    forth = [[one.row for one in sampler.step(step)] for step in range(12)]
    back = [[one.row for one in sampler.step(step)] for step in reversed(range(12))]
    assert forth == back[::-1]


@pytest.mark.parametrize(
    "how", [{"micro_batch_size": 3}, {"workers": 4}, {"sequence_packing": True}, {"max_steps": 50}], ids=str
)
def test_settings_of_the_machine_do_not_change_what_a_step_holds(tiny: ModuleType, how: dict[str, Any]) -> None:
    from ftray.train.state import Training

    def rows(**changes: Any) -> list[list[int]]:
        training, found = Training(tiny.plan(**changes), tiny.examples()), []
        for step in range(12):
            training.progress.step = step
            found.append([one.row for one in training.upcoming().examples])
        return found

    assert rows(**how) == rows()
