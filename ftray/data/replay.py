"""Replay rows from a file, or from texts that were sampled from the base model: read, tokenized, mixed in.

A sampled text that ran into its limit has no end, and none is learned. Texts that are still to be sampled are stood in
for by rows of the greatest length, so that a job can be checked before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ftray.artifacts import digest_file, digest_of, read_lines
from ftray.data.config import SOURCE_SETTINGS, ReplayConfig, Source
from ftray.data.conversations import REPLAY, Example, Message
from ftray.data.mixing import choose_replay, count_replay
from ftray.data.tokenization import Dropped, Tokenization, TokenizedExample, tokenize_all
from ftray.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTexts:
    """The file of texts sampled from a base, which may not be there yet."""

    file: Path
    count: int
    longest: int
    """Tokens of a text at most, with what is put around it."""

    @property
    def is_there(self) -> bool:
        return self.file.is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRows:
    """What there is to rehearse, before it is tokenized."""

    config: ReplayConfig
    origin: str
    examples: list[Example]
    digest: str | None
    """Of what was read; None for texts that are still to be sampled."""
    unsampled: SampledTexts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The replay rows of an epoch, and where they come from."""

    rows: list[TokenizedExample]
    origin: str
    fraction: float
    share: float
    """Of all rows of an epoch: `fraction` to within one row."""
    available: int
    distinct: int
    is_sampled: bool
    """False as long as texts are still to be sampled."""
    dropped: list[Dropped] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        """Return what job.json, check.json and result.json say about replay."""
        return {
            "origin": self.origin,
            "fraction": self.fraction,
            "share": self.share,
            "rows": len(self.rows),
            "distinct": self.distinct,
            "available": self.available,
            "dropped": len(self.dropped),
            "tokens": sum(len(row.tokens) for row in self.rows),
            "labels": sum(int(np.count_nonzero(row.is_label[1:])) for row in self.rows),
            "is_sampled": self.is_sampled,
        }


def require_one_origin(config: ReplayConfig) -> None:
    """Raise InputError unless replay rows come from one place, and its settings are about that place."""
    if (config.path is None) == (config.sample_base is None):
        both = config.path is not None
        raise InputError(
            f"data.replay has {'both `path` and `sample_base`' if both else 'neither `path` nor `sample_base`'}",
            kind="bad_value",
            given={"path": config.path, "sample_base": config.sample_base} if both else None,
            allowed="`path` (a file of general rows) or `sample_base` (how many texts to sample from the base)",
            hint="Remove one of the two." if both else "For example data.replay: {sample_base: 300, fraction: 0.25}.",
            path="data.replay",
        )
    # Not `model_fields_set`: a job as a run has recorded it names every setting.
    defaults = {name: ReplayConfig.model_fields[name].default for name in SOURCE_SETTINGS}
    idle = [name for name, default in defaults.items() if getattr(config, name) != default]
    if config.sample_base is not None and idle:
        raise InputError(
            f"data.replay.{idle[0]} has no effect here: it says how a file is read, and the rows are sampled",
            kind="no_effect",
            given=idle,
            allowed="`sample_base` and `fraction`, or `path` with settings of a source",
            hint=f"Remove {', '.join(idle)}, or give `path` in the place of `sample_base`.",
            path=f"data.replay.{idle[0]}",
        )


def read_replay(
    config: ReplayConfig,
    *,
    sampled: SampledTexts | None,
    read: Callable[[Source, str], list[Example]],
    digest: Callable[[Source], str],
    every: int,
    may_stand_in: bool,
) -> ReplayRows:
    """Read the replay rows; of a file every `every`-th. Raises InputError for texts that should be there by now.

    `read` and `digest` are how the job reads a source.
    """
    if config.source is not None:
        examples = read(config.source, REPLAY)[::every]
        return ReplayRows(config=config, origin=config.source.path, examples=examples, digest=digest(config.source))
    assert sampled is not None, "sampled texts have a file"
    origin = f"{sampled.count} texts sampled from the base"
    if sampled.is_there:
        return ReplayRows(
            config=config, origin=origin, examples=read_sampled(sampled.file), digest=digest_file(sampled.file)
        )
    if not may_stand_in:
        raise InputError(
            f"the texts sampled from the base are not there: {sampled.file}",
            kind="missing_file",
            given=str(sampled.file),
            allowed="a storage folder that all workers share",
            hint="Run `ftray train` again: it samples them anew. Workers must see the storage folder.",
            file=str(sampled.file),
        )
    return ReplayRows(config=config, origin=origin, examples=[], digest=None, unsampled=sampled)


def read_sampled(file: Path) -> list[Example]:
    """Return sampled texts as examples: plain texts, or answers to an empty turn where a text has no first token."""
    examples = []
    for row, line in enumerate(read_lines(file)):
        text = str(line["text"])
        turns = (Message(role="user", content=""), Message(role="assistant", content=text)) if line["is_answer"] else ()
        examples.append(
            Example(messages=turns, text=None if turns else text, dataset=REPLAY, row=row, fields={}, columns=line)
        )
    return examples


def mix_replay(
    there: ReplayRows,
    tokenization: Tokenization,
    *,
    num_task_rows: int,
    seed: int,
    max_dropped: float,
    on_overlong: Literal["drop", "error"],
) -> Replay:
    """Tokenize the replay rows and choose those of an epoch. Raises InputError as for training rows."""
    count = count_replay(num_task_rows, there.config.fraction)
    if there.unsampled is not None:
        rows, dropped = stand_ins(there.unsampled), []
    else:
        is_file = there.config.path is not None
        # What a model says at random may not fit a template; the rest of it does.
        tokenized = tokenize_all(
            there.examples,
            tokenization,
            on_overlong=on_overlong if is_file else "drop",
            max_dropped=max_dropped if is_file else 1.0,
            name=REPLAY,
        )
        endless = {example.row for example in there.examples if not is_file and not example.columns["is_ended"]}
        rows = [without_end(one) if one.row in endless else one for one in tokenized.examples]
        dropped = tokenized.dropped
    if not rows:
        raise InputError(
            f"no replay row is left after tokenization ({there.origin})",
            kind="empty_dataset",
            given=len(there.examples),
            allowed="at least one row that fits and has labels",
            hint="Raise data.max_length, or give general rows as a file: data.replay.path.",
            path="data.replay",
        )
    chosen = choose_replay(rows, count, seed=seed)
    return Replay(
        rows=chosen,
        origin=there.origin,
        fraction=there.config.fraction,
        share=count / (count + num_task_rows),
        available=len(rows),
        distinct=len({row.digest for row in chosen}),
        is_sampled=there.unsampled is None,
        dropped=list(dropped),
    )


def without_end(example: TokenizedExample) -> TokenizedExample:
    """Return the example without its last label, the end of text: the model did not end there."""
    is_label = example.is_label.copy()
    is_label[np.flatnonzero(is_label)[-1:]] = False
    return replace(example, is_label=is_label)


def stand_ins(texts: SampledTexts) -> list[TokenizedExample]:
    """Return rows as long as sampled texts can be, which nothing may be trained on."""
    is_label = np.ones(texts.longest, dtype=np.bool_)
    is_label[0] = False
    tokens = np.zeros(texts.longest, dtype=np.int32)
    return [
        TokenizedExample(
            tokens=tokens,
            is_label=is_label,
            prompt_length=1,
            dataset=REPLAY,
            row=row,
            digest=digest_of([str(texts.file), row]),
        )
        for row in range(texts.count)
    ]
