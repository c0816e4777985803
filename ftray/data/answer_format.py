"""What answers are meant to look like: JSON, one of some labels, or a pattern; and how far a text keeps to it.

A text that begins in the format and drifts off later is a failure of its own kind, which a look at the beginning
alone never finds. A format is declared in the job or inferred from training answers; a pattern is never inferred.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import regex
from pydantic import ConfigDict, Field

from ftray.config import Config
from ftray.data.json_prefix import scan_json
from ftray.errors import InputError

FormatKind = Literal["json", "labels", "pattern"]
Keeping = Literal["valid", "drifts", "truncated", "other"]
FITTING_SHARE = 0.8
"""At least this share of the training answers must be in a format that is inferred."""
MAX_LABELS = 100
MAX_LABEL_CHARACTERS = 60
"""Longer answers are texts, not labels: of an inferred format only."""
SUBSTANTIAL_CHARACTERS = 4
"""So much of the beginning must be valid before an answer counts as one that was in the format once."""
PATTERN_SECONDS = 1.0
"""Longest time that one pattern may take for one answer."""
PATH = "evaluate.format"


class FormatConfig(Config):
    """What every answer must look like, to its end: exactly one of json, labels and pattern."""

    model_config = ConfigDict(serialize_by_alias=True)

    # `json` is a method of every pydantic model.
    is_json: Annotated[Literal[True] | None, Field(alias="json")] = None
    """One JSON object or array, with nothing but blanks around it."""
    labels: list[str] | None = None
    """One of these, compared without case and spacing."""
    pattern: str | None = None
    """A regular expression (of the `regex` module) that the whole answer matches, blanks included."""


FormatSetting = Literal["json", "labels"] | FormatConfig
"""`json`; `labels`, which are then the distinct training answers; or more exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """A format that answers keep to, or not."""

    kind: FormatKind
    labels: tuple[str, ...] = ()
    pattern: str = ""

    def valid_length(self, text: str) -> int:
        """Return how many characters of `text`, from its start, are the beginning of some valid answer.

        Linear in the text for JSON and labels; for a pattern as many matches as the length has binary digits.
        """
        return self._progress(text).length

    def is_valid(self, text: str) -> bool:
        """Return whether the whole text is an answer in this format."""
        progress = self._progress(text)
        return progress.length == len(text) and progress.ends

    def classify(self, text: str) -> Keeping:
        """Return how a text keeps to the format.

        `drifts`: a complete answer, or a good beginning of one, then something else. `truncated`: valid as far as it
        goes, but not finished. `other`: never in the format.
        """
        progress = self._progress(text)
        begun = len(text[: progress.length].strip())
        if progress.length == len(text):
            return "valid" if progress.ends else "truncated" if begun else "other"
        was_once = progress.complete if self.kind == "labels" else progress.complete or begun >= SUBSTANTIAL_CHARACTERS
        return "drifts" if was_once else "other"

    def describe(self) -> str:
        """Return the format in words."""
        match self.kind:
            case "json":
                return "one JSON object or array"
            case "labels":
                shown = ", ".join(repr(label) for label in self.labels[:5])
                return f"one of {len(self.labels)} labels ({shown}{', …' if len(self.labels) > 5 else ''})"
            case "pattern":
                return f"text that matches {self.pattern}"

    def _progress(self, text: str) -> _Progress:
        match self.kind:
            case "json":
                found = scan_json(text)
                return _Progress(
                    length=found.length, complete=found.complete is not None, ends=found.complete is not None
                )
            case "labels":
                return _label_progress(_label_tree(self.labels), text)
            case "pattern":
                return _pattern_progress(_compiled(self.pattern), text)


def declared_format(config: FormatSetting | None, training_answers: Sequence[str]) -> AnswerFormat | None:
    """Return the format a job declares, or None. Raises InputError `bad_format`, `bad_pattern`."""
    if config is None:
        return None
    kind: str
    if isinstance(config, str):
        kind, labels, pattern = config, _distinct(training_answers), ""
    else:
        fields = {"json": config.is_json, "labels": config.labels, "pattern": config.pattern}
        given = [name for name, value in fields.items() if value is not None]
        if len(given) != 1:
            raise InputError(
                f"{PATH} names {' and '.join(given) or 'nothing'}: a format is exactly one of json, labels and pattern",
                kind="bad_format",
                given=given,
                allowed="json, labels, {json: true}, {labels: [...]} or {pattern: ...}",
                hint="Keep the one that every answer must fit.",
                path=PATH,
            )
        labels, pattern = _distinct(config.labels or ()), config.pattern or ""
        kind = given[0]
    match kind:
        case "json":
            return AnswerFormat(kind="json")
        case "labels":
            _require_labels(labels, config)
            return AnswerFormat(kind="labels", labels=labels)
        case _:
            require_pattern(pattern)
            return AnswerFormat(kind="pattern", pattern=pattern)


def infer_format(answers: Sequence[str]) -> AnswerFormat | None:
    """Return the format that most answers have, or None.

    JSON where 80 % of the answers start as an object or array, whatever follows. Labels where at most 100 short
    answers, each given twice or more, make up 80 %.
    """
    if not answers:
        return None
    as_json = AnswerFormat(kind="json")
    if sum(as_json.classify(answer) != "other" for answer in answers) >= FITTING_SHARE * len(answers):
        return as_json
    counts = Counter(_fold(answer) for answer in answers)
    common = {label for label, n in counts.items() if n > 1 and 0 < len(label) <= MAX_LABEL_CHARACTERS}
    covered = sum(counts[label] for label in common)
    if not 2 <= len(common) <= MAX_LABELS or covered < FITTING_SHARE * len(answers):
        return None
    return AnswerFormat(kind="labels", labels=_distinct([one for one in answers if _fold(one) in common]))


def require_pattern(pattern: str) -> None:
    """Raise InputError `bad_pattern` unless the pattern compiles and some text that is not empty matches it."""
    try:
        compiled = _compiled(pattern)
    except regex.error as error:
        rest = "" if error.pos is None else pattern[error.pos : error.pos + 12]
        where = "" if error.pos is None else f" at character {error.pos} ({repr(rest) if rest else 'its end'})"
        raise _bad_pattern(pattern, f"does not compile: {error.msg}{where}") from error
    # Most patterns say so at the first letters; only one that takes nothing is asked for every character.
    if not any(compiled.fullmatch(chr(code), partial=True) for code in range(0x110000) if not 0xD800 <= code < 0xE000):
        raise _bad_pattern(pattern, "matches nothing but the empty text")


def _bad_pattern(pattern: str, why: str) -> InputError:
    return InputError(
        f"the pattern {pattern!r} {why}",
        kind="bad_pattern",
        given=pattern,
        allowed="a regular expression that whole answers match",
        hint="Correct it, for example: pattern: '(yes|no)(, because .+)?'; in YAML single quotes keep backslashes.",
        path=f"{PATH}.pattern",
    )


def _require_labels(labels: Sequence[str], config: FormatSetting) -> None:
    if len(labels) < 2:
        source = "the training answers have" if isinstance(config, str) else f"{PATH}.labels names"
        raise InputError(
            f"{source} {len(labels)} different label{'s' if len(labels) != 1 else ''} (case and spacing aside)",
            kind="bad_format",
            given=list(labels),
            allowed="at least two different labels",
            hint="List the labels that an answer may be: labels: [yes, no].",
            path=PATH if isinstance(config, str) else f"{PATH}.labels",
        )


def _fold(text: str) -> str:
    """Return the text as exact_match compares it by default."""
    return " ".join(text.split()).casefold()


def _distinct(answers: Sequence[str]) -> tuple[str, ...]:
    """Return the answers that differ, in their first spelling, sorted; empty ones are no labels."""
    first: dict[str, str] = {}
    for answer in answers:
        first.setdefault(_fold(answer), " ".join(answer.split()))
    return tuple(sorted(label for folded, label in first.items() if folded))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """How far one text keeps to a format."""

    length: int
    complete: bool
    """A whole answer stands before whatever is not valid."""
    ends: bool
    """What is valid is a whole answer."""


class _Tree:
    """The characters that may follow, after some of a label."""

    def __init__(self) -> None:
        self.next: dict[str, _Tree] = {}
        self.is_label = False


@functools.lru_cache(maxsize=64)
def _label_tree(labels: tuple[str, ...]) -> _Tree:
    root = _Tree()
    for label in labels:
        place = root
        for character in _fold(label):
            place = place.next.setdefault(character, _Tree())
        place.is_label = True
    return root


def _label_progress(place: _Tree, text: str) -> _Progress:
    begun, blank, complete, length = False, False, False, 0
    for character in text:
        if character.isspace():
            if begun and not (place.is_label or " " in place.next):
                break
            blank = begun
        else:
            following = _follow(place, " " if blank else "", character.casefold())
            # "Positive!" begins with the label, "positively" does not.
            complete |= place.is_label and (blank or not character.isalnum())
            if following is None:
                break
            place, begun, blank = following, True, False
        length += 1
    return _Progress(length=length, complete=complete, ends=place.is_label)


def _follow(place: _Tree, blank: str, characters: str) -> _Tree | None:
    for character in blank + characters:
        if (following := place.next.get(character)) is None:
            return None
        place = following
    return place


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> Any:
    return regex.compile(pattern)


def _pattern_progress(compiled: Any, text: str) -> _Progress:
    try:
        if compiled.fullmatch(text, timeout=PATTERN_SECONDS):
            return _Progress(length=len(text), complete=True, ends=True)
        if compiled.fullmatch(text, partial=True, timeout=PATTERN_SECONDS):
            return _Progress(length=len(text), complete=False, ends=False)
        # A beginning of a valid beginning is valid, too, so that halving finds where it stops being one.
        low, high = 0, len(text)
        while low < high - 1:
            middle = (low + high) // 2
            if compiled.fullmatch(text, endpos=middle, partial=True, timeout=PATTERN_SECONDS):
                low = middle
            else:
                high = middle
        begins = compiled.match(text, endpos=low, timeout=PATTERN_SECONDS)
        return _Progress(length=low, complete=bool(begins and begins.end()), ends=False)
    except TimeoutError as error:
        why = f"takes longer than {PATTERN_SECONDS:g} second for an answer of {len(text)} characters"
        raise _bad_pattern(compiled.pattern, why) from error
