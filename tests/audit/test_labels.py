from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.audit.labels import Labels, is_dominant, normalised_entropy
from ftray.data.config import Source
from ftray.data.conversations import Example
from ftray.data.readers import read_source


@pytest.fixture
def labelled(make_example):
    def make(counts, dataset="train"):
        labels = [label for label, n in counts.items() for _ in range(n)]
        return [make_example(f"question {i}", label, row=i, dataset=dataset) for i, label in enumerate(labels)]

    return make


def by_name(train, test=()):
    finder = Labels()
    finder.see("test", test)
    for start in range(0, len(train), 100):
        finder.see("train", train[start : start + 100])
    return {check.name: check for check in finder.checks()}


def test_even_labels_pass_with_their_counts(labelled):
    check = by_name(labelled({"a": 50, "b": 50, "c": 50}))["label_balance"]
    assert (check.status, check.count, check.rows) == ("pass", 0, 150)
    assert check.facts["labels"] == {"a": 50, "b": 50, "c": 50}
    assert check.facts["entropy"] == pytest.approx(1)


def test_a_label_that_dominates_is_named(labelled):
    counts = {"none": 700, **{f"label {i}": 30 for i in range(10)}}
    check = by_name(labelled(counts))["label_balance"]
    assert (check.status, check.count) == ("warn", 700)
    assert "70% of the training rows have the answer 'none', of 11 answers" in check.fix
    assert by_name(labelled({"yes": 85, "no": 15}))["label_balance"].status == "pass"
    assert by_name(labelled({"yes": 95, "no": 5}))["label_balance"].status == "warn"


def test_rare_labels_are_pointed_at(labelled):
    check = by_name(labelled({"play music": 150, "play msuic": 2, "get weather": 120}))["label_balance"]
    assert (check.status, check.count) == ("warn", 2)
    assert [pointer.row for pointer in check.examples] == [150]
    assert "'play msuic' (2)" in check.fix
    assert by_name(labelled({"a": 90, "b": 2}))["label_balance"].facts["labels"] == {"a": 90, "b": 2}


def test_a_single_label_leaves_nothing_to_choose(labelled):
    check = by_name(labelled({"yes": 200}))["label_balance"]
    assert check.status == "warn"
    assert "nothing to choose" in check.fix


def test_labels_of_test_that_training_never_shows(labelled):
    test = labelled({"A!": 3, "d": 2, "e": 1}, "test")
    check = by_name(labelled({"a": 50, "b": 50}), test)["label_coverage"]
    assert (check.status, check.count, check.rows) == ("warn", 3, 6)
    assert [(p.dataset, p.row) for p in check.examples] == [("test", 3), ("test", 4), ("test", 5)]
    assert "('d', 'e')" in check.fix
    assert by_name(labelled({"a": 50, "b": 50}), labelled({"a": 1}, "test"))["label_coverage"].status == "pass"


def test_free_answers_and_texts_are_no_labels(labelled):
    free = labelled({f"answer {i}": 1 for i in range(300)})
    text = Example(messages=(), text="x", dataset="train", row=0, fields={}, columns={})
    for train in (free, [text] * 200, labelled({"a": 1, "b": 1})):
        assert {check.status for check in by_name(train, free[:3]).values()} == {"skipped"}
    assert by_name(labelled({"a": 50, "b": 50}))["label_coverage"].status == "skipped"


counts = st.dictionaries(st.text(max_size=3), st.integers(1, 1000), min_size=1, max_size=50)


@given(counts)
def test_entropy_is_a_share_and_one_only_when_even(some):
    entropy = normalised_entropy(Counter(some))
    assert 0 <= entropy <= 1 + 1e-9
    if len(some) > 1:
        assert (entropy > 1 - 1e-9) == (len(set(some.values())) == 1)


@given(counts)
def test_an_even_split_never_dominates(some):
    assert not is_dominant(dict.fromkeys(some, 7)) or len(some) == 1


def test_real_intents_are_balanced_and_covered(shared):
    def rows(file, name):
        source = Source(path=str(shared / "data/snips" / file), prompt="{text}", completion="{intent}")
        return read_source(source, name=name, base=shared)

    checks = by_name(rows("train.jsonl", "train"), rows("heldout.jsonl", "test"))
    assert {check.status for check in checks.values()} == {"pass"}
    assert len(checks["label_balance"].facts["labels"]) == 7
