from __future__ import annotations

import random

import numpy as np

from ftray.audit.duplicates import Duplicates
from ftray.data.conversations import Example
from ftray.data.fingerprint import Prints

NOTHING = np.zeros(0, dtype=np.uint64)


def sentence(seed: int, words: int = 40) -> str:
    return " ".join(
        random.Random(seed).choices([a + b + c for a in "bdfgklmp" for b in "aeiou" for c in "nrstxyzvwh"], k=words)
    )


def audited(examples: list[Example], chunk: int = 7) -> Duplicates:
    duplicates = Duplicates(Prints(NOTHING))
    duplicates.see("test", examples)  # evaluation rows repeat nothing in training
    for start in range(0, len(examples), chunk):
        duplicates.see("train", examples[start : start + chunk])
    return duplicates


def counts(duplicates: Duplicates) -> dict[str, int]:
    return {check.name: check.count for check in duplicates.checks()}


def test_varied_rows_are_clean(make_example):
    duplicates = audited([make_example(sentence(row), "a", row=row) for row in range(60)])
    assert counts(duplicates) == {"duplicates_exact": 0, "duplicates_near": 0, "conflicts": 0}
    assert duplicates.largest_cluster == 1 / 60


def test_repetitions_near_repetitions_and_contradictions_are_told_apart(make_example):
    rows = [make_example(sentence(row), "a", row=row) for row in range(60)]
    rows.append(make_example(sentence(3), "a", row=60))
    rows.append(make_example(sentence(4).replace(" ", " , ", 1).upper(), "b", row=61))
    rows.append(make_example(sentence(5) + " and more", "a", row=62))
    checks = {check.name: check for check in audited(rows).checks()}
    places = {
        name: [(one.row, one.other_row) for one in check.examples if check.count] for name, check in checks.items()
    }
    assert places["duplicates_exact"] == [(60, 3)]
    assert sorted(places["duplicates_near"]) == [(61, 4), (62, 5)]
    assert places["conflicts"] == [(61, 4)]
    assert checks["conflicts"].status == "warn"


def test_a_text_has_no_answer_to_contradict(make_example):
    rows = [Example(messages=(), text=sentence(1), dataset="train", row=row, fields={}, columns={}) for row in (0, 1)]
    assert counts(audited(rows)) == {"duplicates_exact": 1, "duplicates_near": 0, "conflicts": 0}


def test_the_largest_cluster_is_joined_through_its_members(make_example):
    """Each row resembles the next one only; all of them are one cluster."""
    words = sentence(0, 200).split()
    chain = [make_example(" ".join(words[start : start + 40]), "a", row=start) for start in range(0, 60, 6)]
    others = [make_example(sentence(100 + row), "a", row=100 + row) for row in range(10)]
    assert audited([*others, *chain]).largest_cluster == 0.5


def test_only_the_answer_of_a_majority_stays(make_example):
    answers = ["yes", "yes", "no"]
    torn = [make_example(sentence(1), answer, row=row) for row, answer in enumerate(answers)]
    even = [make_example(sentence(2), answer, row=10 + row) for row, answer in enumerate(["left", "right"])]
    duplicates = audited([*torn, *even, make_example(sentence(3), "x", row=20)])
    assert sorted(row for _, row in duplicates.contradictory()) == [2, 10, 11]
    assert [row for _, row in duplicates.repeated()] == [1]
