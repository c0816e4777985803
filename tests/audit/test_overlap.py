from __future__ import annotations

import random

import pytest

from ftray.audit.overlap import Overlaps, decontaminate
from ftray.audit.report import Check
from ftray.data.conversations import Example
from ftray.data.fingerprint import Prints, constant_text

WORDS = [a + b + c for a in "bdfgklmp" for b in "aeiou" for c in "nrstxyzvwh"]


def sentence(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def checks_of(train: list[Example], evaluation: dict[str, list[Example]]) -> dict[str, Check]:
    overlaps = Overlaps(Prints(constant_text([example.normalised_prompt for example in train])))
    for dataset, examples in evaluation.items():
        overlaps.see(dataset, examples)
    for start in range(0, len(train), 50):
        overlaps.see("train", train[start : start + 50])
    return {check.name: check for check in overlaps.checks()}


@pytest.fixture
def train(make_example):
    return [make_example(sentence(row), f"label{row % 5}", row=row) for row in range(200)]


@pytest.fixture
def held_out(make_example):
    return [make_example(sentence(1000 + row), f"label{row % 5}", row=row, dataset="test") for row in range(400)]


def planted(make_example, held_out: list[Example], row: int, question: str, answer: str = "label0") -> list[Example]:
    return [*held_out[:row], make_example(question, answer, row=row, dataset="test"), *held_out[row + 1 :]]


def test_clean_sets_have_no_overlap(train, held_out):
    assert {check.status for check in checks_of(train, {"test": held_out}).values()} == {"pass"}


def test_an_equal_question_is_exact_and_normalised(make_example, train, held_out):
    checks = checks_of(train, {"test": planted(make_example, held_out, 7, train[20].prompt_text)})
    counts = {name: check.count for name, check in checks.items()}
    assert counts == {"overlap_exact": 1, "overlap_normalised": 1, "overlap_near": 0, "overlap_ngram": 0}
    (example,) = checks["overlap_exact"].examples
    assert (example.dataset, example.row, example.other_dataset, example.other_row) == ("test", 7, "train", 20)


def test_case_and_punctuation_are_normalised(make_example, train, held_out):
    question = train[20].prompt_text.upper().replace(" ", ", ") + "?!"
    checks = checks_of(train, {"test": planted(make_example, held_out, 7, question)})
    assert [check.count for check in checks.values()] == [0, 1, 0, 0]


def test_other_numbers_are_near(make_example, train, held_out):
    source = make_example(sentence(5000, 30) + " 12 apples and 7 pears", "x", row=200)
    question = source.prompt_text.replace("12", "940").replace("7", "3")
    checks = checks_of([*train, source], {"test": planted(make_example, held_out, 7, question)})
    assert checks["overlap_near"].count == 1
    assert checks["overlap_near"].examples[0].other_row == 200


def test_an_answer_quoted_in_a_prompt_is_an_ngram(make_example, train, held_out):
    answer = sentence(9077, 20)
    quoting = make_example(f"{sentence(9078)} hint {answer} and so on {sentence(9079)}", "x", row=200)
    held = planted(make_example, held_out, 7, sentence(9080), answer)
    checks = checks_of([*train, quoting], {"test": held})
    assert [check.count for check in checks.values()] == [0, 0, 0, 1]
    assert checks["overlap_ngram"].examples[0].other_row == 200


def test_equal_evaluation_rows_all_count(make_example, train):
    test = [make_example(train[5].prompt_text + " and more", "a", row=row, dataset="test") for row in range(300)]
    check = checks_of(train, {"test": test})["overlap_near"]
    assert (check.count, check.status) == (300, "fail")


def test_the_limit_divides_warnings_from_failures(make_example, train, held_out):
    few = planted(make_example, held_out, 7, train[20].prompt_text)
    more = planted(make_example, few, 8, train[21].prompt_text)
    even_more = planted(make_example, more, 9, train[22].prompt_text)
    statuses = [checks_of(train, {"test": rows})["overlap_normalised"].status for rows in (few, more, even_more)]
    assert statuses == ["warn", "warn", "fail"]


def test_the_worst_set_decides_and_the_others_are_named(make_example, train, held_out):
    probe = [make_example(train[0].prompt_text, "a", row=0, dataset="probe"), *held_out[:3]]
    check = checks_of(train, {"test": planted(make_example, held_out, 7, train[20].prompt_text), "probe": probe})
    exact = check["overlap_exact"]
    assert (exact.status, exact.examples[0].dataset) == ("fail", "probe")
    assert "Also 1 in test" in exact.fix


def test_a_constant_template_in_the_rows_is_no_overlap(make_example):
    template = "read this message of a customer with care and then answer with the name of the one intent it has"
    train = [make_example(f"{template} {sentence(row, 8)}", "a", row=row) for row in range(200)]
    test = [make_example(f"{template} {sentence(900 + row, 8)}", "a", row=row, dataset="test") for row in range(200)]
    assert {check.count for check in checks_of(train, {"test": test}).values()} == {0}


def test_without_evaluation_sets_nothing_is_compared(train):
    assert {check.status for check in checks_of(train, {}).values()} == {"skipped"}


def test_decontaminate_drops_exact_and_normalised(make_example, train):
    asked = [make_example(train[3].prompt_text.upper(), "z", dataset="test")]
    cleaned = decontaminate(train, asked)
    assert [row.row for row in cleaned.dropped] == [3]
    assert len(cleaned.kept) == 199
