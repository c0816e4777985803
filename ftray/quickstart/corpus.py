"""The pretraining text: stories and descriptions of the world, and chats about it, without end.

One story in sixteen, by checksum and so whatever the seed, is never taught: the probe for bits per byte reads those.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ftray.quickstart.world import Entity, entities, facts, with_article

_COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink", "gray", "orange", "purple")
_SIZES = ("big", "small", "old", "new", "little", "round", "heavy", "shiny")
_TOYS = ("ball", "kite", "boat", "book", "drum", "hat", "box", "bell", "cart", "rope", "basket", "ring")
_ROOMS = ("kitchen", "bedroom", "garden", "hall", "bathroom", "office", "garage", "cellar")
_TIMES = ("in the morning", "at noon", "in the evening", "at night", "on Monday", "on Sunday", "today", "tomorrow")
_SKIES = ("It was raining.", "The sun was warm.", "There was snow outside.", "The wind was cold.", "It was a dark day.")
_HOUSEWORK = (
    "{name} asked the robot to play a {song} song, and the music was loud.",
    "The robot turned the light on in the {room}, so it was bright.",
    "The robot turned the lamp off in the {room}, so it was dark.",
    "{name} went shopping to buy {food} and milk.",
    "The {food} was gone, so {name} needed more {food} from the shop.",
    "{name} set the alarm to ring after {minutes} minutes.",
    "{name} sent a message to {friend} and asked for the {toy}.",
    "{name} wrote a note to {friend}, because {friend} was late.",
    "{name} asked about the weather {time}, and took a coat.",
    "They had to wait {minutes} minutes until the {food} was done.",
)  # fmt: skip
_EVENTS = (
    "{name} found a {size} {colour} {toy} in the {room}.",
    "{name} gave the {colour} {toy} to {friend}.",
    "{name} and {friend} played with the {toy} {time}.",
    "{name} saw {animal} near the {home}.",
    "The {beast} said {sound} and ran to the {home}.",
    "{friend} wanted to see the {beast}, too.",
    "They gave {meal} to the {beast}.",
    "{name} put the {toy} into the {size} box.",
    *_HOUSEWORK,
)
_ENDINGS = (
    "Then {name} went home and was happy.",
    "At the end {name} and {friend} were friends.",
    "{name} was tired and went to bed.",
    "That was a good day for {name}.",
    "And {friend} told the story to everybody.",
)
_FEELINGS = {
    "sad": ("{name} lost the {toy} and cries.", "The {toy} of {name} is broken.", "Nobody plays with {name}."),
    "happy": ("{name} got a new {toy}.", "{name} laughs and dances with the {toy}.", "{name} wins the game."),
    "tired": ("{name} worked all day.", "{name} wants to go to bed.", "{name} did not sleep {time}."),
    "afraid": ("{name} hears a wolf outside.", "It is dark and {name} is alone.", "{name} hides in the {room}."),
    "hungry": ("{name} did not eat {time}.", "{name} wants {food} and soup.", "The plate of {name} is empty."),
}  # fmt: skip
_SMALL_TALK = (
    ("Please open the {colour} box.", "I open the {colour} box now."),
    ("Bring me the {toy}, please.", "Here is the {toy}."),
    ("Can you clean the {room}?", "Yes, I clean the {room}."),
    ("Good morning, robot.", "Good morning to you."),
    ("I am back in the {room}.", "Welcome to the {room}."),
    ("Thank you for the {toy}.", "You are welcome."),
    ("Hello, I am {name}.", "Hello, {name}."),
)
_STATEMENTS = {
    "animal": ("{who} says {sound}.", "{who} lives in the {home}.", "{who} eats {food}.", "{who} is {colour}."),
    "person": ("{who} is a {job}.", "{who} lives near the {home}.", "{who} eats {food}."),
    "thing": ("{who} is for {use}.", "{who} is in the {room}.", "{who} is made of {material}."),
}
_WORDS = {
    "size": _SIZES,
    "colour": _COLOURS,
    "toy": _TOYS,
    "room": _ROOMS,
    "time": _TIMES,
    "minutes": ("two", "five", "ten", "twenty", "thirty"),
    "song": ("slow", "happy", "quiet", "summer", "winter", "birthday"),
}
_HELD_OUT_ONE_IN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question of the user and the answer to it."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One piece of pretraining text: either a plain text or the turns of a chat."""

    text: str = ""
    turns: tuple[Turn, ...] = ()


def documents(seed: int) -> Iterator[Document]:
    """Yield pretraining documents without end; the same seed yields the same documents."""
    writer = _Writer(f"documents {seed}")
    while True:
        kind = writer.rng.random()
        if kind < 0.12:
            story = writer.story()
            if not is_held_out(story):
                yield Document(text=story)
        elif kind < 0.25:
            yield Document(text=writer.description())
        else:
            yield Document(turns=tuple(writer.turn() for _ in range(writer.rng.choice((1, 1, 1, 2)))))


def held_out_stories(count: int, *, seed: int) -> tuple[str, ...]:
    """Return distinct stories that stand in no pretraining text."""
    writer = _Writer(f"stories {seed}")
    stories: dict[str, None] = {}
    while len(stories) < count:
        story = writer.story()
        if is_held_out(story):
            stories[story] = None
    return tuple(stories)


def chat_turns(count: int, *, seed: int) -> tuple[Turn, ...]:
    """Return turns with distinct questions, such as the pretraining chats have: replay against forgetting."""
    writer = _Writer(f"turns {seed}")
    turns: dict[str, Turn] = {}
    while len(turns) < count:
        turn = writer.turn()
        turns.setdefault(turn.question, turn)
    return tuple(turns.values())


def is_held_out(story: str) -> bool:
    """Say whether this story is kept out of every pretraining text."""
    return zlib.crc32(story.encode()) % _HELD_OUT_ONE_IN == 0


class _Writer:
    """Writes stories, descriptions and turns of chats, each a draw from one random stream."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        self.facts = facts()
        self.entities = entities()
        self.animals = [entity for entity in self.entities if entity.kind == "animal"]
        self.people = [entity for entity in self.entities if entity.kind == "person"]

    def story(self) -> str:
        """Return a few sentences about two people and one animal."""
        words = self._words()
        sky = self.rng.choice(_SKIES)
        middle = self.rng.sample(_EVENTS, self.rng.choice((1, 2, 3)))
        sentences = [f"One day {{name}} was in the {{room}}. {sky}", *middle, self.rng.choice(_ENDINGS)]
        return " ".join(sentences).format(**words)

    def description(self) -> str:
        """Return everything there is to know about one animal, person or thing."""
        entity = self.rng.choice(self.entities)
        sentences = self._statements(entity)
        self.rng.shuffle(sentences)
        return " ".join(sentences)

    def turn(self) -> Turn:
        """Return one question and its answer."""
        kind = self.rng.random()
        if kind < 0.7:
            fact = self.rng.choice(self.facts)
            return Turn(question=self.rng.choice(fact.known), answer=fact.answer)
        if kind < 0.82:
            return self._riddle()
        words = self._words()
        if kind < 0.92:
            feeling = self.rng.choice(tuple(_FEELINGS))
            scene = self.rng.choice(_FEELINGS[feeling]).format(**words)
            return Turn(question=f"Which feeling is this? {scene}", answer=feeling)
        question, answer = self.rng.choice(_SMALL_TALK)
        return Turn(question=question.format(**words), answer=answer.format(**words))

    def _riddle(self) -> Turn:
        entity = self.rng.choice(self.entities)
        clues = self.rng.sample(self._statements(entity, "This one" if entity.kind == "person" else "It"), 2)
        return Turn(question=f"Which {entity.kind} is this? {' '.join(clues)}", answer=entity.name)

    def _statements(self, entity: Entity, subject: str = "") -> list[str]:
        name = entity.name
        known = {"animal": with_article(name), "person": name, "thing": f"the {name}"}[entity.kind]
        who = subject or known[0].upper() + known[1:]
        return [pattern.format(who=who, **entity.traits) for pattern in _STATEMENTS[entity.kind]]

    def _words(self) -> dict[str, str]:
        person, friend = self.rng.sample(self.people, 2)
        animal = self.rng.choice(self.animals)
        words = {slot: self.rng.choice(choices) for slot, choices in _WORDS.items()}
        return words | {
            "name": person.name,
            "friend": friend.name,
            "food": person.traits["food"],
            "beast": animal.name,
            "animal": with_article(animal.name),
            "sound": animal.traits["sound"],
            "home": animal.traits["home"],
            "meal": animal.traits["food"],
        }
