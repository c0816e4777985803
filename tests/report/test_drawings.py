"""Which plots a run gets, and what their lines are made of."""

from __future__ import annotations

from dataclasses import replace

import run_records

from ftray.report.drawings import MOST_POINTS, comparison_plots, training_plots
from ftray.report.records import Records


def unplanned(losses: list[float]) -> Records:
    """Return a run of these losses whose plan and selection are not there."""
    return replace(run_records.records(losses=losses), plan=None, selection=None)


def grey_points(run: Records) -> int:
    """Return how many corners the line of the training loss has."""
    loss = training_plots(run)[0].svg
    lines = [part for part in loss.split("<path ")[1:] if "var(--base)" in part.split(">")[0]]
    return max(line.split('"')[1].count("L ") for line in lines)


def test_the_loss_is_drawn_at_every_step_not_only_where_a_line_was_logged() -> None:
    run = unplanned([9.0 - 7 * (step % 2) + 0.01 * step for step in range(40)])
    assert len(run.of_kind("step")) == 5
    assert grey_points(run) == 39


def test_a_long_run_is_drawn_in_means() -> None:
    run = unplanned([9.0 - 7 * (step % 2) for step in range(2 * MOST_POINTS + 1)])
    plot = training_plots(run)[0]
    assert "means over 3 steps" in plot.note
    assert grey_points(run) <= MOST_POINTS


def test_every_kind_of_task_is_named_beside_its_bars() -> None:
    tasks = [
        run_records.compared("task", "task", 0.1, 0.9),
        {**run_records.compared("format", "format", 0.1, 0.9), "metric": "format_valid"},
        {**run_records.compared("talk", "instruction", 0.9, 0.8), "metric": "instructions"},
        run_records.compared("stories", "general", 0.7, 0.8, bits=True),
    ]
    shares, bits = comparison_plots(run_records.records(compared_on=run_records.evaluation(*tasks)))
    for name in ("exact match", "answers in the declared format", "talk: all instructions followed"):
        assert name in shares.svg
    assert bits.title == "Bits per byte: lower is better"
    assert "stories: bits per byte" in bits.svg
