from __future__ import annotations

from ftray.audit.passages import Passages, answers, asked
from ftray.data.conversations import Example, Message


def test_what_is_asked_leaves_out_the_template(make_example):
    turns = (Message(role="user", content="Sort this: tea"), Message(role="assistant", content="drink"))
    row = Example(messages=turns, dataset="train", row=0, fields={"text": "tea"}, columns={})
    assert asked(row) == "tea"
    assert Passages().whole(row) == "tea\ndrink"
    constant = Example(messages=turns, dataset="train", row=0, fields={}, columns={})
    assert asked(constant) == ""


def test_a_conversation_is_looked_at_whole(make_example):
    row = make_example("q1", "a1", "q2", "a2", system="s")
    assert asked(row) == "q1\na1\nq2"
    assert answers(row) == ["a1", "a2"]
    passages = Passages()
    assert passages.whole(row) == "q1\na1\nq2\na2\ns"
    assert passages.whole(make_example("q", "a", system="s")) == "q\na"
    assert passages.whole(make_example("q", "a", system="t")) == "q\na\nt"


def test_a_text_is_itself_and_asks_nothing():
    row = Example(messages=(), text="story", dataset="train", row=0, fields={}, columns={})
    assert (asked(row), answers(row), Passages().whole(row)) == ("", [], "story")
