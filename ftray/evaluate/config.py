"""The `evaluate` section of a job: how an answer is graded and what must not be forgotten."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ftray.config import Config
from ftray.data.config import Source

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
METRICS = (
    "exact_match", "choice", "token_f1", "macro_f1", "json_valid", "json_fields", "rouge_l", "bleu",
    "nll", "perplexity", "bits_per_byte",
)  # fmt: skip
LOWER_IS_BETTER = frozenset({"nll", "perplexity", "bits_per_byte"})
LIKELIHOOD_METRICS = frozenset({"choice", "nll", "perplexity", "bits_per_byte"})
"""Metrics that score given text and need no generation."""


class Metric(Config):
    """How one answer is graded."""

    metric: Annotated[str, Field(pattern=r"^([a-z0-9_]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")] = "exact_match"
    """One of the built-in metrics, or "module:function" taking (prediction, expected) and returning a number 0-1."""
    normalise: Literal["none", "whitespace", "casefold"] = "casefold"
    """Before comparing: `whitespace` strips and collapses blanks; `casefold` also ignores case; `none` does nothing."""
    choices: list[str] | None = None
    """The answers `choice` ranks by log-likelihood; null takes the distinct expected answers."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest generated answer, in tokens."""


class Probe(Source, Metric):
    """A general ability that fine-tuning must not destroy: a source and a metric."""

    name: Slug
    """The probe's name in evaluation.json."""
    metric: Annotated[str, Field(pattern=r"^([a-z0-9_]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")] = "bits_per_byte"
    """As in `task`; general probes default to bits per byte."""


class EvaluateConfig(Config):
    """How base and tuned are compared. Changing it re-evaluates the same run."""

    task: Metric = Metric()
    """The metric that chooses the checkpoint and decides the verdict."""
    general: list[Probe] = []
    """Probes of what the base could do before."""
    max_forgetting: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest mean loss of accuracy over the general probes that are graded by accuracy."""
    max_bits_per_byte_increase: Annotated[float, Field(ge=0)] = 0.10
    """Largest increase of bits per byte on a general probe graded by likelihood."""
