"""General probes from EleutherAI's lm-eval, an optional extra: its tasks hold the rows, ask the model and grade.

Inside this file `import lm_eval` is their package, for imports are absolute. Every task is rehearsed before anything is
trained, with lm-eval's own dummy model: that tells what will be asked, and which of its metrics are scores of rows.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version

from ftray.errors import InputError, RunError, nearest
from ftray.evaluate.config import TASK_FILES, LmEvalProbe, Metric
from ftray.evaluate.lm_eval_rows import Sample, answer_of, has_numbers, prompt_of, score_metrics, task_row
from ftray.evaluate.mode import evaluating
from ftray.evaluate.tasks import Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

OLDEST = "0.4.13"
"""The first version of lm-eval with the interface used here."""
PREFIX = "lm_eval:"
"""What evaluation.json writes before the name of a metric of lm-eval."""
SEED = 1234
"""Chooses few-shot examples and sampled answers; lm-eval's own default."""
BATCH_ROWS = 8
"""Rows of a forward pass: lm-eval counts rows, not tokens."""
ANSWER_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Settings of a task that say how long an answer may be, the strongest first."""
DEFAULT_ANSWER_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LmEvalTask:
    """A task of lm-eval, with its rows loaded."""

    task: Any
    """An `lm_eval.api.task.Task`."""
    spec: str
    """Its name or its file, as the job says."""
    metric: str
    limit: int | None
    max_length: int
    """Tokens that the model can read."""
    num_cut: int
    """Rows that are longer: lm-eval cuts their beginnings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LmEvalAnswer:
    """What a model answered to one row, and lm-eval's grade of it."""

    text: str
    """The generated or chosen answer; empty where lm-eval does not tell."""
    score: float
    correct: bool | None


def require_lm_eval(probes: Sequence[LmEvalProbe], *, stage: int | None = None) -> None:
    """Raise InputError `missing_extra` without a recent lm-eval, `unsupported` where ZeRO-3 shares out the weights."""
    if not probes:
        return
    if stage == 3:
        raise InputError(
            "ZeRO stage 3 shares the weights out over all workers, and lm-eval asks a model in one process",
            kind="unsupported",
            given={"stage": stage, "lm_eval": probes[0].lm_eval},
            allowed=["stage: 0", "stage: 1", "stage: 2"],
            hint="Lower compute.deepspeed.stage, or measure the ability with rows of its own: path and metric.",
            path="compute.deepspeed.stage",
        )
    installed = importlib.metadata.version("lm_eval") if importlib.util.find_spec("lm_eval") else None
    if installed is None or Version(installed) < Version(OLDEST):
        raise InputError(
            f"the general probe '{probes[0].name}' is a task of lm-eval, "
            + ("which is not installed" if installed is None else f"whose version here is {installed}"),
            kind="missing_extra",
            given=probes[0].lm_eval,
            allowed=f"lm-eval {OLDEST} or newer",
            hint="Install it: pip install 'ftray[lm-eval]', or give the probe rows of its own: path and metric.",
            path=f"evaluate.general.{probes[0].name}.lm_eval",
        )


def build_lm_eval_task(probe: LmEvalProbe, *, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Task:
    """Load and rehearse the task that a probe names.

    Raises InputError. Kinds: missing_extra, missing_file, unknown_task, bad_task, unknown_metric, metric_mismatch.
    """
    require_lm_eval([probe])
    words = _Words(probe)
    task = _load(probe, words)
    from lm_eval.models.dummy import DummyLM

    with words.of_failures("rehearsed"):
        samples = _samples(task, DummyLM(), probe.limit)
    name = _choose_metric(probe, task, samples, words)
    for sample in samples:
        _score(sample[name], name, words)
    num_cut = _count_too_long(task, samples, tokenizer, max_length, words)
    return Task(
        name=probe.name,
        role="general",
        metric=Metric(metric=f"{PREFIX}{name}"),
        rows=tuple(task_row(sample, name=probe.name, delimiter=_delimiter(task)) for sample in samples),
        lm_eval=LmEvalTask(
            task=task, spec=probe.lm_eval, metric=name, limit=probe.limit, max_length=max_length, num_cut=num_cut
        ),
    )


def spell_lm_eval(task: Task) -> str:
    """Return what is to be known of such a probe beforehand: what it asks, and that nobody audits it."""
    assert task.lm_eval is not None
    cut = f"; {task.lm_eval.num_cut} are longer than the model reads, and lm-eval cuts their beginnings"
    return (
        f"the probe '{task.name}' asks {len(task.rows)} rows of lm-eval's {task.lm_eval.spec} ({task.metric.metric})"
        f"{cut if task.lm_eval.num_cut else ''}. The dataset gate does not see them: whether they are trained on is "
        "not checked"
    )


def ask_lm_eval(task: Task, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[LmEvalAnswer]:
    """Let lm-eval ask the model the rows of `task`, in their order; likelihoods in float32 whatever the weights are.

    Raises RunError: `data` when a row cannot be asked, or is another than it was in the rehearsal; `nonfinite` when the
    model's likelihoods are not numbers.
    """
    from lm_eval.models.huggingface import HFLM

    known = task.lm_eval
    assert known is not None
    words = _Words(LmEvalProbe(name=task.name, lm_eval=known.spec, metric=known.metric, limit=known.limit))
    torch.manual_seed(SEED)
    with evaluating(model), words.of_failures("asked", has_started=True):
        with _without_remarks("lm_eval.models.huggingface"):
            settings: dict[str, Any] = {"max_length": known.max_length, "softmax_dtype": "float32"}
            asked = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_ROWS, **settings)
        samples = _samples(known.task, asked, known.limit)
    if [(row.row, row.prompt) for row in task.rows] != [(sample["doc_id"], prompt_of(sample)) for sample in samples]:
        raise RunError(
            f"the rows of lm-eval's {known.spec} are not those that it had before the training",
            kind="data",
            hint="A task that draws its rows or prompts anew each time cannot compare two models: fix its seed.",
        )
    for sample in samples:
        if not has_numbers(sample):
            raise RunError(
                f"the model's likelihoods in row {sample['doc_id']} of '{task.name}' are not numbers: its weights or "
                "activations overflowed",
                kind="nonfinite",
                given={"dataset": task.name, "row": sample["doc_id"]},
                hint="Lower the learning rate, or use bf16 or fp32 instead of fp16.",
            )
    scores = [_score(sample[known.metric], known.metric, words) for sample in samples]
    is_right_or_wrong = all(score in (0.0, 1.0) for score in scores)
    return [
        LmEvalAnswer(
            text=answer_of(sample, metric=known.metric, delimiter=_delimiter(known.task)),
            score=score,
            correct=bool(score) if is_right_or_wrong else None,
        )
        for sample, score in zip(samples, scores, strict=True)
    ]


def _load(probe: LmEvalProbe, words: _Words) -> Any:
    """Return the task with its rows, from the hub, from the cache or from files."""
    from lm_eval.tasks import TaskManager

    if probe.lm_eval.endswith(TASK_FILES):
        file = Path(probe.lm_eval)
        if not file.is_file():
            raise words.error("there is no such file", "missing_file", "Check the path: it is relative to the job.")
        # A task's data_files are relative to the working directory, which is another one in a worker.
        with contextlib.chdir(file.parent), words.of_failures("loaded"):
            found = TaskManager(include_defaults=False).load([str(file)])
    else:
        _require_single_task(probe.lm_eval, words)
        with words.of_failures("loaded"):
            found = _known_tasks().load([probe.lm_eval])
    if len(found["tasks"]) != 1 or found.get("groups"):
        raise words.group(sorted(found["tasks"]))
    (task,) = found["tasks"].values()
    for setting in ("doc_to_image", "doc_to_audio", "unsafe_code"):
        if task.get_config(setting):
            why = "it runs code that the model writes" if setting == "unsafe_code" else "it is not about text alone"
            raise words.error(f"{why} ({setting})", "bad_task", "Choose another task.")
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    return task


@functools.cache
def _known_tasks() -> Any:
    """Return lm-eval's index of its own tasks: some seconds to build."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _require_single_task(name: str, words: _Words) -> None:
    known = _known_tasks()
    if name in known.all_subtasks:
        return
    if name in known.all_tasks:
        raise words.group([])
    close = nearest(name, known.all_subtasks)
    raise words.error(
        "lm-eval knows no such task",
        "unknown_task",
        (f"Did you mean '{close}'? " if close else "") + "`lm-eval ls tasks` lists them; a file of your own ends with "
        f"{TASK_FILES[0]}.",
    )


def _samples(task: Any, model: Any, limit: int | None) -> list[Sample]:
    """Return lm-eval's record of every row, by the task's first filter, in the task's order."""
    import lm_eval

    task.set_fewshot_seed(seed=SEED)
    # Its progress bars are for its own command line.
    with contextlib.redirect_stderr(io.StringIO()):
        results = lm_eval.evaluate(
            lm=model, task_dict={"tasks": {task.task_name: task}}, limit=limit, bootstrap_iters=0, log_samples=True
        )
    samples: list[Sample] = results["samples"][task.task_name]
    first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    return sorted(first, key=lambda sample: int(sample["doc_id"]))


def _choose_metric(probe: LmEvalProbe, task: Any, samples: Sequence[Sample], words: _Words) -> str:
    """Return the metric that is asked for, or the first whose value is the mean of its rows' scores."""
    from lm_eval.api.metrics import mean

    ways = task.aggregation()
    given = [name for name in ways if name in samples[0]]
    usable = score_metrics(
        samples,
        higher_is_better=task.higher_is_better(),
        is_mean={name: ways[name] is mean for name in given},
    )
    if probe.metric is None and usable:
        return usable[0]
    if probe.metric is not None and probe.metric in usable:
        return probe.metric
    if probe.metric is not None and probe.metric not in given:
        what, kind = f"it has no metric '{probe.metric}'", "unknown_metric"
    else:
        what = f"no mean of one score between 0 and 1 for each row: {probe.metric or ', '.join(given)}"
        kind = "metric_mismatch"
    raise words.error(
        what,
        kind,
        f"{'Name one of the allowed metrics' if usable else 'Choose another task'}. To measure likelihoods, give the "
        "probe texts of its own: path, and metric: bits_per_byte.",
        allowed=usable,
        key="metric",
    )


def _score(value: Any, metric: str, words: _Words) -> float:
    score = float(value)
    if not 0 <= score <= 1:
        raise words.error(
            f"its metric '{metric}' gave a row the score {score:g}, which is not between 0 and 1",
            "metric_mismatch",
            "Name another metric of the task, or choose another task.",
            key="metric",
        )
    return score


def _delimiter(task: Any) -> str:
    """Return what lm-eval writes between a question and an answer."""
    return task.get_config("target_delimiter") or ""


def _count_too_long(task: Any, samples: Sequence[Sample], tokenizer: Any, max_length: int, words: _Words) -> int:
    """Return how many rows the model cannot read whole. Raises InputError where an answer alone is too long."""
    generation = task.get_config("generation_kwargs") or {}
    answer = 0
    if task.get_config("output_type") == "generate_until":
        answer = int(next((generation[key] for key in ANSWER_TOKENS if key in generation), DEFAULT_ANSWER_TOKENS))
    if answer >= max_length:
        raise words.error(
            f"its answers have up to {answer} tokens, and the model reads {max_length} with the question",
            "bad_task",
            "Set generation_kwargs.max_gen_toks in a task file of your own, or choose another task.",
        )
    # Of likelihoods the last token is never read, only predicted.
    room = max_length - answer if answer else max_length + 1
    texts = [["".join(part for part in pair if isinstance(part, str)) for pair in one["arguments"]] for one in samples]
    return sum(any(len(tokenizer(text)["input_ids"]) > room for text in row) for row in texts)


@contextlib.contextmanager
def _without_remarks(name: str) -> Iterator[None]:
    """Keep what a logger remarks about a model that is handed over ready-made to itself."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True, slots=True)
class _Words:
    """Words the errors of one probe."""

    probe: LmEvalProbe

    def error(self, message: str, kind: str, hint: str, *, allowed: Any = None, key: str = "lm_eval") -> InputError:
        return InputError(
            f"the lm-eval task '{self.probe.lm_eval}' of the general probe '{self.probe.name}': {message}",
            kind=kind,
            given=self.probe.metric if key == "metric" else self.probe.lm_eval,
            allowed=allowed,
            hint=hint,
            path=f"evaluate.general.{self.probe.name}.{key}",
        )

    def group(self, members: Sequence[str]) -> InputError:
        of = f" ({', '.join(members[:5])}, ...)" if members else ""
        return self.error(
            f"it is a group of tasks{of}, and a probe is one task",
            "unknown_task",
            "Name each of its tasks in a probe of its own; `lm-eval ls tasks` lists them.",
        )

    @contextlib.contextmanager
    def of_failures(self, what: str, *, has_started: bool = False) -> Iterator[None]:
        """Word what a task file, the functions it names, and the download of its rows raise."""
        from datasets.exceptions import DatasetsError
        from jinja2 import TemplateError
        from yaml import YAMLError

        theirs = (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ImportError)
        try:
            yield
        except (*theirs, DatasetsError, TemplateError, YAMLError) as error:
            first = (str(error).splitlines() or [""])[0]
            failed = self.error(
                f"it cannot be {what}: {type(error).__name__}: {first}",
                "bad_task",
                "Correct the task file: it is one task, no group, and files it names lie relative to it."
                if self.probe.lm_eval.endswith(TASK_FILES)
                else "Its rows come from the Hugging Face hub or its cache: run `ftray check` once where the hub can "
                "be reached; or give a task file of your own (lm_eval: task.yaml).",
            )
            if not has_started:
                raise failed from error
            raise RunError(failed.message, kind="data", given=failed.given, hint=failed.hint) from error
