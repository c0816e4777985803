from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.data.packing import best_fit


@given(st.integers(1, 200).flatmap(lambda cap: st.tuples(st.just(cap), st.lists(st.integers(0, cap), max_size=60))))
def test_every_item_is_packed_once_and_no_bin_overflows(case):
    capacity, lengths = case
    bins = best_fit(lengths, capacity)
    assert sorted(index for packed in bins for index in packed) == list(range(len(lengths)))
    loads = sorted(sum(lengths[index] for index in packed) for packed in bins)
    assert all(load <= capacity for load in loads)
    # Any two bins of a best fit hold more than one bin could.
    assert len(loads) < 2 or loads[0] + loads[1] > capacity


def test_the_fullest_bin_that_fits_is_taken():
    assert best_fit([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    assert best_fit([], 10) == []


def test_an_item_that_cannot_fit_is_a_bug():
    with pytest.raises(AssertionError):
        best_fit([11], 10)
