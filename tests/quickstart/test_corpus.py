"""Pretraining text is a function of its seed, varied, and free of what the probes ask and of the task's answers."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.data.conversations import normalise
from ftray.quickstart.corpus import chat_turns, documents, held_out_stories, is_held_out
from ftray.quickstart.world import facts

DOCUMENTS = list(itertools.islice(documents(0), 6000))
QUESTIONS = {normalise(turn.question) for document in DOCUMENTS for turn in document.turns}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_the_same_seed_writes_the_same_text(seed: int) -> None:
    assert list(itertools.islice(documents(seed), 20)) == list(itertools.islice(documents(seed), 20))


def test_seeds_differ() -> None:
    assert DOCUMENTS[:20] != list(itertools.islice(documents(1), 20))


def test_a_document_is_a_text_or_a_chat_and_every_slot_is_filled() -> None:
    for document in DOCUMENTS:
        assert bool(document.text) != bool(document.turns)
        written = document.text + "".join(turn.question + turn.answer for turn in document.turns)
        assert "{" not in written
        assert "}" not in written


def test_there_are_thousands_of_distinct_documents() -> None:
    assert len(set(DOCUMENTS)) > 3000


def test_no_chat_asks_a_held_out_wording() -> None:
    assert not QUESTIONS & {normalise(fact.held_out) for fact in facts()}
    replayed = {normalise(turn.question) for turn in chat_turns(200, seed=3)}
    assert not replayed & {normalise(fact.held_out) for fact in facts()}


def test_every_fact_is_taught() -> None:
    answers = {turn.question: turn.answer for document in DOCUMENTS for turn in document.turns}
    for fact in facts():
        taught = [answers[question] for question in fact.known if question in answers]
        assert taught
        assert set(taught) == {fact.answer}


def test_held_out_stories_stand_in_no_pretraining_text() -> None:
    stories = held_out_stories(40, seed=0)
    assert len(set(stories)) == 40
    assert all(is_held_out(story) for story in stories)
    told = [document.text for document in DOCUMENTS if document.text.startswith("One day")]
    assert told
    assert not any(is_held_out(text) for text in told)


def test_chat_turns_have_distinct_questions() -> None:
    turns = chat_turns(150, seed=0)
    assert len({turn.question for turn in turns}) == 150
