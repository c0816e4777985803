"""The `evaluate` section of a job: how an answer is graded and what must not be forgotten."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ftray.config import Config
from ftray.data.answer_format import FormatSetting
from ftray.data.config import Source
from ftray.evaluate.instructions import Instruction

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
METRICS = (
    "exact_match", "choice", "token_f1", "macro_f1", "json_valid", "json_fields", "rouge_l", "bleu",
    "instructions", "nll", "perplexity", "bits_per_byte",
)  # fmt: skip
LOWER_IS_BETTER = frozenset({"nll", "perplexity", "bits_per_byte"})
LIKELIHOOD_METRICS = frozenset({"choice", "nll", "perplexity", "bits_per_byte"})
"""Metrics that score given text and need no generation."""
TASK_FILES = (".yaml", ".yml")
"""What the name of a task file of lm-eval ends with."""


class Metric(Config):
    """How one answer is graded."""

    metric: Annotated[str, Field(pattern=r"^([a-z0-9_]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")] = "exact_match"
    """One of the built-in metrics, or "module:function" taking (prediction, expected) and returning a number 0-1."""
    normalise: Literal["none", "whitespace", "casefold"] = "casefold"
    """Before comparing: `whitespace` strips and collapses blanks; `casefold` also ignores case; `none` does nothing."""
    choices: list[str] | None = None
    """The answers `choice` ranks by log-likelihood; null takes the distinct expected answers."""
    instructions: Annotated[list[Instruction], Field(min_length=1)] | None = None
    """What `instructions` checks on every row; null takes each row's own list, in its column `instructions`. Such rows
    need no expected answer: give their source completion: ""."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest generated answer, in tokens."""


class Probe(Source, Metric):
    """A general ability that fine-tuning must not destroy: a source and a metric."""

    name: Slug
    """The probe's name in evaluation.json."""
    metric: Annotated[str, Field(pattern=r"^([a-z0-9_]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")] = "bits_per_byte"
    """As in `task`; general probes default to bits per byte."""


class LmEvalProbe(Config):
    """A general ability measured by a task of EleutherAI's lm-eval, which comes with `pip install 'ftray[lm-eval]'`.

    The dataset gate does not see its rows. With several workers one of them asks while the others wait, which they do
    for half an hour at most: set a limit for a long task.
    """

    name: Slug
    """The probe's name in evaluation.json."""
    lm_eval: Annotated[str, Field(min_length=1)]
    """A single task that lm-eval knows, e.g. arc_easy, or a task file of your own: task.yaml (relative to the job
    file, and its data_files relative to it)."""
    metric: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] | None = None
    """Which of the task's metrics counts, e.g. acc_norm; it must be a mean of scores between 0 and 1, the higher the
    better. Null takes the task's first such metric. Of several filters of the answers the first counts."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Ask the first N rows, in the task's order, as lm-eval's own --limit does."""


def _probe_kind(probe: Any) -> str:
    """Return which section a probe is written as: the one of lm-eval where it names a task of it."""
    is_lm_eval = isinstance(probe, LmEvalProbe) or (isinstance(probe, dict) and "lm_eval" in probe)
    return "LmEvalProbe" if is_lm_eval else "Probe"


AnyProbe = Annotated[
    Annotated[Probe, Tag("Probe")] | Annotated[LmEvalProbe, Tag("LmEvalProbe")], Discriminator(_probe_kind)
]


class EvaluateConfig(Config):
    """How base and tuned are compared. Changing it re-evaluates the same run."""

    task: Metric = Metric()
    """The metric that chooses the checkpoint and decides the verdict."""
    general: list[AnyProbe] = []
    """Probes of what the base could do before: sources with a metric, or tasks of lm-eval."""

    @property
    def probes(self) -> dict[str, Probe]:
        """The general probes that are sources, by name."""
        return {probe.name: probe for probe in self.general if isinstance(probe, Probe)}

    @property
    def lm_eval_probes(self) -> list[LmEvalProbe]:
        """The general probes that are tasks of lm-eval."""
        return [probe for probe in self.general if isinstance(probe, LmEvalProbe)]

    format: FormatSetting | None = None
    """What every answer to the task must look like to its end: json, labels (those of the training answers), or
    {labels: [...]} or {pattern: ...}. Significantly fewer such answers than the base's are no ship."""
    max_forgetting: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of general items, graded right or wrong, that the base got right and the tuned model gets wrong;
    also the largest fall of a general probe's mean score between 0 and 1."""
    max_bits_per_byte_increase: Annotated[float, Field(ge=0)] = 0.10
    """Largest increase of bits per byte on a general probe graded by likelihood."""
