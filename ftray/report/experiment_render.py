"""An experiment as one page, made of its report and its history and nothing else, while it runs and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ftray.report import wording
from ftray.report.drawings import Plot
from ftray.report.experiment_plots import Band, Trace, draw_bands, draw_evidence
from ftray.report.page import Headline, Tile, render_page
from ftray.report.plots import BASE, LEVELS, MARK, TUNED, WHISKER
from ftray.report.wording import Tone

COLOURS = (BASE, TUNED, MARK, WHISKER, LEVELS[1], LEVELS[3], LEVELS[5])
"""The control's, then the challengers'; with more arms than these they come again."""
VERDICTS: dict[str, tuple[str, Tone]] = {
    "collecting": ("Still collecting", "neutral"),
    "winner": ("Winner", "good"),
    "no_difference": ("No difference worth having", "neutral"),
    "stopped_guardrail": ("Stopped: guardrail", "bad"),
    "blocked_sample_ratio": ("Blocked: sample ratio", "bad"),
}
STATUSES = {"running": "running", "stopped": "ended", "promoted": "ended, the winner is promoted"}
FEWEST_POINTS = 2
"""A line of fewer is none."""


def render_experiment(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    """Return the page. `report` and `history` are what the store of outcomes returns for an experiment."""
    points = course(report, history)
    classes = arm_classes(report)
    return render_page(
        "experiment.html.jinja",
        styles=("run.css", "sweep.css", "experiment.css"),
        report=report,
        headline=headline(report),
        tiles=tiles(report),
        status=STATUSES[report["status"]],
        plots=plots(report, points),
        legend=tuple((classes[arm["name"]], arm["name"]) for arm in report["arms"]),
        challengers=[arm for arm in report["arms"] if arm["name"] != report["control"]],
        total=sum(arm["weight"] for arm in report["arms"]),
        surest=f"{1 - report['alpha']:.0%}".replace("%", " %"),
    )


def headline(report: Mapping[str, Any]) -> Headline:
    """Return the verdict, and why."""
    label, tone = VERDICTS[report["verdict"]]
    if report["winner"]:
        label = f"{label}: {report['winner']}"
    ended = report["status_reason"]
    # What ended it by itself is the verdict's own reason.
    reasons = (report["reason"], *((f"It has ended: {ended}",) if ended and ended != report["reason"] else ()))
    return Headline(eyebrow="Verdict", label=label, tone=tone, reasons=reasons)


def tiles(report: Mapping[str, Any]) -> list[Tile]:
    """Return the numbers to see first."""
    arms = report["arms"]
    units, outcomes = (sum(arm[key] for arm in arms) for key in ("units", "outcomes"))
    found = [
        Tile(
            what=arm["name"],
            number=wording.value(arm["estimate"], ""),
            note=f"{wording.value(arm['low'], '')} to {wording.value(arm['high'], '')}"
            + (", control" if arm["name"] == report["control"] else ""),
        )
        for arm in arms[:3]
    ]
    return [*found, Tile(what="Units", number=wording.count(units), note=f"{wording.count(outcomes)} outcomes")]


def course(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the history with the present at its end."""
    now = {"outcomes": sum(arm["outcomes"] for arm in report["arms"]), "arms": report["arms"]}
    return [*(point for point in history if point["outcomes"] < now["outcomes"]), *([now] if now["outcomes"] else [])]


def arm_classes(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the CSS class of each arm's colour."""
    return {name: f"arm{COLOURS.index(colour)}" for name, colour in arm_colours(report).items()}


def arm_colours(report: Mapping[str, Any]) -> dict[str, str]:
    """Return each arm's colour: grey for the control."""
    names = [arm["name"] for arm in report["arms"] if arm["name"] != report["control"]]
    others = COLOURS[1:]
    return {report["control"]: BASE, **{name: others[index % len(others)] for index, name in enumerate(names)}}


def plots(report: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Return the course of the differences, of the arms and of the evidence; none before there is one."""
    colours = arm_colours(report)
    challengers = [arm["name"] for arm in report["arms"] if arm["name"] != report["control"]]
    keys = ("difference", "difference_low", "difference_high")
    differences = bands(points, challengers, keys, colours)
    estimates = bands(points, list(colours), ("estimate", "low", "high"), colours)
    if not differences:
        return []
    classes = arm_classes(report)
    legend = tuple((classes[name], name) for name in challengers)
    margin = report["margin"]
    needed = report["e_value_needed"]
    return [
        Plot(
            title=f"Difference from {report['control']}",
            svg=Markup(draw_bands("differences", differences, write=_points, limits=(-1, 1), zero=True, margin=margin)),
            legend=(*legend, ("limit", f"margin of {100 * margin:g} points")),
            note="points, with the interval that holds at all times at once",
        ),
        Plot(
            title="Each arm",
            svg=Markup(draw_bands("arms", estimates, write=lambda value: f"{value:.0%}", limits=(0, 1))),
            legend=tuple((classes[name], name) for name in colours),
            note="mean outcome of the arm's units",
        ),
        Plot(
            title="Evidence against no difference",
            svg=Markup(draw_evidence("evidence", traces(points, challengers, colours), needed=needed)),
            legend=(*legend, ("limit", f"a winner needs {needed:g}")),
            note="e-value: 1 says nothing",
        ),
    ]


def bands(
    points: Sequence[Mapping[str, Any]], names: Sequence[str], keys: tuple[str, str, str], colours: Mapping[str, str]
) -> list[Band]:
    """Return an estimate and its interval for each arm that has a course."""
    found = []
    for name in names:
        rows = [(point["outcomes"], *(row[key] for key in keys)) for point, row in _rows(points, name)]
        rows = [row for row in rows if None not in row]
        if len(rows) >= FEWEST_POINTS:
            at, values, lows, highs = (tuple(column) for column in zip(*rows, strict=True))
            found.append(Band(at=at, values=values, lows=lows, highs=highs, colour=colours[name]))
    return found


def traces(points: Sequence[Mapping[str, Any]], names: Sequence[str], colours: Mapping[str, str]) -> list[Trace]:
    """Return the e-values of each challenger."""
    found = []
    for name in names:
        rows = [(point["outcomes"], row["e_value"]) for point, row in _rows(points, name)]
        at, values = (tuple(column) for column in zip(*rows, strict=True))
        found.append(Trace(at=at, values=values, colour=colours[name]))
    return found


def _rows(points: Sequence[Mapping[str, Any]], name: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(point, row) for point in points for row in point["arms"] if row["name"] == name]


def _points(value: float) -> str:
    return "0" if abs(value) < 1e-12 else f"{100 * value:+.3g}".replace("-", wording.MINUS)
