"""What the rules of the diagnosis look at: a run's records, read once into curves, answers and checks.

A record that is not there gives an empty field, and the rules that need it stay silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from ftray.audit.labels import entropy, is_small_set, shown_label
from ftray.data.conversations import normalise as fold
from ftray.evaluate.graders import normalise
from ftray.ranges import FULL_LEARNING_RATE, LORA_LEARNING_RATE
from ftray.report.curve import Curve
from ftray.report.records import Records

USUAL_RATES = {"lora": LORA_LEARNING_RATE, "full": FULL_LEARNING_RATE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One evaluation on the validation rows."""

    step: int
    loss: float
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One held-out row of the task."""

    row: int
    expected: str
    base: str
    tuned: str
    correct: bool | None
    """Of the tuned model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A run, as far as its records tell."""

    job: dict[str, Any]
    loss: Curve | None
    """Training loss of every step, replay rows left out."""
    norms: Curve | None
    """Gradient norm of every step, before clipping."""
    warmup_steps: int
    evaluations: tuple[Evaluated, ...]
    spikes: tuple[dict[str, Any], ...]
    failure: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    selection: dict[str, Any] | None
    answers: tuple[Answer, ...]
    checks: dict[str, dict[str, Any]]
    labels_per_row: float | None
    """Learned tokens of a training row of the task, on average."""

    @property
    def method(self) -> str:
        return str(self.job["method"]["kind"])

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end: how much was learned cannot be said before."""
        return self.evaluation is not None

    @property
    def learning_rate(self) -> float:
        return float(self.job["train"]["learning_rate"])

    @property
    def usual_rates(self) -> tuple[float, float]:
        usual = USUAL_RATES[self.method]
        assert usual.low is not None
        assert usual.high is not None
        return usual.low, usual.high

    @property
    def task(self) -> dict[str, Any] | None:
        """The comparison that the verdict is about."""
        tasks = self.evaluation["tasks"] if self.evaluation else []
        return next((task for task in tasks if task["role"] == "task"), None)

    def of_role(self, *roles: str) -> list[dict[str, Any]]:
        """Return the comparisons of these roles."""
        tasks = self.evaluation["tasks"] if self.evaluation else []
        return [task for task in tasks if task["role"] in roles]

    @property
    def expected_counts(self) -> Counter[str]:
        """How often each answer is expected on the held-out rows."""
        return Counter(label_of(answer.expected) for answer in self.answers)

    @property
    def is_label_task(self) -> bool:
        """Whether the held-out answers are a small set of labels."""
        counts = self.expected_counts
        return len(counts) > 1 and is_small_set(counts)

    @property
    def train_counts(self) -> Counter[str] | None:
        """How often training shows each label; None where the gate did not count."""
        shown = self.checks.get("label_balance", {}).get("facts", {}).get("labels")
        if not shown:
            return None
        # The gate cuts long labels short: those that the held-out rows have, too, get their full names back.
        full = {label_of(shown_label(answer.expected)): label_of(answer.expected) for answer in self.answers}
        counts: Counter[str] = Counter()
        for name, count in shown.items():
            label = label_of(name)
            counts[full.get(label, label)] += int(count)
        return counts

    @property
    def label_floor(self) -> float | None:
        """Nats per learned token of a model that knows how often each label comes, and nothing of the prompt.

        None for tasks that do not choose among labels. The labels' entropy, spread over the tokens of an answer.
        """
        if not self.is_label_task or not self.labels_per_row:
            return None
        return entropy(self.train_counts or self.expected_counts) / self.labels_per_row


def normalised(text: str) -> str:
    """Return an answer as the default metric compares it."""
    return normalise(text, "casefold")


def label_of(text: str) -> str:
    """Return an answer as the gate counts labels: without case, punctuation and spacing."""
    return fold(text)


def gather(records: Records) -> Evidence:
    """Read a run's records into what the rules look at."""
    job = records.job["job"]
    result = records.result or {}
    data = (records.plan or {}).get("data", {})
    rows, labels = (data.get(f"task_{what}") or data.get(f"train_{what}") for what in ("rows", "labels"))
    task = records.task
    generated = task is not None and (records.evaluation or {}).get("collapse") is not None
    return Evidence(
        job=job,
        loss=_curve(records.per_step(("train/task_losses", "train/losses"), "train/loss")),
        norms=_curve(records.per_step(("train/grad_norms",), "train/grad_norm")),
        warmup_steps=int((records.plan or {}).get("schedule", {}).get("warmup_steps", 0)),
        evaluations=_evaluations(records.of_kind("evaluation")),
        spikes=_spikes(records.of_kind("event")),
        failure=result.get("failure"),
        evaluation=records.evaluation,
        selection=records.selection,
        answers=_answers(records.predictions, task["name"]) if task and generated else (),
        checks={check["name"]: check for check in (records.audit or {}).get("checks", [])},
        labels_per_row=labels / rows if rows and labels else None,
    )


def _curve(numbers: dict[int, float]) -> Curve | None:
    return Curve(steps=tuple(numbers), values=tuple(numbers.values())) if numbers else None


def _evaluations(lines: Sequence[dict[str, Any]]) -> tuple[Evaluated, ...]:
    return tuple(
        Evaluated(
            step=int(line["step"]),
            loss=line["val/loss"],
            value=line.get("val/accuracy"),
        )
        for line in lines
        if line.get("val/loss") is not None
    )


def _spikes(events: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return the spikes by step; of a step that several attempts trained, the last attempt's."""
    spikes = {int(event["step"]): event for event in events if event.get("event") == "loss_spike"}
    return tuple(spikes[step] for step in sorted(spikes))


def _answers(predictions: Sequence[dict[str, Any]], task: str) -> tuple[Answer, ...]:
    return tuple(
        Answer(
            row=int(line["row"]),
            expected=line["expected"],
            base=cast("str", line["base"] or ""),
            tuned=cast("str", line["tuned"] or ""),
            correct=line["tuned_correct"],
        )
        for line in predictions
        if line["task"] == task
    )
