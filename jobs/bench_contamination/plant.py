"""Evaluation rows planted into training data, each kind of contamination as it happens, and what finds them again."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ftray.audit.overlap import Overlaps
from ftray.data.config import Source
from ftray.data.conversations import Example, Message
from ftray.data.fingerprint import Prints, constant_text
from ftray.data.readers import read_source

CHUNK = 2000
REWORDED_SHARE = 0.08
"""Share of the words that a light rewording replaces by other words of the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Training rows and the rows they are tested on."""

    train: list[Example]
    test: list[Example]


def load_pair(shared: Path, name: str) -> Pair:
    """Return a pair by its name; `-joined` joins four utterances of one intent to a text of about 35 words."""
    data = shared / "data"
    match name.removesuffix("-joined"):
        case "snips":
            pair = _read(data / "snips/train.jsonl", data / "snips/heldout.jsonl", "{text}", "{intent}")
        case "clinc150":
            pair = _read(data / "clinc150/train.jsonl", data / "clinc150/test.jsonl", "{text}", "{intent}")
        case "gsm8k":
            pair = _read(data / "gsm8k/train.jsonl", data / "gsm8k/test.jsonl", "{question}", "{answer}")
        case other:
            raise SystemExit(f"there is no pair {other!r}: snips, clinc150, gsm8k")
    if name.endswith("-joined"):
        return Pair(train=_joined(pair.train, seed=0), test=_joined(pair.test, seed=1))
    return pair


def _read(train: Path, test: Path, prompt: str, completion: str) -> Pair:
    sides = (
        read_source(Source(path=str(file), prompt=prompt, completion=completion), name=name, base=Path.cwd())
        for name, file in (("train", train), ("test", test))
    )
    return Pair(train=next(sides), test=next(sides))


def _joined(rows: list[Example], *, seed: int, size: int = 4) -> list[Example]:
    by_answer: dict[str, list[Example]] = {}
    for row in rows:
        by_answer.setdefault(row.answer_text, []).append(row)
    texts = []
    for answer, group in sorted(by_answer.items()):
        random.Random(seed).shuffle(group)
        for start in range(0, len(group) - size + 1, size):
            parts = [one.subject.strip().rstrip(".?!") + "." for one in group[start : start + size]]
            texts.append((" ".join(parts), answer))
    return [_asking(rows[0], text, answer, row) for row, (text, answer) in enumerate(texts)]


def _asking(like: Example, question: str, answer: str, row: int) -> Example:
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return dataclasses.replace(like, messages=messages, row=row, fields={"text": question}, columns={})


def exact(example: Example, words: list[str], seed: random.Random) -> str:
    return example.subject


def case_and_punctuation(example: Example, words: list[str], seed: random.Random) -> str:
    # "3.5" without its point would be another number.
    text = re.sub(r"(?<!\d)[.,?!']|[.,?!'](?!\d)", "", example.subject)
    return seed.choice([text.upper(), text.lower(), text.title()]) + seed.choice(["", "!", " ...", "?"])


def numbers_changed(example: Example, words: list[str], seed: random.Random) -> str | None:
    changed = re.sub(r"\d+", lambda match: str(int(match.group()) + seed.randint(1, 90)), example.subject)
    return changed if changed != example.subject else None


def sentences_reordered(example: Example, words: list[str], seed: random.Random) -> str | None:
    sentences = re.split(r"(?<=[.?!])\s+", example.subject.strip())
    if len(sentences) < 2:
        return None
    order = sentences[1:] + sentences[:1]
    return " ".join(order)


def lightly_reworded(example: Example, words: list[str], seed: random.Random) -> str:
    given = example.subject.split()
    count = max(1, round(REWORDED_SHARE * len(given)))
    for place in seed.sample(range(len(given)), min(count, len(given))):
        given[place] = seed.choice(words)
    return " ".join(given)


def answer_in_a_prompt(example: Example, words: list[str], seed: random.Random) -> str | None:
    if len(example.answer_text.split()) < 8:
        return None
    filler = " ".join(seed.choices(words, k=20))
    return f"{filler}. Use this: {example.answer_text} {filler}"


Kind = Callable[[Example, list[str], random.Random], str | None]
KINDS: dict[str, Kind] = {
    "exact": exact,
    "case and punctuation": case_and_punctuation,
    "numbers changed": numbers_changed,
    "sentences reordered": sentences_reordered,
    "lightly reworded": lightly_reworded,
    "test answer in a prompt": answer_in_a_prompt,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How many planted rows were found again."""

    planted: int
    found: int
    by: dict[str, int]
    """Rows found by each check; a row may be found by several."""


def search(pair: Pair) -> Overlaps:
    """Look for the test rows in the training rows, as the gate does."""
    overlaps = Overlaps(Prints(constant_text([example.normalised_prompt for example in pair.train])))
    overlaps.see("test", pair.test)
    for start in range(0, len(pair.train), CHUNK):
        overlaps.see("train", pair.train[start : start + CHUNK])
    return overlaps


def plant(pair: Pair, kind: Kind, *, rows: int, seed: int, clean: set[int]) -> Found:
    """Plant up to `rows` of the `clean` test rows (by position), one kind, at random places; count those found."""
    source = random.Random(seed)
    words = [word for example in source.sample(pair.train, 200) for word in example.subject.split()]
    train, chosen = list(pair.train), []
    for position in source.sample(sorted(clean), len(clean)):
        if len(chosen) == rows:
            break
        text = kind(pair.test[position], words, source)
        if text is not None:
            chosen.append(position)
            planted = _asking(pair.train[0], text, source.choice(pair.train).answer_text, len(train))
            train.insert(source.randrange(len(train)), planted)
    overlaps = search(Pair(train=train, test=pair.test))
    seen = [overlaps.held[position].seen for position in chosen]
    by = {name: sum(name in one for one in seen) for name in sorted({name for one in seen for name in one})}
    return Found(planted=len(chosen), found=sum(bool(one) for one in seen), by=by)
