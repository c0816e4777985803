"""What can be read from lm-eval's record of a row (a sample, it says): the question, the answers, the scores.

A sample holds the requests that were made (`arguments`: context and continuation, or context and settings), the
responses behind the task's filter, and each metric's value. Nothing here needs lm-eval to be installed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from ftray.data.tokenization import TokenizedExample
from ftray.evaluate.tasks import TaskRow

Sample = Mapping[str, Any]


def score_metrics(
    samples: Sequence[Sample], *, higher_is_better: Mapping[str, bool | None], is_mean: Mapping[str, bool]
) -> list[str]:
    """Return the metrics whose value is the mean of one score for each row, in the task's order.

    Others (F1, BLEU, perplexity) are functions of all rows together, which pairs of rows cannot be compared by.
    """
    return [
        name
        for name, mean in is_mean.items()
        if mean
        and higher_is_better.get(name)
        and name.isidentifier()
        and all(isinstance(sample.get(name), Real | np.bool_) for sample in samples)
    ]


def task_row(sample: Sample, *, name: str, delimiter: str) -> TaskRow:
    """Return the row as a task's: nothing of it is tokenized, for lm-eval does that."""
    empty = TokenizedExample(
        tokens=np.zeros(0, dtype=np.int32),
        is_label=np.zeros(0, dtype=np.bool_),
        prompt_length=0,
        dataset=name,
        row=int(sample["doc_id"]),
        digest=str(sample["doc_hash"]),
    )
    return TaskRow(
        row=int(sample["doc_id"]),
        dataset=name,
        prompt=prompt_of(sample),
        prompt_tokens=(),
        expected=expected_of(sample, delimiter=delimiter),
        example=empty,
        num_bytes=0,
    )


def prompt_of(sample: Sample) -> str:
    """Return the question, with the few-shot examples before it."""
    return str(sample["arguments"][0][0])


def has_numbers(sample: Sample) -> bool:
    """Return whether no likelihood is NaN: the largest of such is whichever stands first."""
    pairs = [answer for answer in sample["filtered_resps"] if isinstance(answer, tuple)]
    return not any(math.isnan(likelihood) for likelihood, _ in pairs)


def options_of(sample: Sample, *, delimiter: str) -> list[str]:
    """Return the answers to choose from; none where an answer is generated, or the options are questions."""
    answers = [pair[1] for pair in sample["arguments"] if len(pair) > 1]
    if not all(isinstance(answer, str) for answer in answers) or len(set(answers)) < 2:
        return []
    return [answer.removeprefix(delimiter) for answer in answers]


def expected_of(sample: Sample, *, delimiter: str) -> str:
    """Return the expected answer; of several the list."""
    options, target = options_of(sample, delimiter=delimiter), sample["target"]
    wanted = [
        options[one] if isinstance(one, int) and 0 <= one < len(options) else str(one)
        for one in (target if isinstance(target, list) else [target])
    ]
    return " | ".join(wanted)


def answer_of(sample: Sample, *, metric: str, delimiter: str) -> str:
    """Return what was generated, or chosen by the metric's own rule; empty where that is not known."""
    answers = sample["filtered_resps"]
    if isinstance(answers[0], str):
        return str(answers[0])
    options = options_of(sample, delimiter=delimiter)
    lengths = {
        "acc": [1] * len(options),
        "acc_norm": [len(option) for option in options],
        "acc_bytes": [len(option.encode()) for option in options],
    }
    if metric not in lengths or len(options) != len(answers):
        return ""
    per_unit = [likelihood / max(1, length) for (likelihood, _), length in zip(answers, lengths[metric], strict=True)]
    return options[per_unit.index(max(per_unit))]
