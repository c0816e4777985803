from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from ftray.audit.noise import LabelNoise, judge_surprise, out_of_fold, suspect_labels
from ftray.data.config import Source
from ftray.data.conversations import Example, Message
from ftray.data.readers import read_source

BANKING = (
    "freeze account", "routing", "pin change", "bill due", "pay bill", "account blocked", "interest rate",
    "min payment", "bill balance", "transfer", "order checks", "balance", "spending history", "transactions",
    "report fraud",
)  # fmt: skip
WRONG_FRUIT = ("plum apple", "fig and pear", "pear, apple", "apple fig", "plum or plum", "a fig of pear")


def noise(rows, **settings):
    finder = LabelNoise(**settings)
    for start in range(0, len(rows), 1000):
        finder.see("train", rows[start : start + 1000])
    return finder.checks()[0]


def planted(rows, share=0.05, seed=0):
    """Return the rows with a share of wrong labels, and which."""
    pick = random.Random(seed)
    labels = sorted({row.answer_text for row in rows})
    wrong = set(pick.sample(range(len(rows)), round(share * len(rows))))
    changed = []
    for number, row in enumerate(rows):
        label = pick.choice([label for label in labels if label != row.answer_text])
        turns = (*row.messages[:-1], Message(role="assistant", content=label if number in wrong else row.answer_text))
        changed.append(Example(messages=turns, dataset="train", row=number, fields=row.fields, columns={}))
    return changed, wrong


@pytest.fixture
def intents(shared):
    def read(file, labels=None, num_rows=None):
        source = Source(path=str(shared / "data" / file), prompt="Which intent? {text}", completion="{intent}")
        rows = read_source(source, name="train", base=shared)
        rows = [row for row in rows if labels is None or row.answer_text in labels]
        return random.Random(0).sample(rows, num_rows or len(rows))

    return read


def calling(row):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    turns = (*row.messages[:-1], Message(role="assistant", content="", tool_calls=(call,)))
    return dataclasses.replace(row, messages=turns)


@pytest.fixture
def separable(make_example):
    words = {"fruit": "apple pear plum fig", "tool": "hammer saw drill nail", "pet": "cat dog hamster parrot"}
    pick = random.Random(0)
    return [
        make_example(" ".join(["the", *pick.choices(words[label].split(), k=3)]) + f" {i}", label, row=i)
        for i, label in enumerate(["fruit", "tool", "pet"] * 60)
    ]


def test_wrong_labels_are_named_with_the_likely_ones(separable, make_example):
    rows = [*separable, *[make_example(prompt, "tool", row=180 + i) for i, prompt in enumerate(WRONG_FRUIT)]]
    check = noise(rows)
    assert check.status == "warn"
    assert {pointer.row for pointer in check.examples} <= set(range(180, 186))
    first = check.facts["worst"][0]
    assert (first["row"] >= 180, first["given"], first["suggested"]) == (True, "tool", "fruit")
    assert check.facts["accuracy"] > 0.9
    assert noise(separable).status == "pass"


@pytest.mark.parametrize(
    ("file", "labels", "num_rows"), [("snips/train.jsonl", None, 2000), ("clinc150/train.jsonl", BANKING, None)]
)
def test_planted_wrong_labels_of_real_intents_are_found(intents, file, labels, num_rows):
    rows = intents(file, labels, num_rows)
    clean = noise(rows)
    assert (clean.status, clean.share < 0.015) == ("pass", True)
    dirty, wrong = planted(rows)
    check = noise(dirty)
    assert check.status == "warn"
    assert sum(worst["row"] in wrong for worst in check.facts["worst"]) >= 8
    labels = sorted({row.answer_text for row in dirty})
    given = np.array([labels.index(row.answer_text) for row in dirty])
    prompts = [row.fields["text"] for row in dirty]
    probabilities, is_known = out_of_fold(prompts, given, num_labels=len(labels))
    named = {suspect.index for suspect in suspect_labels(probabilities, given, is_known)}
    assert len(named & wrong) > 0.88 * len(wrong)
    assert len(named & wrong) > 0.72 * len(named)


def test_the_same_rows_give_the_same_suspects(intents):
    rows, _ = planted(intents("clinc150/train.jsonl", BANKING))
    assert noise(rows) == noise(rows)


def test_labels_that_prompts_do_not_tell_are_not_judged(make_example):
    pick = random.Random(0)
    rows = [make_example(f"word{pick.randint(0, 50)} row {i}", pick.choice("abcd"), row=i) for i in range(400)]
    check = noise(rows)
    assert check.status == "skipped"
    assert "predicts only" in check.fix


def test_what_is_no_label_is_skipped_with_a_reason(make_example):
    free = [make_example(f"q {i}", f"answer {i}", row=i) for i in range(300)]
    few = [make_example(f"q {i}", "ab"[i % 2], row=i) for i in range(10)]
    constant = [
        Example(messages=make_example("Say.", "ab"[i % 2]).messages, dataset="train", row=i, fields={}, columns={})
        for i in range(100)
    ]
    long = [make_example(f"q {i}", "yes " * 40 + "ab"[i % 2], row=i) for i in range(300)]
    calls = [calling(row) for row in few * 20]
    for rows in (free, few, constant, long, calls, []):
        check = noise(rows)
        assert (check.status, check.count) == ("skipped", 0)
        assert check.fix
    assert "--model" in noise(free).fix


def test_a_label_with_few_rows_is_not_judged(separable, make_example):
    rare = [make_example(f"apple pear {i}", "rare", row=180 + i) for i in range(3)]
    check = noise([*separable, *rare])
    assert check.rows == 180
    assert not {pointer.row for pointer in check.examples} & {180, 181, 182}


def test_equal_prompts_do_not_vouch_for_each_other(separable, make_example):
    copies = [make_example("Apple, pear and fig!", "pet", row=180 + i) for i in range(4)]
    assert {pointer.row for pointer in noise([*separable, *copies]).examples} == {180, 181, 182, 183}


def test_suspects_need_a_confident_other_label():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.05, 0.95], [0.5, 0.5]])
    given = np.array([0, 0, 1, 1, 0, 1])
    everyone = np.ones(6, bool)
    (suspect,) = suspect_labels(probabilities, given, everyone)
    assert (suspect.index, suspect.suggested, suspect.probability) == (4, 1, 0.95)
    assert suspect.margin == pytest.approx(0.9)
    assert suspect_labels(probabilities, given, everyone & (np.arange(6) != 4)) == []


def test_surprising_free_answers_are_ranked(make_example):
    pick = random.Random(0)
    surprise = {("train", row): pick.gauss(1.0, 0.1) for row in range(300)}
    assert judge_surprise(surprise).status == "pass"
    free = [make_example(f"q {i}", f"answer {i}", row=i) for i in range(300)]
    check = noise(free, surprise=surprise | {("train", 7): 4.0, ("train", 9): 5.0})
    assert (check.status, check.count, check.rows) == ("warn", 2, 300)
    assert [pointer.row for pointer in check.examples] == [9, 7]
    assert check.facts["worst"][0] == {"dataset": "train", "row": 9, "bits_per_byte": 5.0}
    assert judge_surprise({("train", 1): 1.0}).status == "skipped"


def test_a_change_of_rows_in_other_datasets_changes_nothing(separable):
    finder = LabelNoise()
    finder.see("test", [dataclasses.replace(row, dataset="test") for row in separable])
    assert finder.checks()[0].status == "skipped"


def test_rows_of_several_files_are_told_apart(separable, make_example):
    fruit = [make_example(prompt, "tool", row=i, dataset="b") for i, prompt in enumerate(WRONG_FRUIT)]
    check = noise([*[dataclasses.replace(row, dataset="a") for row in separable], *fruit])
    places = {("b", row) for row in range(len(fruit))}
    assert check.count > 2
    assert {(pointer.dataset, pointer.row) for pointer in check.examples} <= places
    first = check.facts["worst"][0]
    assert (first["dataset"], first["row"]) in places
    surprise = {(name, row): 1.0 + row / 100 for name in ("a", "b") for row in range(30)} | {("b", 5): 9.0}
    check = judge_surprise(surprise)
    assert (check.rows, [(one.dataset, one.row) for one in check.examples]) == (60, [("b", 5)])
