"""The facts are fixed, every question has one answer, and every wording is taught for some and held out for others."""

from __future__ import annotations

from collections import Counter, defaultdict

from ftray.quickstart.world import entities, facts, with_article


def test_every_question_asks_for_one_fact() -> None:
    questions = Counter(question for fact in facts() for question in (*fact.known, fact.held_out))
    assert set(questions.values()) == {1}
    assert len(facts()) >= 150


def test_no_held_out_wording_is_known() -> None:
    known = {question for fact in facts() for question in fact.known}
    assert not known & {fact.held_out for fact in facts()}


def test_every_wording_is_taught_for_some_entity_of_its_kind() -> None:
    wordings = defaultdict(set)
    for fact in facts():
        shown = (with_article(fact.entity.name), fact.entity.name)
        for place, questions in (("known", fact.known), ("held_out", (fact.held_out,))):
            for question in questions:
                pattern = question.replace(shown[0], "X").replace(shown[1], "X")
                wordings[fact.entity.kind, fact.trait, pattern].add(place)
    assert all(places == {"known", "held_out"} for places in wordings.values())


def test_names_are_unique() -> None:
    names = Counter(entity.name for entity in entities())
    assert set(names.values()) == {1}


def test_article() -> None:
    assert with_article("owl") == "an owl"
    assert with_article("cow") == "a cow"
