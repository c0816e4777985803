from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.audit.outliers import Outliers, unusual
from ftray.data.config import Source
from ftray.data.conversations import Example
from ftray.data.readers import read_source


def outliers(rows, dataset="train"):
    finder = Outliers()
    finder.see(dataset, rows)
    return finder.checks()[0]


@pytest.fixture
def clean(make_example):
    pick = random.Random(0)
    return [
        make_example("q" * pick.randint(20, 80), f"{row} " + "a" * int(pick.lognormvariate(4, 0.8)), row=row)
        for row in range(1000)
    ]


def test_long_prompts_and_long_answers_are_found_and_ranked(clean, make_example):
    planted = [
        make_example("q" * 2000, "ordinary answer", row=1000),
        make_example("q" * 50, "a" * 200_000, row=1001),
        make_example("q" * 9000, "ordinary answer", row=1002),
    ]
    check = outliers([*clean, *planted])
    assert (check.status, check.count, check.rows) == ("warn", 3, 1003)
    assert [pointer.row for pointer in check.examples] == [1002, 1001, 1000]
    assert check.facts["prompt"]["long"] == 2
    assert check.facts["answer"]["long"] == 1
    assert "longest 9,000 characters" in check.fix


def test_a_natural_tail_and_evaluation_rows_are_nothing_unusual(clean, make_example):
    assert outliers(clean).status == "pass"
    finder = Outliers()
    finder.see("test", [make_example("q" * 100_000, "a", row=0, dataset="test")])
    finder.see("train", clean)
    assert finder.checks()[0].count == 0


def test_a_tenth_of_long_rows_is_a_second_kind_of_row_and_no_outlier(clean, make_example):
    long = [make_example("q" * 4000, f"answer {row}", row=1000 + row) for row in range(150)]
    assert outliers([*clean, *long]).count == 0


def test_labels_have_no_outliers(make_example):
    rows = [make_example(f"question {i:04d}", "a very long label indeed, as labels go" * 3, row=i) for i in range(500)]
    assert outliers([*rows, *[make_example(f"question {i}", "no", row=500 + i) for i in range(5)]]).status == "pass"


def test_texts_are_compared_with_texts():
    def text(row, length):
        return Example(messages=(), text="x" * length, dataset="train", row=row, fields={}, columns={})

    check = outliers([*[text(row, 500 + row) for row in range(200)], text(200, 100_000), text(201, 3)])
    assert [pointer.row for pointer in check.examples] == [200, 201]
    assert check.facts["text"] == {
        "characters": {"p0": 3, "p5": 509, "p50": 599, "p95": 689, "p100": 100_000},
        "long": 1,
        "short": 1,
    }


def test_few_rows_are_not_judged(clean):
    assert outliers(clean[:40]).status == "skipped"


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=200))
def test_the_median_is_never_unusual(lengths):
    far = unusual(np.array(lengths, np.int32))
    assert (far[np.array(lengths) == int(np.median(lengths))] == 0).all()
    assert np.count_nonzero(far) < len(lengths)


def test_real_files_have_none(shared):
    for file in ("alpaca_en_demo.json", "dolly_151.jsonl", "glaive_toolcall_en_demo.json", "c4_demo.jsonl"):
        rows = read_source(Source(path=str(shared / "data/formats" / file)), name="train", base=shared)
        assert outliers(rows).status == "pass", file


@pytest.mark.parametrize("names", [("a", "b"), ("train", "train")])
def test_rows_of_several_files_with_the_same_number_are_all_counted(clean, make_example, names):
    first, second = (
        [dataclasses.replace(row, dataset=name) for row in [*clean, make_example("q" * length, "an answer", row=1000)]]
        for name, length in zip(names, (2000, 9000), strict=True)
    )
    check = outliers([*first, *second])
    assert (check.count, check.rows) == (2, 2002)
    assert [(pointer.dataset, pointer.row) for pointer in check.examples] == [(names[1], 1000), (names[0], 1000)]
