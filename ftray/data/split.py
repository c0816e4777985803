"""Cut a validation share from training rows, and order an epoch: functions of content and seed.

By content and group, appending rows to a file of 50 or more moves no row from one side to the other, and rows that ask
(nearly) the same stay together. By time, the latest rows validate, so that newer ones move the cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ftray.data.columns import missing_column
from ftray.data.config import SplitConfig
from ftray.data.conversations import Example, without_repetitions
from ftray.data.fingerprint import constant_text, near_pairs, sketch_all
from ftray.errors import InputError

CONSTANT_ROWS = 50
"""So many first rows show which words belong to a template that stands in all of them."""
Side = Literal["train", "validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The two sides of a cut."""

    train: list[Example]
    validation: list[Example]
    left_out: list[Example]
    """Rows that nearly repeat rows of both sides: on either they would leak."""


def split_validation(examples: Sequence[Example], *, share: float, config: SplitConfig, seed: int) -> Split:
    """Cut about `share` of the examples off for validation; a side without rows is an InputError.

    Rows that a source's weight repeats validate once.
    """
    sides = _sides(examples, share, config, seed)
    train = [example for example, side in zip(examples, sides, strict=True) if side == "train"]
    validating = [example for example, side in zip(examples, sides, strict=True) if side == "validation"]
    left_out = [example for example, side in zip(examples, sides, strict=True) if side is None]
    validation = without_repetitions(validating)
    if not train or not validation:
        raise InputError(
            f"a validation share of {share:g} of {len(examples)} rows leaves no "
            f"{'training' if not train else 'validation'} rows (split by {config.by})",
            kind="empty_split",
            given=share,
            allowed="a share that leaves at least one row (and, by content or group, one prompt or group) on each side",
            hint="Raise or lower `data.validation`, add rows, or give a validation file of its own.",
            path="data.validation",
        )
    return Split(train=train, validation=validation, left_out=without_repetitions(left_out))


def data_order(digests: Sequence[str], *, seed: int, epoch: int) -> list[int]:
    """Return the order of an epoch as indices: a function of (seed, epoch, row digest); equal rows by occurrence."""
    seen: Counter[str] = Counter()
    keys = []
    for index, digest in enumerate(digests):
        keys.append((_hash("order", seed, epoch, digest, seen[digest]), index))
        seen[digest] += 1
    return [index for _, index in sorted(keys)]


def _sides(examples: Sequence[Example], share: float, config: SplitConfig, seed: int) -> list[Side | None]:
    match config.by:
        case "content":
            return _by_content(examples, share, seed)
        case "group":
            return [_drawn(_column(example, config), share, seed) for example in examples]
        case "time":
            is_late = _latest(examples, share, config)
            return ["validation" if is_late(example) else "train" for example in examples]


def _by_content(examples: Sequence[Example], share: float, seed: int) -> list[Side | None]:
    """Put each row where the earlier rows are that it repeats, exactly or nearly; else where its own hash says.

    A row only looks back, so that rows appended later move nobody.
    """
    prompts = [example.normalised_prompt for example in examples]
    repeats: dict[int, list[int]] = defaultdict(list)
    # Of a fixed number of first rows, or rows appended to a small file would change what is compared.
    constant = constant_text(prompts, most=CONSTANT_ROWS, least=CONSTANT_ROWS)
    pairs = near_pairs(sketch_all(prompts, constant=constant))
    for earlier, later in zip(pairs.earlier.tolist(), pairs.later.tolist(), strict=True):
        repeats[later].append(earlier)
    side_of: dict[str, Side | None] = {}
    for index, prompt in enumerate(prompts):
        if prompt not in side_of:
            sides = {side_of[prompts[earlier]] for earlier in repeats[index]} - {None}
            side_of[prompt] = _drawn(prompt, share, seed) if not sides else sides.pop() if len(sides) == 1 else None
    return [side_of[prompt] for prompt in prompts]


def _drawn(key: Hashable, share: float, seed: int) -> Side:
    """Return the side by the hash of what rows share, read as a number below 1."""
    return "validation" if int.from_bytes(_hash("split", seed, key)[:8]) < share * 2**64 else "train"


def _latest(examples: Sequence[Example], share: float, config: SplitConfig) -> Callable[[Example], bool]:
    """Return the rule by time: rows later than the cut, so that equal times stay on one side."""
    times = [_time(example, config) for example in examples]
    try:
        ordered = sorted(times)
    except TypeError as error:
        kinds = sorted({type(time).__name__ for time in times})
        raise InputError(
            f"the column {config.column!r} mixes {' and '.join(kinds)}, which have no order in time",
            kind="bad_row",
            given=config.column,
            allowed="numbers, or ISO 8601 text, in every row",
            hint="Write the times of all rows in one form.",
            path="data.split.column",
        ) from error
    cut = ordered[max(0, len(ordered) - round(share * len(ordered)) - 1)]
    return lambda example: bool(_time(example, config) > cut)


def as_time(value: Any) -> Any:
    """Return a column's value as times are compared: numbers that a CSV file holds as text are numbers."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _time(example: Example, config: SplitConfig) -> Any:
    """Return a row's time: a number, or a text that sorts as ISO 8601 does."""
    value = as_time(_column(example, config))
    if (isinstance(value, float) and not math.isfinite(value)) or not isinstance(value, int | float | str):
        raise _bad_value(example, config, f"{value!r}, which is no time", "numbers, or ISO 8601 text, in every row")
    return value


def _bad_value(example: Example, config: SplitConfig, what: str, allowed: str) -> InputError:
    return InputError(
        f"row {example.row} of {example.dataset!r} has {what}, in the column {config.column!r} that the split by "
        f"{config.by} reads",
        kind="bad_row",
        given=config.column,
        allowed=allowed,
        hint="Fill it in, or take the row out.",
        path="data.split.column",
    )


def _column(example: Example, config: SplitConfig) -> Any:
    if config.column is None:
        raise InputError(
            f"a split by {config.by} needs the name of a column",
            kind="missing_column",
            allowed=list(example.columns),
            hint=f"Set data.split to {{by: {config.by}, column: NAME}}, or split by content.",
            path="data.split.column",
        )
    value = example.columns.get(config.column)
    if config.column in example.columns and (value is None or value == ""):
        raise _bad_value(example, config, "nothing", "a value in every row")
    if value is None:
        where = f"a split by {config.by} ({example.dataset}, row {example.row})"
        raise missing_column(config.column, example.columns, file=example.dataset, line=None, where=where)
    return value


def _hash(*parts: Hashable) -> bytes:
    return hashlib.sha256("|".join(map(str, parts)).encode()).digest()
