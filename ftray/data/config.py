"""The `data` section of a job: where examples come from and how they become tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ftray.config import Config

SourceFormat = Literal[
    "auto", "messages", "prompt_completion", "alpaca", "sharegpt", "dolly", "oasst", "flan", "columns", "text"
]


class Source(Config):
    """One file (or Hugging Face dataset) of examples."""

    path: Annotated[str, Field(min_length=1)]
    """A .jsonl, .json, .csv, .parquet or .txt file (relative to the job file; ${VAR} expands), or a dataset name."""
    format: SourceFormat = "auto"
    """The shape of a row; `auto` recognises it from the keys of the rows and says which it took."""
    prompt: str | None = None
    """Template of the user's turn, e.g. "Which intent is this? {text}"; makes the format `columns`."""
    completion: str | None = None
    """Template of the assistant's turn, e.g. "{intent}"."""
    system: str | None = None
    """Template of a system message put before every example of this source."""
    where: dict[str, list[str | int | bool]] | None = None
    """Use only the rows whose columns have one of these values, e.g. {language: [en, de]}."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use the first N rows (after a deterministic shuffle by content, so that sorted files stay balanced)."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often each row is seen in an epoch: 2 means twice, 0.5 means every other row, chosen by content."""
    decontaminate: bool = False
    """Drop training rows whose exact or normalised prompt also stands in an evaluation set."""


class ReplayConfig(Config):
    """General examples mixed into the training rows, so that what the base could do is rehearsed and not forgotten.

    Either `path` or `sample_base` says where they come from.
    """

    fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of replay rows among all rows of an epoch: 0.25 is one replay row for every three of the task. Where there
    are fewer rows than that, they repeat."""
    path: Annotated[str, Field(min_length=1)] | None = None
    """A file (or Hugging Face dataset) of general examples, read as a training source is."""
    sample_base: Annotated[int, Field(ge=1)] | None = None
    """Sample so many texts from the base model itself, before training starts: no data is needed."""
    format: SourceFormat = "auto"
    """The shape of a row of `path`."""
    prompt: str | None = None
    """Template of the user's turn; makes the format `columns`."""
    completion: str | None = None
    """Template of the assistant's turn."""
    system: str | None = None
    """Template of a system message put before every example."""
    where: dict[str, list[str | int | bool]] | None = None
    """Use only the rows whose columns have one of these values."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use the first N rows of `path`, chosen by content."""

    @property
    def source(self) -> Source | None:
        """The file of replay rows as a source; None where they are sampled from the base."""
        if self.path is None:
            return None
        read = {name: getattr(self, name) for name in SOURCE_SETTINGS}
        return Source(path=self.path, **read)


SOURCE_SETTINGS = ("format", "prompt", "completion", "system", "where", "limit")
"""Settings of `replay` that say how its file is read."""


class SplitConfig(Config):
    """How a validation share is cut from the training rows."""

    by: Literal["content", "group", "time"] = "content"
    """`content`: rows with (nearly) the same prompt stay on one side; `group`: rows with the same `column`; `time`:
    the latest rows by `column` validate."""
    column: str | None = None
    """The column `group` and `time` read."""


class DataConfig(Config):
    """Everything that decides which tokens are trained on."""

    train: Source | list[Source]
    """Training examples."""
    validation: Annotated[float, Field(gt=0, lt=1)] | Source | list[Source] = 0.1
    """A share of the training rows, or a source of its own. Chooses checkpoints and settings."""
    test: Source | list[Source] | None = None
    """Held-out examples, read once, at the end. Without them a verdict cannot be better than `inconclusive`."""
    replay: ReplayConfig | None = None
    """General examples rehearsed beside the task. They join after the validation split and are no part of it."""
    split: SplitConfig = SplitConfig()
    """How the validation share is cut."""
    template: str = "tokenizer"
    """`tokenizer` (the model's own chat template), `alpaca`, `chatml`, or a Jinja file."""
    loss_on: Literal["all_turns", "last_turn"] = "all_turns"
    """Which assistant turns are learned."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Longest example in tokens; null means the model's own limit."""
    on_overlong: Literal["drop", "error"] = "drop"
    """What happens to an example longer than max_length: it is never cut."""
    max_dropped: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest share of rows that may be dropped before the job is refused."""
    sequence_packing: bool = False
    """Best-fit pack the examples of a step into as few forward passes as fit; attention never crosses examples."""


def sources_of(value: Source | list[Source]) -> list[Source]:
    """Return a source or a list of them as a list."""
    return list(value) if isinstance(value, list) else [value]
