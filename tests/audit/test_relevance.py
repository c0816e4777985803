from __future__ import annotations

import random

import pytest

from ftray.audit.relevance import Relevance
from ftray.data.config import Source
from ftray.data.conversations import Example
from ftray.data.readers import read_source


def relevance(**datasets):
    finder = Relevance()
    for name in ("validation", "test", "stories", "train"):
        finder.see(name, datasets.get(name, []))
    return finder.checks()[0]


@pytest.fixture
def rows(shared):
    def read(file, dataset, num_rows=None, **settings):
        columns = {"prompt": "Which intent? {text}", "completion": "{intent}"} if "formats" not in file else {}
        examples = read_source(Source(path=str(shared / "data" / file), **columns), name=dataset, base=shared)
        return random.Random(0).sample(examples, num_rows or len(examples))

    return read


def test_rows_of_one_source_are_near(rows):
    check = relevance(train=rows("snips/train.jsonl", "train", 3000), test=rows("snips/heldout.jsonl", "test"))
    assert (check.status, check.examples) == ("pass", ())
    assert check.share < 0.15
    assert check.facts["train_far_share"] < 0.3
    few = relevance(train=rows("clinc150/train.jsonl", "train", 300), test=rows("clinc150/test.jsonl", "test", 300))
    assert few.status == "pass"


@pytest.mark.parametrize("file", ["snips/heldout.jsonl", "formats/alpaca_en_demo.json"])
def test_rows_of_another_task_are_far(rows, file):
    train, test = rows("clinc150/train.jsonl", "train", 5000), rows(file, "test", 500)
    check = relevance(train=train, test=test)
    assert (check.status, check.rows) == ("warn", 500)
    assert check.share > 0.4
    assert all(
        pointer.dataset == "test" and pointer.similarity < check.facts["far_below"] for pointer in check.examples
    )
    assert check.facts["train_far_share"] > 0.3


def test_the_farthest_set_decides_and_probes_are_left_alone(rows):
    train, near = rows("clinc150/train.jsonl", "train", 3000), rows("clinc150/val.jsonl", "validation", 500)
    far = rows("formats/alpaca_en_demo.json", "test", 300)
    check = relevance(train=train, validation=near, test=far)
    assert check.status == "warn"
    assert {pointer.dataset for pointer in check.examples} == {"test"}
    assert check.facts["far_share"]["validation"] < 0.2
    assert relevance(train=train, validation=near, stories=far).status == "pass"


def test_diverse_instructions_are_near_each_other(rows):
    examples = rows("formats/alpaca_en_demo.json", "train")
    assert relevance(train=examples[:800], test=examples[800:]).status == "pass"


def test_without_prompts_to_compare_it_is_skipped(make_example):
    train = [make_example(f"question {i}", "a", row=i) for i in range(100)]
    texts = [Example(messages=(), text="story", dataset="test", row=i, fields={}, columns={}) for i in range(100)]
    for datasets in ({"train": train}, {"train": train, "test": train[:5]}, {"train": train, "test": texts}):
        check = relevance(**datasets)
        assert (check.status, check.count) == ("skipped", 0)


def test_prompts_without_common_words_are_not_judged(make_example):
    def some(dataset, first):
        return [make_example(f"word{first + row}", "a", row=row, dataset=dataset) for row in range(40)]

    check = relevance(train=some("train", 0), test=some("test", 100))
    assert check.status == "skipped"
    assert "hardly a word in common" in check.fix
