from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.data.conversations import Example, Message, normalise


def test_an_example_says_what_was_asked_and_answered(make_example):
    example = make_example("Hi", "Hello", "What is up?", "Not much.", system="Be brief.")
    assert (example.prompt_text, example.answer_text) == ("What is up?", "Not much.")
    assert example.subject == "Hi\nHello\nWhat is up?"


def test_the_digest_is_of_content_alone(make_example):
    assert make_example("a", "b", row=1, dataset="x", extra=3).digest == make_example("a", "b").digest
    assert make_example("a", "b").digest != make_example("a", "c").digest
    assert make_example("a", "b").digest != make_example("a", "b", system="").digest


def test_template_words_are_not_part_of_the_question():
    turns = (Message(role="user", content="Which intent is this? play jazz"), Message(role="assistant", content="play"))
    example = Example(messages=turns, dataset="d", row=0, fields={"text": "play jazz"}, columns={})
    assert example.normalised_prompt == "play jazz"


def test_the_same_last_question_in_another_talk_is_another_question(make_example):
    first, second = make_example("A", "B", "Why?", "x"), make_example("C", "D", "Why?", "y")
    assert first.prompt_text == second.prompt_text
    assert first.normalised_prompt != second.normalised_prompt


def test_a_constant_prompt_leaves_the_answer_to_tell_rows_apart():
    turns = (Message(role="user", content="Tell a story."), Message(role="assistant", content="Once."))
    assert Example(messages=turns, dataset="d", row=0, fields={}, columns={}).normalised_prompt == "once"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Play  JAZZ, please!", "play jazz please"),
        ("it's 1,000", "ITS 1000"),
        ("\uff21\uff22", "ab"),
        ("wake-up call", "wake up call"),
    ],
)
def test_normalised_alike(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("C++", "C#"), ("2 * 3", "2 / 3"), ("3 - 2", "3 2"), ("?!", "..."), ("😀", "😡")]
)
def test_normalised_apart(one, other):
    assert normalise(one) != normalise(other)


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once
