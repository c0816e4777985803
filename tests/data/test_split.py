from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftray.data.config import SplitConfig
from ftray.data.split import data_order, split_validation
from ftray.errors import InputError


def rows(examples):
    return [example.row for example in examples]


def test_appended_rows_move_nobody(make_example):
    examples = [make_example(f"question {i}", "a", row=i) for i in range(400)]
    before = split_validation(examples[:300], share=0.1, config=SplitConfig(), seed=3)
    after = split_validation(examples, share=0.1, config=SplitConfig(), seed=3)
    assert [row for row in rows(after.validation) if row < 300] == rows(before.validation)
    assert 20 <= len(after.validation) <= 60
    assert rows(split_validation(examples, share=0.1, config=SplitConfig(), seed=4).validation) != rows(
        after.validation
    )


def test_equal_questions_stay_together(make_example):
    examples = [make_example(f"Question {i // 4}{'!' * (i % 4)}", str(i), row=i) for i in range(200)]
    split = split_validation(examples, share=0.3, config=SplitConfig(), seed=0)
    assert not {e.normalised_prompt for e in split.train} & {e.normalised_prompt for e in split.validation}


def reworded(seed: int, variant: int) -> str:
    words = random.Random(seed).choices([f"w{i}" for i in range(500)], k=30)
    words[variant % 30] = f"other{variant}"
    return " ".join(words)


def test_nearly_equal_questions_stay_together(make_example):
    examples = [make_example(reworded(i // 4, i % 4), str(i), row=i) for i in range(200)]
    split = split_validation(examples, share=0.3, config=SplitConfig(), seed=0)
    assert not {e.row // 4 for e in split.train} & {e.row // 4 for e in split.validation}
    assert 20 <= len(split.validation) <= 100
    assert not split.left_out


def test_a_row_like_rows_of_both_sides_is_left_out(make_example):
    def text(start: int) -> str:
        return " ".join(f"w{i}" for i in range(start, start + 40))

    for seed in range(20):
        # 0 and 12 are too far apart to be alike, 6 is like both.
        rows = [make_example(text(start), "a", row=row) for row, start in enumerate((0, 12, 6))]
        rest = [make_example(f"something else number {i}", "b", row=3 + i) for i in range(40)]
        split = split_validation([*rows, *rest], share=0.5, config=SplitConfig(), seed=seed)
        sides = [{e.row for e in side} for side in (split.train, split.validation)]
        together = any({0, 1} <= side for side in sides)
        assert any(2 in side for side in sides) == together
        assert [e.row for e in split.left_out] == ([] if together else [2])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=3, max_size=40), st.integers(2, 39))
def test_appended_near_repetitions_move_nobody(make_example, rows, cut):
    settled = [make_example(f"row {i} of many that differ {i * 7919}", "a", row=i) for i in range(50)]
    grown = [make_example(reworded(a, b), "a", row=50 + i) for i, (a, b) in enumerate(rows)]
    sides = []
    for examples in (settled + grown[:cut], settled + grown):
        split = split_validation(examples, share=0.4, config=SplitConfig(), seed=1)
        known = 50 + min(cut, len(grown))
        sides.append([[e.row for e in side if e.row < known] for side in (split.train, split.left_out)])
    assert sides[0] == sides[1]


def test_repeated_rows_validate_once(make_example):
    examples = [example for i in range(50) for example in [make_example(f"q{i}", "a", row=i)] * 2]
    split = split_validation(examples, share=0.3, config=SplitConfig(), seed=0)
    assert len(rows(split.validation)) == len(set(rows(split.validation)))
    assert len(split.train) + 2 * len(split.validation) == 100


def test_groups_stay_together(make_example):
    examples = [make_example(f"q{i}", "a", row=i, user=i % 20) for i in range(200)]
    split = split_validation(examples, share=0.3, config=SplitConfig(by="group", column="user"), seed=0)
    assert not {e.columns["user"] for e in split.train} & {e.columns["user"] for e in split.validation}


def test_the_latest_rows_validate(make_example):
    examples = [make_example(f"q{i}", "a", row=i, day=(i * 7) % 100) for i in range(100)]
    split = split_validation(examples, share=0.1, config=SplitConfig(by="time", column="day"), seed=0)
    assert sorted(e.columns["day"] for e in split.validation) == list(range(90, 100))


def test_numbers_that_a_csv_file_holds_as_text_are_times(make_example):
    examples = [make_example(f"q{i}", "a", row=i, day=str(i)) for i in range(120)]
    split = split_validation(examples, share=0.1, config=SplitConfig(by="time", column="day"), seed=0)
    assert sorted(e.row for e in split.validation) == list(range(108, 120))


@pytest.mark.parametrize(("by", "value"), [("group", ""), ("group", None), ("time", [3]), ("time", float("nan"))])
def test_a_row_without_a_group_or_time_is_named(make_example, by, value):
    examples = [make_example(f"q{i}", "a", row=i, day=value if i == 3 else i) for i in range(10)]
    with pytest.raises(InputError, match="row 3") as caught:
        split_validation(examples, share=0.5, config=SplitConfig(by=by, column="day"), seed=0)
    assert caught.value.kind == "bad_row"


def test_rows_of_the_same_time_stay_together(make_example):
    examples = [make_example(f"q{i}", "a", row=i, day=i // 30) for i in range(100)]
    split = split_validation(examples, share=0.2, config=SplitConfig(by="time", column="day"), seed=0)
    assert {e.columns["day"] for e in split.validation} == {3}


@pytest.mark.parametrize("by", ["content", "time"])
def test_a_side_without_rows_is_refused(make_example, by):
    examples = [make_example("same", "a", row=i, day=1) for i in range(10)]
    with pytest.raises(InputError, match="leaves no") as caught:
        split_validation(examples, share=0.5, config=SplitConfig(by=by, column="day"), seed=0)
    assert caught.value.kind == "empty_split"


@pytest.mark.parametrize("column", [None, "dya"])
def test_a_missing_column_is_refused(make_example, column):
    examples = [make_example("q", "a", row=i, day=1) for i in range(10)]
    with pytest.raises(InputError) as caught:
        split_validation(examples, share=0.5, config=SplitConfig(by="group", column=column), seed=0)
    assert caught.value.kind == "missing_column"
    assert "day" in caught.value.allowed


def test_times_of_different_types_are_refused(make_example):
    examples = [make_example("q", "a", row=i, day=day) for i, day in enumerate([1, "the second of May"])]
    with pytest.raises(InputError, match="mixes int and str"):
        split_validation(examples, share=0.5, config=SplitConfig(by="time", column="day"), seed=0)


@given(st.lists(st.sampled_from("abcdef"), max_size=30), st.integers(0, 3), st.integers(0, 3), st.randoms())
def test_an_epochs_order_is_a_function_of_content(digests, seed, epoch, random):
    order = [digests[index] for index in data_order(digests, seed=seed, epoch=epoch)]
    shuffled = random.sample(digests, len(digests))
    assert [shuffled[index] for index in data_order(shuffled, seed=seed, epoch=epoch)] == order
    assert sorted(order) == sorted(digests)


def test_epochs_and_seeds_differ():
    digests = [str(i) for i in range(50)]
    orders = {tuple(data_order(digests, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
