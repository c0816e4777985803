"""The end of a campaign: what the trials forgot, and what the finalists, the default and the base do on the test rows.

The test rows are asked once: the answers are written before they are looked at, and read again by a second attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ftray.artifacts import read_json, write_json
from ftray.campaign import SweepDirectory, TrialResult
from ftray.evaluate.compare import compare
from ftray.evaluate.config import EvaluateConfig
from ftray.evaluate.expected_format import Kept
from ftray.evaluate.forgetting import measure_forgetting
from ftray.evaluate.predict import Answers, RowPrediction
from ftray.evaluate.tasks import Task, TaskRow
from ftray.finish import FinalTasks
from ftray.sweep.choice import Choice
from ftray.sweep.comparison import Comparison, Split, compare_finalists, scores_of
from ftray.sweep.mode import BASE, Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Finals:
    """What the last look at a campaign's trials gave."""

    comparison: Comparison
    answers: Mapping[str, list[RowPrediction]]
    """By trial_id, and the base's."""
    test_reads: int
    """How often the test rows have been asked: 1, more where the job was given other finalists since, 0 without any."""


def general_tasks(final: FinalTasks) -> list[Task]:
    """Return the general probes that trials are asked; those of lm-eval are left to `ftray evaluate`."""
    return [task for task in final.tasks[1:] if task.lm_eval is None]


def ask_general(mode: Mode, results: Sequence[TrialResult], final: FinalTasks) -> dict[str, Answers]:
    """Return what each trial with an adapter, and the base, answer to the general probes; {} without any."""
    folders = _folders(results)
    return dict(mode.answer(folders, ["general"], with_base=True)) if folders and general_tasks(final) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class AllForgetting:
    """What each trial forgot, in one unit."""

    by_trial: dict[str, float]
    unit: Literal["share", "bits_per_byte"] | None
    """`share`: of the general items that got worse, as evaluation.json's score. `bits_per_byte`: by how much the
    general texts cost more, where there is nothing else: nearly all of them get a little worse. None without probes."""


def measure_all_forgetting(answers: Mapping[str, Answers], final: FinalTasks, config: EvaluateConfig) -> AllForgetting:
    """Return what each trial forgot, from what `ask_general` gave."""
    tasks = general_tasks(final)
    compared = {
        name: [compare(task, answers[BASE][task.name], found[task.name]) for task in tasks]
        for name, found in answers.items()
        if name != BASE
    }
    if not compared:
        return AllForgetting(by_trial={}, unit=None)
    if all(one.grading == "likelihood" for probes in compared.values() for one in probes):
        means = {name: sum(one.harm for one in probes) / len(probes) for name, probes in compared.items()}
        return AllForgetting(by_trial=means, unit="bits_per_byte")
    shares = {}
    for name, probes in compared.items():
        forgetting = measure_forgetting(probes, config)
        assert forgetting is not None, "there are probes"
        shares[name] = forgetting.items.share.value
    return AllForgetting(by_trial=shares, unit="share")


def compare_on_held_out_rows(
    mode: Mode, choice: Choice, directory: SweepDirectory, *, task: Task, split: Split, higher_is_better: bool
) -> Finals:
    """Ask the finalists, the default and the base on the test rows, or on the validation rows where there are none.

    `task`: these rows.
    """
    asked = {result.trial_id: result for result in (*choice.finalists, *([choice.default] if choice.default else []))}
    reads = read_json(directory.finals).get("reads", 1) if directory.finals.exists() else 0
    known = _read_answers(directory.finals, task=task, split=split, names=[BASE, *asked])
    if known is None:
        answers = mode.answer(_folders(list(asked.values())), ["held_out"], with_base=True)
        known = {name: _only(found) for name, found in answers.items()}
        reads += 1
        _write_answers(directory.finals, known, split=split, reads=reads)
    scores = {trial_id: scores_of(task.metric, known[trial_id]) for trial_id in asked}
    base = scores_of(task.metric, known[BASE])
    comparison = compare_finalists(choice, scores, base, higher_is_better=higher_is_better, split=split)
    return Finals(comparison=comparison, answers=known, test_reads=reads if split == "test" else 0)


def _folders(results: Sequence[TrialResult]) -> dict[str, Path]:
    return {result.trial_id: Path(result.adapter) for result in results if result.adapter is not None}


def _only(answers: Answers) -> list[RowPrediction]:
    (rows,) = answers.values()
    return rows


def _write_answers(path: Path, answers: Mapping[str, list[RowPrediction]], *, split: str, reads: int) -> None:
    rows = {name: [_brief(row) for row in found] for name, found in answers.items()}
    write_json(path, {"schema": "ftray/finals/1", "split": split, "reads": reads, "answers": rows})


def _brief(row: RowPrediction) -> dict[str, Any]:
    """Return a row without what its task says anyway."""
    return {key: value for key, value in asdict(row).items() if key not in ("task", "prompt", "expected")}


def _read_answers(path: Path, *, task: Task, split: str, names: Sequence[str]) -> dict[str, list[RowPrediction]] | None:
    """Return the answers of an earlier attempt, if it asked the same trials the same rows."""
    if not path.exists():
        return None
    record = read_json(path)
    if record["split"] != split or set(record["answers"]) != set(names):
        return None
    return {
        name: [_row(task, asked, row) for asked, row in zip(task.rows, rows, strict=True)]
        for name, rows in record["answers"].items()
    }


def _row(task: Task, asked: TaskRow, row: dict[str, Any]) -> RowPrediction:
    assert row["row"] == asked.row, "the rows are the task's, in its order"
    kept = Kept(**row["kept"]) if row["kept"] else None
    return RowPrediction(task=task.name, prompt=asked.prompt, expected=asked.expected, **{**row, "kept": kept})
