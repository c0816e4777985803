"""The facts of a little English-like world, and the questions that ask for them. Nothing here is random.

Every fact has four wordings of its question. One of them never stands in the pretraining text: the general probe asks
exactly that one, so it measures knowledge and not a memorised line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["animal", "person", "thing"]

_ANIMALS = """
name sound home food colour
cow moo barn grass brown
dog woof yard bones black
cat meow house fish gray
pig oink farm apples pink
sheep baa meadow clover white
horse neigh stable hay brown
duck quack pond bread yellow
frog croak river flies green
hen cluck coop corn red
owl hoot tree mice gray
lion roar desert meat yellow
mouse squeak hole cheese gray
snake hiss grass eggs green
bear growl cave honey brown
crow caw nest seeds black
goose honk lake weeds white
monkey chatter jungle bananas brown
goat bleat rocks leaves white
turkey gobble field nuts red
wolf howl forest meat gray
"""
_PEOPLE = """
name job home food
Mia baker harbour soup
Tom farmer hill bread
Lily teacher village cake
Ben driver city rice
Anna doctor castle fish
Max painter tower pie
Sara singer island salad
Leo sailor beach noodles
Emma writer valley pasta
Sam builder forest eggs
Nora gardener meadow plums
Jack hunter mountain stew
Ella dancer city cherries
Paul cook harbour beans
Ruby nurse village jam
Finn miller river toast
"""
_THINGS = """
name use room material
knife cutting kitchen steel
broom sweeping hall straw
pen writing office plastic
lamp reading bedroom glass
cup drinking kitchen clay
pillow sleeping bedroom cotton
hammer building garage iron
clock waking bedroom brass
kettle boiling kitchen copper
phone calling office plastic
radio listening hall wood
towel drying bathroom cotton
bucket washing garage tin
coat warming hall wool
"""
_QUESTIONS: dict[Kind, dict[str, tuple[str, ...]]] = {
    "animal": {
        "sound": (
            "What does {a_name} say?",
            "Which sound does {a_name} make?",
            "How does {a_name} sound?",
            "What do you hear from {a_name}?",
        ),
        "home": (
            "Where does {a_name} live?",
            "Where is the home of {a_name}?",
            "In which place does {a_name} live?",
            "Where can I find {a_name}?",
        ),
        "food": (
            "What does {a_name} eat?",
            "What is the food of {a_name}?",
            "What can I feed {a_name}?",
            "What does {a_name} like to eat?",
        ),
        "colour": (
            "What colour is {a_name}?",
            "Which colour does {a_name} have?",
            "What is the colour of {a_name}?",
            "How would you paint {a_name}?",
        ),
    },
    "person": {
        "job": (
            "What is the job of {name}?",
            "What does {name} work as?",
            "Which job does {name} have?",
            "How does {name} earn money?",
        ),
        "home": (
            "Where does {name} live?",
            "Where is the home of {name}?",
            "In which place does {name} live?",
            "Where can I find {name}?",
        ),
        "food": (
            "What does {name} eat?",
            "What is the food of {name}?",
            "What can I cook for {name}?",
            "What does {name} like to eat?",
        ),
    },
    "thing": {
        "use": (
            "What is {a_name} for?",
            "What do you use {a_name} for?",
            "What can I do with {a_name}?",
            "What does {a_name} help with?",
        ),
        "room": (
            "Where is the {name}?",
            "In which room is the {name}?",
            "Where do you keep the {name}?",
            "Where can I find the {name}?",
        ),
        "material": (
            "What is {a_name} made of?",
            "What is the {name} made of?",
            "Of what do you make {a_name}?",
            "Which material is the {name}?",
        ),
    },
}
_NUM_WORDINGS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """An animal, a person or a thing, with one answer for each of its traits."""

    kind: Kind
    name: str
    traits: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One trait of one entity: `known` wordings of its question are taught, the held-out one is not."""

    entity: Entity
    trait: str
    answer: str
    known: tuple[str, ...]
    held_out: str


def entities() -> tuple[Entity, ...]:
    """Return everybody and everything in the world, always in the same order."""
    tables: tuple[tuple[Kind, str], ...] = (("animal", _ANIMALS), ("person", _PEOPLE), ("thing", _THINGS))
    return tuple(entity for kind, table in tables for entity in _read_table(kind, table))


def facts() -> tuple[Fact, ...]:
    """Return all facts of the world, always in the same order."""
    # The rotation holds out every wording for some entities and teaches it for the others.
    return tuple(
        _make_fact(entity, trait, held_out=(row + column) % _NUM_WORDINGS)
        for row, entity in enumerate(entities())
        for column, trait in enumerate(entity.traits)
    )


def with_article(noun: str) -> str:
    """Return the noun with `a` or `an` before it."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _read_table(kind: Kind, table: str) -> list[Entity]:
    header, *lines = (line.split() for line in table.strip().splitlines())
    return [Entity(kind=kind, name=name, traits=dict(zip(header[1:], row, strict=True))) for name, *row in lines]


def _make_fact(entity: Entity, trait: str, *, held_out: int) -> Fact:
    wordings = [
        wording.format(name=entity.name, a_name=with_article(entity.name)) for wording in _QUESTIONS[entity.kind][trait]
    ]
    question = wordings.pop(held_out)
    return Fact(entity=entity, trait=trait, answer=entity.traits[trait], known=tuple(wordings), held_out=question)
