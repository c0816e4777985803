from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ftray.audit.sample import Sample
from ftray.data.conversations import Example


def texts(rows, dataset="train"):
    return [Example(messages=(), text=f"text {row}", dataset=dataset, row=row, fields={}, columns={}) for row in rows]


def sampled(size, *chunks, dataset="train"):
    sample = Sample(size, lambda example: example.text)
    for chunk in chunks:
        sample.see(texts(chunk, dataset))
    return sample


@given(st.integers(1, 60), st.integers(0, 200), st.integers(1, 50))
def test_the_sample_is_the_same_however_rows_are_cut_into_chunks(size, num_rows, chunk):
    rows = range(num_rows)
    whole = sampled(size, rows)
    parts = sampled(size, *[rows[start : start + chunk] for start in range(0, num_rows, chunk)])
    assert [row.row for row in whole.rows] == [row.row for row in parts.rows]
    assert len(whole.rows) == min(size, num_rows)
    assert whole.is_all == parts.is_all == (num_rows <= size)
    assert parts.num_seen == num_rows


def test_rows_put_at_the_end_only_displace_others():
    before = {row.row for row in sampled(100, range(1000)).rows}
    after = {row.row for row in sampled(100, range(1100)).rows}
    assert {row for row in after if row < 1000} <= before
    assert 0 < len(after - before) < 30


def test_the_sample_is_spread_and_differs_between_datasets():
    rows = [row.row for row in sampled(500, range(10_000)).rows]
    assert 4500 < sum(rows) / len(rows) < 5500
    others = [row.row for row in sampled(500, range(10_000), dataset="test").rows]
    assert len(set(rows) & set(others)) < 60


def test_what_is_not_kept_is_not_in_the_sample():
    sample = Sample(10, lambda example: example.text if example.row % 2 else None)
    sample.see(texts(range(100)))
    assert all(row.row % 2 for row in sample.rows)
    assert [row.kept for row in sample.rows] == [f"text {row.row}" for row in sample.rows]


def test_rows_of_several_files_are_known_by_file_and_number():
    sample = Sample(100, lambda example: example.text)
    sample.see([*texts(range(1000), "a"), *texts(range(1000), "b")])
    places = [(row.dataset, row.row) for row in sample.rows]
    assert len(set(places)) == 100
    # Were rows chosen by number alone, those of one file would be those of the other.
    assert len({row for _, row in places}) > 80
