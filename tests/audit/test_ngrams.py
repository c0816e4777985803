from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ftray.audit.ngrams import ANSWER_WORDS, RUN_WORDS, RunIndex

WORDS = st.sampled_from([f"w{number}" for number in range(30)])


def sentence(seed: int, words: int) -> str:
    return " ".join(
        random.Random(seed).choices(
            [a + b + c + d for a in "bdfgklmp" for b in "aeiou" for c in "nrstxyzvwh" for d in "aeioubcdfg"], k=words
        )
    )


def hits(questions: list[str], answers: list[str], texts: list[str]) -> set[tuple[int, int]]:
    return {(hit.held, hit.asked) for hit in RunIndex(questions, answers, ["test"] * len(questions)).find(texts)}


def test_a_shared_run_is_found_at_any_place():
    run = sentence(0, RUN_WORDS)
    texts = [run, f"{sentence(1, 5)} {run}", f"{run} {sentence(2, 5)}", sentence(3, 40)]
    assert hits([f"{sentence(4, 9)} {run} end"], [""], texts) == {(0, 0), (0, 1), (0, 2)}


def test_a_run_one_word_short_is_none():
    run = sentence(0, RUN_WORDS - 1)
    assert hits([f"{run} a"], [""], [f"{run} b"]) == set()


def test_runs_do_not_cross_rows():
    run = sentence(0, RUN_WORDS).split()
    assert hits([" ".join(run)], [""], [" ".join(run[:6]), " ".join(run[6:])]) == set()


def test_a_short_answer_is_found_only_whole():
    answer = sentence(0, ANSWER_WORDS)
    assert hits(["q"], [answer], [f"see {answer} there"]) == {(0, 0)}
    assert hits(["q"], [answer], [f"see {answer.rsplit(' ', 1)[0]} there"]) == set()
    assert hits(["q"], [sentence(0, ANSWER_WORDS - 1)], [sentence(0, ANSWER_WORDS - 1)]) == set()


def test_a_phrase_of_the_whole_set_tells_nothing():
    phrase = sentence(0, RUN_WORDS)
    questions = [f"{phrase} {sentence(row, 4)}" for row in range(1, 300)]
    assert hits(questions, [""] * 299, [f"{phrase} {sentence(999, 4)}"]) == set()


def test_every_row_that_holds_a_run_is_named():
    run = sentence(0, RUN_WORDS)
    questions = [f"{run} {sentence(row, 4)}" for row in range(1, 4)]
    index = RunIndex(questions, [""] * 3, ["validation", "test", "test"])
    assert {(hit.held, hit.asked) for hit in index.find([f"see {run}"])} == {(0, 0), (1, 0), (2, 0)}


def test_a_phrase_is_common_within_its_own_set():
    run = sentence(0, RUN_WORDS)
    questions = [f"{run} {sentence(row, 4)}" for row in range(1, 6)] + [sentence(row, 20) for row in range(10, 300)]
    datasets = ["test"] * 3 + ["validation"] * 2 + ["test"] * 290
    index = RunIndex(questions, [""] * 295, datasets)
    assert {hit.held for hit in index.find([run])} == {0, 1, 2, 3, 4}


@given(st.lists(st.lists(WORDS, max_size=40), max_size=8), st.lists(st.lists(WORDS, max_size=40), max_size=8))
def test_it_finds_what_a_search_finds(held, asked):
    questions, texts = [" ".join(row) for row in held], [" ".join(row) for row in asked]

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[start : start + RUN_WORDS]) for start in range(len(words) - RUN_WORDS + 1)}

    expected = {
        asked_row for asked_row, text in enumerate(texts) if any(runs(text) & runs(question) for question in questions)
    }
    assert {row for _, row in hits(questions, [""] * len(questions), texts)} == expected
