"""Whether fine-tuning is worth it at all: `ftray check --decide`.

Compares what the base reaches when it is only asked well (zero-shot, few-shot) with what a smoke run reaches on the
validation rows, and sets the gain against the accelerator hours of the whole run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ftray.artifacts import RunDirectory
from ftray.audit.diversity import SMALLEST_TRAIN
from ftray.data.config import sources_of
from ftray.data.conversations import Example
from ftray.data.readers import read_source
from ftray.data.tokenization import Dropped, Tokenization
from ftray.errors import InputError, RunError
from ftray.evaluate.config import LOWER_IS_BETTER, Metric
from ftray.evaluate.metrics import estimate
from ftray.evaluate.predict import Asked, predict_task
from ftray.evaluate.tasks import Task, build_task
from ftray.finetune import Display, finetune
from ftray.job import LoadedJob
from ftray.model.base import load_model, own_device
from ftray.model.forward import layout_for
from ftray.preflight import Prepared
from ftray.tracking import current_lines
from ftray.work import prepare_data

DEFAULT_TAU = 0.01
"""Accuracy that an accelerator hour must bring: a point an hour."""
MOST_ROWS = 100
SHOTS = 8
TIMED_REQUESTS = 5
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What one way of asking reaches."""

    value: float
    low: float
    high: float
    prompt_tokens: float
    """Mean length of a prompt."""
    seconds: float
    """Median time of one request by itself, here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the decision rests on."""

    metric: str
    rows: int
    shots: int
    zero_shot: Asking
    few_shot: Asking
    smoke_value: float
    """The smoke run's selected checkpoint on all validation rows."""
    train_rows: int
    accelerator_hours: float
    """Of the whole run at the smoke run's speed, evaluations included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Fine-tune, or prompt instead, and why."""

    recommend: str  # fine_tune | prompt
    gain: float
    ratio: float | None
    """Gain an accelerator hour; None where the run costs nothing that can be measured."""
    tau: float
    prompt_tokens_saved: float
    """A request: a tuned model is asked without examples."""
    seconds_saved: float
    reasons: tuple[str, ...]


def decide(measured: Measured, *, tau: float) -> Decision:
    """Return whether the gain of fine-tuning over prompting, for each accelerator hour, is beyond `tau`.

    A gain inside the confidence interval of the better way to ask is none.
    """
    by_shots = measured.few_shot.value > measured.zero_shot.value
    best = measured.few_shot if by_shots else measured.zero_shot
    gain = measured.smoke_value - best.value
    is_clear = measured.smoke_value > best.high
    hours = measured.accelerator_hours
    ratio = gain / hours if hours > 0 else None
    how = f"with {measured.shots} examples in the prompt" if by_shots else "asked as it is"
    reasons = [
        f"The base {how} reaches {best.value:.1%} {measured.metric} on {measured.rows} validation rows; the smoke run, "
        f"on a tenth of the training rows, reaches {measured.smoke_value:.1%}."
    ]
    if measured.train_rows < SMALLEST_TRAIN:
        reasons.append(
            f"{measured.train_rows} training rows are fewer than {SMALLEST_TRAIN}: put the best of them in the prompt, "
            "and collect more."
        )
    if gain <= 0:
        reasons.append("Fine-tuning brought nothing over prompting so far.")
    elif not is_clear:
        reasons.append(
            f"A gain of {gain:.1%} is within noise: asking on {measured.rows} rows may as well reach {best.high:.1%}. "
            "More validation rows would tell."
        )
    if gain > 0 and ratio is not None:
        side = "more" if ratio > tau else "not more"
        reasons.append(
            f"{gain:.1%} for about {hours:.3g} accelerator hours is {ratio:.3g} an hour, {side} than tau = {tau:g}."
        )
    worth = gain > 0 and is_clear and (ratio is None or ratio > tau) and measured.train_rows >= SMALLEST_TRAIN
    return Decision(
        recommend="fine_tune" if worth else "prompt",
        gain=gain,
        ratio=ratio,
        tau=tau,
        prompt_tokens_saved=measured.few_shot.prompt_tokens - measured.zero_shot.prompt_tokens,
        seconds_saved=measured.few_shot.seconds - measured.zero_shot.seconds,
        reasons=tuple(reasons),
    )


def decision_record(measured: Measured, decision: Decision) -> dict[str, Any]:
    """Return check.json's `decision`."""
    return {**asdict(measured), **asdict(decision)}


def measure(
    loaded: LoadedJob,
    checked: dict[str, Any],
    *,
    display: Display,
    on_plan: Callable[[Prepared], None],
    say: Say,
) -> Measured:
    """Ask the base with and without examples, and run (or find) the smoke run. `checked`: the job's check.json.

    Raises InputError for a metric without a scale from 0 to 1, RunError when the smoke run fails.
    """
    metric = loaded.job.evaluate.task
    if metric.metric in LOWER_IS_BETTER:
        raise InputError(
            f"--decide weighs accuracy against cost, and {metric.metric!r} has no scale from 0 to 1",
            kind="metric_mismatch",
            given=metric.metric,
            allowed="a metric that grades answers, such as exact_match or token_f1",
            hint="Set evaluate.task.metric, or judge by hand from `ftray train --smoke`.",
            path="evaluate.task.metric",
        )
    datasets = prepare_data(loaded, audits=False, may_stand_in=True)
    rows = sorted(datasets.validation, key=lambda example: example.digest)[:MOST_ROWS]
    shots = choose_shots(training_rows(loaded), apart_from=rows, count=SHOTS)
    rows_with_shots, used = with_shots(rows, shots, datasets.tokenization)
    askings = _ask_base(
        loaded.job.model,
        metric,
        {"as it is": rows, f"with {used} examples in the prompt": rows_with_shots},
        datasets.tokenization,
        say,
    )
    if torch.cuda.is_available():
        # The smoke run loads a model of its own, and there may be no room for two.
        torch.cuda.empty_cache()
    say("The smoke run: a tenth of the training rows through the whole path")
    smoke = finetune(replace(loaded, smoke=True), display=display, on_plan=on_plan, say=say)
    if smoke["selected"] is None:
        failure = smoke["failure"] or {"kind": "unknown", "message": smoke["status"]}
        raise RunError(f"the smoke run failed: {failure['message']}", kind=failure["kind"], given=smoke["path"])
    lines = current_lines(RunDirectory(Path(smoke["path"])).metrics)
    evaluations = sum(line["kind"] == "evaluation" for line in lines)
    return Measured(
        metric=metric.metric,
        rows=len(rows),
        shots=used,
        zero_shot=askings[0],
        few_shot=askings[1],
        smoke_value=smoke["selected"]["value"],
        train_rows=checked["rows"]["train"],
        accelerator_hours=whole_hours(checked, smoke, smoke_evaluations=evaluations),
    )


def _ask_base(
    name: str, metric: Metric, ways: dict[str, list[Example]], tokenization: Tokenization, say: Say
) -> list[Asking]:
    """Return what the base answers each way. The base is gone when this returns."""
    model: Any = load_model(name)
    model.to(own_device()).eval()
    asked = Asked(
        model=model,
        tokenizer=tokenization.tokenizer,
        stop_token_ids=tokenization.stop_token_ids,
        layout=layout_for(model),
    )
    askings = []
    for what, rows in ways.items():
        say(f"The base answers {len(rows)} validation rows {what}")
        task = build_task(rows, name="task", role="task", metric=metric, tokenization=tokenization)
        askings.append(ask(task, asked))
    return askings


def whole_hours(checked: dict[str, Any], smoke: dict[str, Any], *, smoke_evaluations: int) -> float:
    """Return the accelerator hours of the whole run at the smoke run's speed; of CPU workers where there is no GPU.

    `checked`: the whole run's check.json. Both runs score the same validation rows, the whole run more often. The smoke
    run's final comparison with the base is counted among its evaluations, so that the hours are rather too many.
    """
    plan = checked["plan"]
    seconds = smoke["seconds"]["evaluate"] * checked["steps"]["evaluations"] / max(1, smoke_evaluations)
    if smoke["tokens_per_second"] > 0:
        seconds += checked["tokens"]["all_steps"] / smoke["tokens_per_second"]
    accelerators = max(1, plan["workers"]) * (plan["gpus_per_worker"] or 1)
    return float(seconds * accelerators / 3600)


def training_rows(loaded: LoadedJob) -> list[Example]:
    """Return the rows of the job's training sources, conversations only."""
    sources = sources_of(loaded.job.data.train)
    rows = [row for source in sources for row in read_source(source, name="train", base=loaded.base)]
    return [row for row in rows if row.text is None and not row.is_blank]


def choose_shots(rows: Sequence[Example], *, apart_from: Sequence[Example], count: int) -> list[Example]:
    """Return examples for a prompt: as many different answers as there are, the same ones every time."""
    taken = {example.normalised_prompt for example in apart_from}
    ranked = sorted((row for row in rows if row.normalised_prompt not in taken), key=lambda row: row.digest)
    turns: dict[str, int] = {}
    order = []
    for row in ranked:
        turns[row.normalised_answer] = turns.get(row.normalised_answer, 0) + 1
        order.append(turns[row.normalised_answer])
    chosen = sorted(range(len(ranked)), key=lambda index: (order[index], index))[:count]
    return [ranked[index] for index in chosen]


def with_shots(
    rows: Sequence[Example], shots: Sequence[Example], tokenization: Tokenization
) -> tuple[list[Example], int]:
    """Return the rows with examples before their question, and how many: as many as fit the model in every row."""
    for used in range(len(shots), -1, -1):
        turns = tuple(turn for shot in shots[:used] for turn in shot.messages if turn.role != "system")
        asked = [_after(turns, row) for row in rows]
        if not any(isinstance(one, Dropped) for one in tokenization.encode_batch(asked)):
            return asked, used
    return list(rows), 0


def _after(turns: tuple[Any, ...], row: Example) -> Example:
    """Return the row with turns between its system message and its question."""
    lead = sum(turn.role == "system" for turn in row.messages[:1])
    return replace(row, messages=(*row.messages[:lead], *turns, *row.messages[lead:]))


def ask(task: Task, asked: Asked) -> Asking:
    """Return what the model answers to a task, how long its prompts are, and how long one request takes."""
    value = estimate(task.metric, predict_task(task, asked))
    seconds = []
    for row in task.rows[:TIMED_REQUESTS]:
        began = time.perf_counter()
        predict_task(replace(task, rows=(row,)), asked)
        seconds.append(time.perf_counter() - began)
    return Asking(
        value=value.value,
        low=value.low,
        high=value.high,
        prompt_tokens=statistics.fmean(row.example.prompt_length for row in task.rows),
        seconds=statistics.median(seconds),
    )
