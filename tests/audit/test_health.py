from __future__ import annotations

import pytest

from ftray.audit.health import Empty, Refusals, RoleOrder, refuses
from ftray.data.config import Source
from ftray.data.conversations import Example, Message
from ftray.data.readers import read_source


def only(finder, *datasets):
    for name, examples in datasets:
        finder.see(name, examples)
    (check,) = finder.checks()
    return check


@pytest.fixture
def clean(make_example):
    return [make_example(f"question {i}", f"answer {i}", row=i) for i in range(300)]


def test_empty_answers_fail_wherever_they_stand(clean, make_example):
    test = [make_example("q", " \n", row=4, dataset="test"), make_example("q", "a", "r", "", row=5, dataset="test")]
    check = only(Empty(), ("test", test), ("train", [*clean, make_example("q", "", "r", "b", row=300)]))
    assert (check.status, check.count, check.rows) == ("fail", 3, 303)
    assert [(p.dataset, p.row) for p in check.examples] == [("test", 4), ("test", 5), ("train", 300)]
    assert check.facts == {"datasets": {"test": 2, "train": 1}}
    assert "2 in test, 1 in train" in check.fix
    assert only(Empty(), ("train", clean)).status == "pass"


def test_a_tool_call_is_an_answer_and_a_blank_text_is_none():
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    calls = Message(role="assistant", content="", tool_calls=(call,))
    row = Example(messages=(Message(role="user", content="q"), calls), dataset="train", row=0, fields={}, columns={})
    blank = Example(messages=(), text=" ", dataset="train", row=1, fields={}, columns={})
    check = only(Empty(), ("train", [row, blank]))
    assert [pointer.row for pointer in check.examples] == [1]


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I have no opinion.",
        "I cannot assist with that request.",
        "I'm sorry, but I can't help you there.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I am unable to do this.",
        "Sorry, I can't do that.",
        "Unfortunately, I am not able to provide medical advice.",
        "As an AI, I don't have feelings.",
        "As a large language model, I can't browse the web.",
        "Als KI-Sprachmodell habe ich keine Meinung.",
    ],
)
def test_refusals_are_recognised(answer):
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that. Here is what to do.",
        "She cannot swim, but she said she is sorry.",
        "A language model predicts the next word.",
        "I go by Vicuna and was trained as a language model.",
        "You cannot divide by zero.",
        "I am an AI assistant developed by Example.",
        "Sorry! The cat ran away.",
        "An apology: I could not come because of the rain.",
    ],
)
def test_what_only_sounds_like_a_refusal_is_none(answer):
    assert not refuses(answer)


def test_refusals_warn_above_half_a_percent_and_not_in_probes(clean, make_example):
    refusal = [make_example("q", "I cannot assist with that.", row=300 + i) for i in range(3)]
    assert only(Refusals(), ("train", [*clean, refusal[0]])).status == "pass"
    check = only(Refusals(), ("safety", refusal), ("train", [*clean, *refusal[:2]]))
    assert (check.status, check.count, check.rows) == ("warn", 2, 302)
    assert only(Refusals(), ("safety", refusal), ("train", clean)).count == 0


def test_the_shortest_refusals_come_first(make_example):
    rows = [make_example("q", "I cannot help with that. " + "But read on. " * i, row=i) for i in (5, 0, 9)]
    assert [pointer.row for pointer in only(Refusals(), ("train", rows)).examples] == [0, 5, 9]


def test_turns_that_are_empty_or_out_of_order(clean, make_example):
    empty = make_example(" ", "a", row=300)
    user, assistant = (Message(role=role, content="x") for role in ("user", "assistant"))
    twice = Example(messages=(user, user, assistant), dataset="train", row=301, fields={}, columns={})
    first = Example(messages=(assistant, user, assistant), dataset="train", row=302, fields={}, columns={})
    check = only(RoleOrder(), ("train", [*clean, empty, twice, first]))
    assert (check.status, check.count) == ("warn", 3)
    assert check.facts["kinds"] == {"out_of_order": 2, "empty_user_turn": 1}
    assert "1 row with an empty turn" in check.fix
    assert "2 rows with roles out of order" in check.fix
    text = Example(messages=(), text="story", dataset="train", row=0, fields={}, columns={})
    assert only(RoleOrder(), ("train", [*clean, text, make_example("q", "a", "q", "a", system="s")])).status == "pass"


def test_real_files_have_the_refusals_they_are_known_for(shared):
    def count(file):
        examples = read_source(Source(path=str(shared / "data/formats" / file)), name="train", base=shared)
        return only(Refusals(), ("train", examples)).count

    assert 20 <= count("alpaca_en_demo.json") <= 30
    assert count("dolly_151.jsonl") == 0
    assert count("sharegpt_dummy_conversation.json") == 0
    assert count("identity.json") == 0
