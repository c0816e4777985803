"""How a model answers, beside right and wrong."""

from __future__ import annotations

from typing import Any

import run_records

from ftray.artifacts import RunDirectory
from ftray.report.answers_view import AnswersView, answers_view
from ftray.report.drawings import validity_plot
from ftray.report.records import Records, read_records

LABELS = {"kind": "labels", "declared": False, "description": "one of 3 labels"}


def records(*tasks: dict[str, Any], **keys: Any) -> Records:
    return run_records.records(compared_on=run_records.evaluation(*tasks, **keys))


def seen(run: Records) -> AnswersView:
    view = answers_view(run)
    assert view is not None
    return view


def test_nothing_generated_is_nothing_to_say() -> None:
    assert answers_view(records(collapse=None)) is None
    assert answers_view(run_records.records(failure={"kind": "oom", "message": ""})) is None


def test_a_curve_that_falls_is_drawn_and_said() -> None:
    run = records(format=LABELS, prefix_validity=[1.0, 0.5, 0.25], prefix_validity_base=[0.1])
    assert "100.0% of the tuned answers" in seen(run).validity
    assert "25.0% still are after 3 tokens" in seen(run).validity
    assert seen(run).format == "No format is declared; the training answers have one in common: one of 3 labels."
    plot = validity_plot(run)
    assert plot is not None
    assert "tokens of the answer" in plot.svg
    assert [kind for kind, _ in plot.legend] == ["base", "tuned"]


def test_a_flat_curve_is_a_sentence() -> None:
    run = records(format={**LABELS, "declared": True}, prefix_validity=[1.0, 1.0], prefix_validity_base=[0.2, 0.1])
    assert validity_plot(run) is None
    assert seen(run).format == "The job declares what an answer is: one of 3 labels."
    assert "Every tuned answer keeps to it at every token (of the base's answers 10.0% do)" in seen(run).validity


def test_records_of_older_versions_have_no_format_and_no_ends() -> None:
    assert [row.what for row in seen(records()).rows] == ["Distinct answers", "Share of the most frequent answer"]
    assert validity_plot(records()) is None


def test_each_task_says_how_many_answers_ended() -> None:
    ended = {"ended": {"base": 0.25, "tuned": 1.0}}
    task = {**run_records.compared("task", "task", 0.0, 0.9), **ended}
    talk = {**run_records.compared("talk", "instruction", 0.5, 0.5), **ended}
    form = {**run_records.compared("format", "format", 0.1, 0.9), **ended}
    rows = seen(records(task, talk, form, memorised_share=0.125)).rows
    assert [(row.what, row.base, row.tuned) for row in rows] == [
        ("Answers that end by themselves", "25.0%", "100.0%"),
        ("Answers that end by themselves on talk", "25.0%", "100.0%"),
        ("Answers in the declared format to their end", "10.0%", "90.0%"),
        ("Distinct answers", "\N{EN DASH}", "5.0%"),
        ("Share of the most frequent answer", "\N{EN DASH}", "20.0%"),
        ("Answers that hold a whole training answer", "\N{EN DASH}", "12.5%"),
    ]


def test_a_real_run_says_it_all(real_run: RunDirectory) -> None:
    view = seen(read_records(real_run))
    said = [row.what for row in view.rows]
    assert said[0] == "Answers that end by themselves"
    assert "Answers in the declared format to their end" in said
    assert view.format.startswith("The job declares")
    assert view.validity
