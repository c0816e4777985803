from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.audit.diversity import FEWEST_NGRAMS, Diversity, Size, distinct_ngrams
from ftray.data.config import Source
from ftray.data.conversations import Example, Message
from ftray.data.readers import read_source


def only(finder, rows):
    for start in range(0, len(rows), 100):
        finder.see("train", rows[start : start + 100])
    return finder.checks()[0]


@pytest.fixture
def clean(make_example):
    return [make_example(f"the {i} of {i * 7} near {i * 13} by {i * 17}", f"answer {i}", row=i) for i in range(400)]


@pytest.fixture
def templates(make_example):
    return [make_example(f"please tell me now what is {'abcdefghij'[i % 10]}", "yes", row=i) for i in range(400)]


def test_prompts_that_differ_pass_with_their_figures(clean):
    check = only(Diversity(), clean)
    assert (check.status, check.fix) == ("pass", "")
    assert check.facts["distinct_answers"] == 400
    assert check.facts["words"]["prompts"]["p50"] == 8
    assert check.facts["distinct_2"]["prompts"] > 0.5
    assert check.facts["sampled_rows"] == 400


def test_a_few_templates_warn(templates):
    check = only(Diversity(), templates)
    assert check.status == "warn"
    assert check.facts["distinct_2"]["prompts"] < 0.05
    assert "nearly all the same" in check.fix
    assert check.facts["distinct_answers"] == 1


def test_constant_words_of_the_template_do_not_count(clean):
    rows = [
        Example(
            messages=(Message(role="user", content=f"Which one is it? {i}"), Message(role="assistant", content="a")),
            dataset="train", row=i, fields={"text": f"{i} {i * 3} {i * 7}"}, columns={},
        )
        for i in range(1000)
    ]  # fmt: skip
    assert only(Diversity(), rows).facts["distinct_2"]["prompts"] > 0.9


def test_a_large_cluster_warns(clean):
    assert only(Diversity(0.4), clean).status == "pass"
    finder = Diversity()
    finder.largest_cluster = 0.6
    check = only(finder, clean)
    assert (check.status, check.count, check.share) == ("warn", 240, 0.6)
    assert "60% of the training prompts" in check.fix


def test_few_words_are_not_judged(templates):
    check = only(Diversity(), templates[:50])
    assert (check.status, check.facts["distinct_2"]["prompts"]) == ("pass", None)


def test_texts_have_neither_prompts_nor_answers():
    rows = [Example(messages=(), text="a b", dataset="train", row=i, fields={}, columns={}) for i in range(200)]
    check = only(Diversity(), rows)
    assert (check.status, check.facts["words"]) == ("pass", {"prompts": None, "answers": None})


@given(st.lists(st.text("ab ", min_size=1), max_size=30))
def test_distinct_is_a_share_or_unknown(texts):
    share = distinct_ngrams(texts * 60, 2)
    assert share is None or 0 < share <= 1 / 60 + 4 / FEWEST_NGRAMS


def test_size_counts_good_rows(clean, make_example):
    assert only(Size(), clean).status == "pass"
    bad = [make_example("same", "same", row=i) for i in range(50)] + [make_example(f"q {i}", " ") for i in range(50)]
    check = only(Size(), [*clean[:80], *bad])
    assert (check.status, check.count, check.rows, check.limit) == ("warn", 81, 180, 100.0)
    assert "81 training rows are few (of 180" in check.fix
    assert "prompt" in check.fix


def test_real_intents_differ_and_a_dummy_file_does_not(shared):
    snips = Source(path=str(shared / "data/snips/train.jsonl"), prompt="Which intent? {text}", completion="{intent}")
    assert only(Diversity(), read_source(snips, name="train", base=shared)).status == "pass"
    dummy = Source(path=str(shared / "data/formats/sharegpt_dummy_conversation.json"))
    assert only(Diversity(), read_source(dummy, name="train", base=shared)).status == "warn"
