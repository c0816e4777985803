"""Let the base and the models in some folders answer the same tasks, for comparisons row by row.

One process, no Ray; one model in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ftray.data.tokenization import Tokenization
from ftray.evaluate.predict import Answers, Asked, predict_slots, predict_tasks
from ftray.evaluate.tasks import Task
from ftray.finish import digest_folder
from ftray.model.bank_peft import adapter_in_bank
from ftray.model.base import load_model, own_device
from ftray.model.forward import layout_for
from ftray.subject import Subject, load_tuned


def evaluate_folders(
    folders: Mapping[str, Path],
    tasks: Sequence[Task],
    *,
    model: str,
    precision: str,
    are_adapters: bool,
    tokenization: Tokenization,
) -> dict[str, Answers]:
    """Return the graded answers of every folder's model to every task, by the folder's name.

    `folders`: adapters of `model` in PEFT's form, or whole models. `precision`: what a frozen base is loaded in, as
    its trials trained on it; whole models are fp32. Each task is answered by rows, in the task's order.
    Raises InputError `adapter_mismatch` for an adapter of another base.
    """
    answers = {}
    for name, folder in folders.items():
        if are_adapters:
            subject = Subject(
                folder=folder, model=model, is_adapter=True, precision=precision, digest=digest_folder(folder)
            )
            answers[name] = _adapter_answers(load_tuned(subject), tasks, tokenization)
        else:
            answers[name] = predict_tasks(tasks, _asked(load_model(str(folder)), tokenization))
    return answers


def evaluate_base(
    tasks: Sequence[Task], *, model: str, precision: str, are_adapters: bool, tokenization: Tokenization
) -> Answers:
    """Return the graded answers of the untouched base to every task, loaded as `evaluate_folders` loads it."""
    base = load_model(model, precision=precision if are_adapters else "fp32")
    return predict_tasks(tasks, _asked(base, tokenization))


def _adapter_answers(model: Any, tasks: Sequence[Task], tokenization: Tokenization) -> Answers:
    asked = _asked(model, tokenization, of=model.get_base_model())
    answers: Answers = {}
    with adapter_in_bank(model) as bank:
        if bank is not None:
            (answers,) = predict_slots([task for task in tasks if task.lm_eval is None], asked, bank, (1,))
    # What lm-eval asks, and adapters that no bank holds, are answered through PEFT.
    return answers | predict_tasks([task for task in tasks if task.name not in answers], asked)


def _asked(model: nn.Module, tokenization: Tokenization, *, of: Any = None) -> Asked:
    return Asked(
        model=model.to(own_device()),
        tokenizer=tokenization.tokenizer,
        stop_token_ids=tokenization.stop_token_ids,
        layout=layout_for(model if of is None else of),
    )
