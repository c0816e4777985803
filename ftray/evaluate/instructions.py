"""Instructions whose following can be checked without a judge and in any language, after IFEval (arXiv:2311.07911).

An answer is right when it follows all of its row's instructions. One that says nothing follows none, not even "at most
ten words".
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from ftray.config import Config
from ftray.data.answer_format import AnswerFormat
from ftray.errors import InputError

COLUMN = "instructions"
_SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*(?=\s|$)|[\u3002\uff01\uff1f]+")
_BULLET = re.compile(r"\s*(?:[-*+•]|\d+[.)])\s+\S")


class Amount(Config):
    """So much of something, ends included."""

    kind: Literal["words", "characters", "sentences", "lines", "bullets"]
    """Words stand between blanks; sentences end with . ! ? …; lines are not empty; bullets begin with - * + • or 1."""
    min: Annotated[int, Field(ge=0)] | None = None
    """At least so many."""
    max: Annotated[int, Field(ge=0)] | None = None
    """At most so many."""

    @model_validator(mode="after")
    def _limits_something(self) -> Amount:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min must not be above max")
        return self


class Casing(Config):
    """All letters small, or all capital."""

    kind: Literal["lowercase", "uppercase"]


class IsJson(Config):
    """One JSON object or array and nothing else."""

    kind: Literal["json"]


class Mentions(Config):
    """Every one of these words or phrases, or none of them; case does not matter."""

    kind: Literal["contains", "lacks"]
    words: Annotated[list[Annotated[str, Field(pattern=r"\S")]], Field(min_length=1)]
    """Whole words: "cat" is not in "concatenate"."""


class Edge(Config):
    """How the answer begins or ends, but for blanks and case."""

    kind: Literal["starts_with", "ends_with"]
    text: Annotated[str, Field(pattern=r"\S")]
    """What stands there."""


Instruction = Annotated[Amount | Casing | IsJson | Mentions | Edge, Field(discriminator="kind")]
_LIST: TypeAdapter[list[Instruction]] = TypeAdapter(list[Instruction])


def follows(instruction: Instruction, answer: str) -> bool:
    """Return whether an answer follows one instruction."""
    text = answer.strip()
    if not text:
        return False
    match instruction:
        case Amount():
            count = _count(instruction.kind, text)
            return (instruction.min is None or count >= instruction.min) and (
                instruction.max is None or count <= instruction.max
            )
        case Casing():
            return text.islower() if instruction.kind == "lowercase" else text.isupper()
        case IsJson():
            return AnswerFormat(kind="json").is_valid(text)
        case Mentions():
            found = [_is_mentioned(word, text) for word in instruction.words]
            return all(found) if instruction.kind == "contains" else not any(found)
        case Edge():
            folded, edge = text.casefold(), instruction.text.strip().casefold()
            return folded.startswith(edge) if instruction.kind == "starts_with" else folded.endswith(edge)


def follows_all(instructions: Sequence[Instruction], answer: str) -> bool:
    """Return whether an answer follows every instruction: IFEval's strict accuracy of prompts."""
    return all(follows(instruction, answer) for instruction in instructions)


def describe(instruction: Instruction) -> str:
    """Return an instruction in a few words."""
    match instruction:
        case Amount(kind=kind, min=low, max=high):
            if low is not None and high is not None:
                return f"{low} {kind}" if low == high else f"{low} to {high} {kind}"
            return f"at least {low} {kind}" if low is not None else f"at most {high} {kind}"
        case Casing():
            return f"all {instruction.kind}"
        case IsJson():
            return "JSON"
        case Mentions():
            return f"{instruction.kind} {', '.join(map(repr, instruction.words))}"
        case Edge():
            return f"{instruction.kind.replace('_', ' ')} {instruction.text!r}"


def read_instructions(value: Any, *, dataset: str, row: int) -> tuple[Instruction, ...]:
    """Return a row's instructions from its column, a list or a JSON string of one. Raises InputError with the row."""
    if value is None:
        raise _bad_instructions(f"has no column {COLUMN!r}", None, dataset=dataset, row=row)
    try:
        content = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise _bad_instructions(
            f"has instructions that are not JSON: {error}", value, dataset=dataset, row=row
        ) from error
    if isinstance(content, list):
        # Parquet gives every key of any row to all of them.
        content = [
            {key: part for key, part in one.items() if part is not None} if isinstance(one, dict) else one
            for one in content
        ]
    try:
        instructions = _LIST.validate_python(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        why = f"has an instruction that cannot be checked: {place + ': ' if place else ''}{problem['msg']}"
        raise _bad_instructions(why, value, dataset=dataset, row=row) from error
    if not instructions:
        raise _bad_instructions("has an empty list of instructions", value, dataset=dataset, row=row)
    return tuple(instructions)


def _bad_instructions(why: str, given: Any, *, dataset: str, row: int) -> InputError:
    kinds = "words, characters, sentences, lines, bullets, lowercase, uppercase, json, contains, lacks, starts_with"
    return InputError(
        f"row {row} of {dataset!r} {why}",
        kind="bad_instruction",
        given=given,
        allowed=f"a list of instructions of the kinds {kinds}, ends_with",
        hint=f'Write them in the column {COLUMN!r}, e.g. [{{"kind": "words", "max": 20}}], or name one list for all '
        "rows beside `metric: instructions`.",
        path=COLUMN,
    )


def _count(kind: str, text: str) -> int:
    match kind:
        case "words":
            return sum(any(map(str.isalnum, word)) for word in text.split())
        case "characters":
            return len(text)
        case "sentences":
            # What stands after the last end is a sentence, too.
            return sum(any(map(str.isalnum, part)) for part in _SENTENCE_END.split(text))
        case "lines":
            return sum(bool(line.strip()) for line in text.splitlines())
        case _:
            return sum(bool(_BULLET.match(line)) for line in text.splitlines())


def _is_mentioned(word: str, text: str) -> bool:
    wanted = " ".join(word.split()).casefold()
    before = r"(?<!\w)" if wanted[0].isalnum() else ""
    after = r"(?!\w)" if wanted[-1].isalnum() else ""
    return bool(re.search(before + re.escape(wanted) + after, " ".join(text.split()).casefold()))
