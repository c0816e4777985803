"""The quickstart's task: which of six intents has a request to the household robot? The base never saw their names.

Test rows share no text with training rows, and a third of them use wordings that training never uses.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from ftray.data.conversations import normalise
from ftray.quickstart.corpus import chat_turns, held_out_stories
from ftray.quickstart.world import facts

PROMPT = "Which intent is this? {text}"
COMPLETION = "{intent}"
_SLOTS = {
    "song": ("the rain song", "a slow song", "the birthday song", "some loud music", "a song about the sea",
             "the winter song", "some quiet music", "a happy song", "the song of the frog", "my best song"),
    "room": ("kitchen", "bedroom", "garden", "hall", "bathroom", "office", "garage", "cellar"),
    "person": ("Mia", "Tom", "Lily", "Ben", "Anna", "Max", "Sara", "Leo", "Emma", "Sam", "Nora", "Jack"),
    "minutes": ("two minutes", "five minutes", "ten minutes", "twenty minutes", "thirty minutes", "an hour",
                "two hours", "half an hour"),
    "food": ("bread", "soup", "rice", "cake", "fish", "cheese", "apples", "noodles", "beans", "eggs", "milk", "honey"),
    "place": ("the harbour", "the village", "the city", "the beach", "the mountain", "the forest", "the island",
              "the valley"),
    "time": ("today", "tomorrow", "in the morning", "in the evening", "at night", "on Monday", "on Sunday", "at noon"),
    "news": ("I am late", "the cake is ready", "we are at the beach", "the dog is back", "I need a coat",
             "the music was good", "it rains", "dinner is at noon"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wordings:
    taught: tuple[str, ...]
    held_out: tuple[str, ...]


_INTENTS = {
    "music": _Wordings(
        taught=(
            "play {song}",
            "play {song} in the {room}",
            "play {song} for {person}",
            "I want to hear {song}",
            "I want to hear {song} {time}",
            "start {song} in the {room}",
            "sing {song} for {person}",
            "let us dance to {song}",
        ),
        held_out=("{person} wants to hear {song}", "let {person} dance to {song} in the {room}"),
    ),
    "alarm": _Wordings(
        taught=(
            "wake me in {minutes}",
            "wake {person} in {minutes}",
            "set the clock to {minutes}",
            "ring in {minutes}",
            "ring when {minutes} are over",
            "count down {minutes} for the {food}",
            "the {food} needs {minutes}, then ring",
            "remind me of the {food} in {minutes}",
        ),
        held_out=("remind {person} of the {food} in {minutes}", "ring in the {room} when {minutes} are over"),
    ),
    "light": _Wordings(
        taught=(
            "turn on the lamp in the {room}",
            "turn off the lamp in the {room} {time}",
            "it is too dark in the {room}",
            "it is too dark for {person} in the {room}",
            "make the {room} bright",
            "make the {room} bright for {person}",
            "the light in the {room} is too bright",
            "I need light in the {room} {time}",
        ),
        held_out=("{person} needs light in the {room}", "turn the {room} dark {time}"),
    ),
    "weather": _Wordings(
        taught=(
            "will it rain {time}",
            "will it rain at {place} {time}",
            "is it cold at {place}",
            "is it cold at {place} {time}",
            "do I need a coat {time}",
            "does {person} need a coat at {place}",
            "how warm is it at {place} {time}",
            "is there snow at {place} {time}",
        ),
        held_out=("will there be snow {time}", "how cold is it at {place} {time}"),
    ),
    "shopping": _Wordings(
        taught=(
            "buy {food}",
            "buy {food} for {person}",
            "put {food} on the list",
            "we need more {food} {time}",
            "there is no {food} left in the {room}",
            "get {food} from the shop {time}",
            "{person} wants {food} from the shop",
            "the {food} is gone, buy more",
        ),
        held_out=("{person} needs more {food}", "get {food} for {person}"),
    ),
    "message": _Wordings(
        taught=(
            "tell {person} that {news}",
            "write to {person} that {news}",
            "send {person} a note, {news}",
            "send a message to {person}",
            "send a message to {person} {time}",
            "let {person} know that {news}",
            "write a note to {person} about the {food}",
            "ask {person} about {place}",
        ),
        held_out=("write {person} a message, {news}", "send a note to {person} about {place}"),
    ),
}
_OPENINGS = ("", "", "please ", "robot, ", "hey robot, ", "now ")
_CLOSINGS = ("", "", "", " please", " now", ", thank you")
_TRAIN_PER_INTENT = 150
_TEST_TAUGHT_PER_INTENT = 17
_TEST_HELD_OUT_PER_INTENT = 8
_PROBE_ROWS = 100
_STORIES = 60
_REPLAY_ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFiles:
    """Where the task lies: rows to train and to test on, chats to replay, and two probes of what the base can do."""

    train: Path
    test: Path
    replay: Path
    probe: Path
    stories: Path


def write_task(folder: Path, *, seed: int) -> TaskFiles:
    """Write train and test (text, intent), replay and probe (prompt, completion), and stories (one a line)."""
    folder.mkdir(parents=True, exist_ok=True)
    files = TaskFiles(
        train=folder / "train.jsonl",
        test=folder / "test.jsonl",
        replay=folder / "replay.jsonl",
        probe=folder / "probe.jsonl",
        stories=folder / "stories.txt",
    )
    rng = random.Random(f"task {seed}")
    train: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    for intent, wordings in _INTENTS.items():
        requests = _requests(wordings.taught, _TRAIN_PER_INTENT + _TEST_TAUGHT_PER_INTENT, rng)
        unseen = _requests(wordings.held_out, _TEST_HELD_OUT_PER_INTENT, rng)
        train += [{"text": text, "intent": intent} for text in requests[:_TRAIN_PER_INTENT]]
        test += [{"text": text, "intent": intent} for text in (*requests[_TRAIN_PER_INTENT:], *unseen)]
    rng.shuffle(train)
    rng.shuffle(test)
    turns = chat_turns(_REPLAY_ROWS, seed=seed)
    asked = rng.sample(facts(), _PROBE_ROWS)
    _write_rows(files.train, train)
    _write_rows(files.test, test)
    _write_rows(files.replay, [{"prompt": turn.question, "completion": turn.answer} for turn in turns])
    _write_rows(files.probe, [{"prompt": fact.held_out, "completion": fact.answer} for fact in asked])
    files.stories.write_text("\n".join(held_out_stories(_STORIES, seed=seed)) + "\n", encoding="utf-8")
    return files


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _requests(wordings: tuple[str, ...], count: int, rng: random.Random) -> list[str]:
    """Return `count` requests in random order, no two the same after normalisation."""
    found: dict[str, str] = {}
    while len(found) < count:
        slots = {name: rng.choice(words) for name, words in _SLOTS.items()}
        text = rng.choice(_OPENINGS) + rng.choice(wordings).format(**slots) + rng.choice(_CLOSINGS)
        found.setdefault(normalise(text), text)
    return list(found.values())
