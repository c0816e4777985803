"""Examples and graded rows that the tests of this folder write by hand."""

from __future__ import annotations

from collections.abc import Sequence

from ftray.data.conversations import Example, Message
from ftray.data.tokenization import Tokenization
from ftray.evaluate.config import Metric
from ftray.evaluate.graders import grade
from ftray.evaluate.predict import RowPrediction
from ftray.evaluate.tasks import Role, Task, build_task


def chat(prompt: str, answer: str, *, row: int = 0) -> Example:
    """Return one question with its answer."""
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(messages=messages, dataset="test", row=row, fields={"text": prompt}, columns={})


def plain(text: str, *, row: int = 0) -> Example:
    """Return one text."""
    return Example(messages=(), text=text, dataset="probe", row=row, fields={}, columns={})


def answers(expected: Sequence[str], given: Sequence[str], metric: Metric) -> list[RowPrediction]:
    """Return what predict_task returns for these answers."""
    graded = [grade(metric, answer, wanted) for answer, wanted in zip(given, expected, strict=True)]
    return [
        RowPrediction(
            task="task", row=row, prompt=f"question {row}", expected=expected[row], prediction=given[row],
            score=one.score, correct=one.correct, nll=None, num_labels=len(expected[row]) + 1,
            num_bytes=len(expected[row]),
        )
        for row, one in enumerate(graded)
    ]  # fmt: skip


def likelihoods(nlls: Sequence[float], *, num_labels: int = 10, num_bytes: int = 40) -> list[RowPrediction]:
    """Return what predict_task returns for texts with these losses."""
    return [
        RowPrediction(
            task="probe", row=row, prompt="", expected="text", prediction="", score=nll / num_labels, correct=None,
            nll=nll, num_labels=num_labels, num_bytes=num_bytes,
        )
        for row, nll in enumerate(nlls)
    ]  # fmt: skip


def task_of(
    tokenization: Tokenization, expected: Sequence[str], metric: Metric, *, role: Role = "task", name: str = "task"
) -> Task:
    """Return a task with these expected answers."""
    examples = [chat(f"question {row}", answer, row=row) for row, answer in enumerate(expected)]
    return build_task(examples, name=name, role=role, metric=metric, tokenization=tokenization)
