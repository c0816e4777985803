from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.data.conversations import normalise
from ftray.data.fingerprint import (
    NearIndex,
    constant_text,
    jaccard,
    limit_for,
    near_pairs,
    shingle,
    sketch,
    sketch_all,
    words_of,
)

NOTHING = np.zeros(0, dtype=np.uint64)
WORDS = [f"word{letter}{other}" for letter in "abcdefghij" for other in "klmnopqrst"]


def long_text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def pairs_of(texts: list[str]) -> set[tuple[int, int]]:
    pairs = near_pairs(sketch_all(texts, constant=constant_text(texts)))
    return set(zip(pairs.earlier.tolist(), pairs.later.tolist(), strict=True))


def changed(text: str, share: float, seed: int) -> str:
    source = random.Random(seed)
    return " ".join(source.choice(WORDS) if source.random() < share else word for word in text.split())


def test_a_text_with_other_numbers_is_the_same_text():
    text = "natalia sold 48 clips to her friends and then half as many in may"
    assert words_of(text) == words_of(text.replace("48", "7105"))


@pytest.mark.parametrize("text", ["what is 12 + 7", "12 7 9 30", "give it 3 stars"])
def test_where_numbers_are_the_text_they_stay(text):
    assert words_of(text) == text.split()


def test_light_rewording_is_found_and_other_texts_are_not():
    originals = [long_text(seed) for seed in range(300)]
    reworded = [changed(text, 0.08, seed) for seed, text in enumerate(originals)]
    found = pairs_of([*originals, *reworded])
    assert sum((index, 300 + index) in found for index in range(300)) >= 297
    assert all(later - earlier == 300 for earlier, later in found)


def test_sentences_in_another_order_are_found():
    halves = [(long_text(seed, 20), long_text(1000 + seed, 20)) for seed in range(100)]
    texts = [f"{a} {b}" for a, b in halves] + [f"{b} {a}" for a, b in halves]
    found = pairs_of(texts)
    assert sum((index, 100 + index) in found for index in range(100)) >= 99


def test_a_template_written_into_the_rows_is_not_compared():
    template = "please read the following message of a customer carefully and name the one intent that fits it best"
    texts = [f"{template} {long_text(seed, 8)}" for seed in range(200)]
    assert len(constant_text(texts)) > 20
    assert pairs_of(texts) == set()


def test_texts_without_words_are_like_nothing():
    assert pairs_of(["", "", " "]) == set()
    index = NearIndex(["", "some words that stand here alone"], constant=NOTHING)
    asked = shingle(["", "nothing of it"])
    assert len(index.find(asked, sketch(asked)).later) == 0


def test_the_index_names_what_it_holds_with_exact_similarities():
    held = [long_text(seed) for seed in range(50)]
    asked = shingle([changed(held[7], 0.05, 1), long_text(999)])
    shingles = shingle(held)
    pairs = NearIndex(held, constant=NOTHING).find(asked, sketch(asked))
    assert (pairs.earlier.tolist(), pairs.later.tolist()) == ([7], [0])
    assert pairs.similarity[0] == jaccard(shingles.row(7), asked.row(0))


def test_all_of_many_rows_that_are_alike_are_named():
    """More rows in a band than one would like to look at, one by one."""
    first = long_text(1, 60)
    held = [changed(first, 0.03, seed) for seed in range(1000)]
    asked = shingle([first])
    found = NearIndex(held, constant=NOTHING).find(asked, sketch(asked))
    assert len(set(found.earlier.tolist())) >= 998


def test_the_limit_falls_with_the_length():
    assert limit_for(np.array([1, 12, 18, 24, 500])).tolist() == pytest.approx([0.8, 0.8, 0.7, 0.6, 0.6])


def test_unrelated_real_questions_are_not_alike(shared):
    """SNIPS commands of different intents share words, and are never nearly the same."""
    rows = [json.loads(line) for line in (shared / "data/snips/train.jsonl").read_text().splitlines()[:4000:2]]
    intents = [row["intent"] for row in rows]
    found = pairs_of([normalise(row["text"]) for row in rows])
    assert all(intents[earlier] == intents[later] for earlier, later in found)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=40), st.integers(1, 39))
def test_appending_texts_takes_no_pair_away(seeds, cut):
    # Enough rows before the cut that the constant text is settled.
    texts = [long_text(10_000 + index) for index in range(500)]
    texts += [changed(long_text(seed, 14), 0.05, index) for index, seed in enumerate(seeds)]
    whole, part = pairs_of(texts), pairs_of(texts[: 500 + cut])
    assert {pair for pair in whole if pair[1] < 500 + cut} == part
