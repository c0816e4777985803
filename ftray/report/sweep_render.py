"""SWEEP/report.html: a campaign as one page, made of the records on disk and nothing else, finished or not."""

from __future__ import annotations

from pathlib import Path

import yaml

from ftray.artifacts import write_text
from ftray.campaign import SweepDirectory
from ftray.report.audit_view import audit_view
from ftray.report.page import render_page
from ftray.report.sweep_drawings import candidates_plots, course_legend, course_plots, parallel_plot, pareto_plot
from ftray.report.sweep_records import read_sweep_records
from ftray.report.sweep_trials import fields, list_trials
from ftray.report.sweep_view import (
    difference_tile,
    headline,
    seeds_view,
    sides,
    split_of,
    stops,
    tiles,
    verdict_notice,
    winner_vs_default,
)


def render_sweep(directory: SweepDirectory) -> Path:
    """Write SWEEP/report.html; return its path.

    Raises InputError when the folder holds no campaign.
    """
    records = read_sweep_records(directory)
    rows = list_trials(records)
    compared = sides(records, rows)
    split = split_of(compared)
    page = render_page(
        "sweep.html.jinja",
        styles=("run.css", "sweep.css"),
        records=records,
        headline=headline(records),
        verdict=verdict_notice(records),
        tiles=tiles(records, rows),
        difference=difference_tile(records),
        against_default=winner_vs_default(records),
        sides=compared,
        split=split,
        rows=rows,
        fields=fields(rows),
        stops=stops(rows),
        seeds=seeds_view(records),
        space_plot=parallel_plot(records, rows),
        course_plots=course_plots(records, rows),
        course_legend=course_legend(records, rows),
        front_plot=pareto_plot(records, rows),
        candidates_plots=candidates_plots(records, compared),
        data=audit_view(records.audit),
        job_yaml=yaml.safe_dump(records.job["job"], sort_keys=False, allow_unicode=True, width=100),
    )
    write_text(directory.report, page)
    return directory.report
