"""Cut a validation share from training rows, and order an epoch: functions of content and seed, never of position.

Appending rows to the file moves no row from one side to the other, and rows with the same prompt stay together.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ftray.data.columns import missing_column
from ftray.data.config import SplitConfig
from ftray.data.conversations import Example, without_repetitions
from ftray.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The two sides of a cut."""

    train: list[Example]
    validation: list[Example]


def split_validation(examples: Sequence[Example], *, share: float, config: SplitConfig, seed: int) -> Split:
    """Cut about `share` of the examples off for validation; a side without rows is an InputError.

    Rows that a source's weight repeats validate once.
    """
    is_validation = _latest(examples, share, config) if config.by == "time" else _bucket(share, config, seed)
    sides = [is_validation(example) for example in examples]
    train = [example for example, validates in zip(examples, sides, strict=True) if not validates]
    validating = [example for example, validates in zip(examples, sides, strict=True) if validates]
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
    return Split(train=train, validation=validation)


def data_order(digests: Sequence[str], *, seed: int, epoch: int) -> list[int]:
    """Return the order of an epoch as indices: a function of (seed, epoch, row digest); equal rows by occurrence."""
    seen: Counter[str] = Counter()
    keys = []
    for index, digest in enumerate(digests):
        keys.append((_hash("order", seed, epoch, digest, seen[digest]), index))
        seen[digest] += 1
    return [index for _, index in sorted(keys)]


def _bucket(share: float, config: SplitConfig, seed: int) -> Callable[[Example], bool]:
    """Return the rule by content or group: the hash of what rows share, read as a number below 1."""

    def is_validation(example: Example) -> bool:
        key = example.normalised_prompt if config.by == "content" else _column(example, config)
        return int.from_bytes(_hash("split", seed, key)[:8]) < share * 2**64

    return is_validation


def _latest(examples: Sequence[Example], share: float, config: SplitConfig) -> Callable[[Example], bool]:
    """Return the rule by time: rows later than the cut, so that equal times stay on one side."""
    times = [_column(example, config) for example in examples]
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
    return lambda example: bool(_column(example, config) > cut)


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
    if value is None:
        where = f"a split by {config.by} ({example.dataset}, row {example.row})"
        raise missing_column(config.column, example.columns, file=example.dataset, line=None, where=where)
    return value


def _hash(*parts: Hashable) -> bytes:
    return hashlib.sha256("|".join(map(str, parts)).encode()).digest()
