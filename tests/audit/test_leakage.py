from __future__ import annotations

import numpy as np
import pytest

from ftray.audit.leakage import Leakage
from ftray.audit.overlap import Overlaps
from ftray.audit.report import Check
from ftray.data.config import SplitConfig
from ftray.data.conversations import Example
from ftray.data.fingerprint import Prints


def leakage(train: list[Example], validation: list[Example], split: SplitConfig) -> Check:
    overlaps = Overlaps(Prints(np.zeros(0, dtype=np.uint64)))
    finder = Leakage(overlaps, split)
    for dataset, examples in (("validation", validation), ("train", train)):
        if examples:
            overlaps.see(dataset, examples)
            finder.see(dataset, examples)
    (check,) = finder.checks()
    return check


@pytest.fixture
def sides(make_example):
    train = [
        make_example(f"the {row} th question of training", "a", row=row, user=row % 9, day=row) for row in range(90)
    ]
    validation = [
        make_example(
            f"a {row} th thing that validates", "a", row=row, dataset="validation", user=10 + row, day=100 + row
        )
        for row in range(40)
    ]
    return train, validation


@pytest.mark.parametrize(
    "split", [SplitConfig(), SplitConfig(by="group", column="user"), SplitConfig(by="time", column="day")]
)
def test_sides_that_share_nothing_pass(sides, split):
    assert leakage(*sides, split).status == "pass"


def test_a_repeated_question_leaks(make_example, sides):
    train, validation = sides
    validation = [*validation, make_example(train[5].prompt_text.upper(), "a", row=40, dataset="validation")]
    check = leakage(train, validation, SplitConfig())
    assert (check.status, check.count, check.examples[0].row, check.examples[0].other_row) == ("warn", 1, 40, 5)


@pytest.mark.parametrize(
    ("split", "columns"),
    [(SplitConfig(by="group", column="user"), {"user": 3}), (SplitConfig(by="time", column="day"), {"day": 89})],
)
def test_a_group_or_time_on_both_sides_leaks(make_example, sides, split, columns):
    train, validation = sides
    leaking = [
        make_example(f"new {row} words altogether", "a", row=row, dataset="validation", **columns) for row in range(5)
    ]
    check = leakage(train, [*validation, *leaking], split)
    assert (check.status, check.count) == ("fail", 5)


def test_without_validation_rows_it_is_skipped(sides):
    assert leakage(sides[0], [], SplitConfig()).status == "skipped"
