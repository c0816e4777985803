"""Drawings of a campaign: parallel coordinates, curves of many trials, the Pareto front, candidates with intervals.

Made as `plots.py` makes its own: inline SVG whose colours become CSS variables; equal input gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from ftray.report.plots import INK, PAPER, STYLE, TUNED, WHISKER, Interval, number, svg_element

DASHES = (0, (5, 2.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a trial is drawn: winner and default stand out."""

    colour: str
    width: float = 1.3
    dashed: bool = False
    above: int = 2
    """What is drawn over what: higher is later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An upright axis: ticks, and where each trial crosses it, from 0 (bottom) to 1 (top)."""

    name: str
    ticks: tuple[tuple[float, str], ...]
    places: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One trial's course; `end` is the marker at its last point."""

    at: tuple[float, ...]
    values: tuple[float, ...]
    style: Style
    end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One trial between forgetting and value; `label` stands beside it."""

    at: float
    value: float
    colour: str
    label: str
    is_hollow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A value with its interval, and its colour."""

    name: str
    interval: Interval
    colour: str


def draw_parallel(name: str, axes_of: Sequence[Axis], styles: Sequence[Style]) -> str:
    """Return the SVG of parallel coordinates: a line for each trial, one style each."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(11.2, 3.5), layout="constrained")
        axes = figure.add_subplot()
        for index, style in enumerate(styles):
            crossed = [(at, axis.places[index]) for at, axis in enumerate(axes_of)]
            drawn = [(at, place) for at, place in crossed if place is not None]
            axes.plot(
                [at for at, _ in drawn],
                [place for _, place in drawn],
                color=style.colour,
                linewidth=style.width,
                linestyle=DASHES if style.dashed else "solid",
                zorder=style.above,
            )
        for at, axis in enumerate(axes_of):
            axes.plot([at, at], [-0.03, 1.03], color=INK, linewidth=0.9, zorder=1)
            axes.text(at, 1.07, axis.name, ha="center", va="bottom", color=WHISKER, fontsize=10)
            is_last = at == len(axes_of) - 1
            for place, text in axis.ticks:
                axes.text(
                    at + (0.03 if is_last else -0.03),
                    place,
                    text,
                    ha="left" if is_last else "right",
                    va="center",
                    zorder=20,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.2, "alpha": 0.82},
                )
        axes.set_ylim(-0.05, 1.17)
        axes.set_xlim(-0.35, len(axes_of) - 1 + 0.3)
        axes.set_axis_off()
        return svg_element(figure, name)


def draw_paths(name: str, paths: Sequence[Path], *, x_label: str, share: bool, highest: float | None = None) -> str:
    """Return the SVG of many trials' courses, each with a marker where it ended; values above `highest` are cut off."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.4, 3.3), layout="constrained")
        axes = figure.add_subplot()
        for path in paths:
            axes.plot(
                path.at,
                path.values,
                color=path.style.colour,
                linewidth=path.style.width,
                linestyle=DASHES if path.style.dashed else "solid",
                marker=path.end,
                markevery=[len(path.at) - 1],
                markersize=5.5,
                markeredgewidth=1.6 if path.end in "x|" else 0,
                zorder=path.style.above,
            )
        axes.margins(x=0.02, y=0.06)
        if highest is not None:
            axes.set_ylim(top=highest)
        axes.set_xlim(left=0)
        _finish(axes, x_label=x_label, share=share)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.grid(axis="y", which="major")
        return svg_element(figure, name)


def draw_dots(
    name: str, dots: Sequence[Dot], front: Sequence[Dot], *, labels: tuple[str, str], shares: tuple[bool, bool]
) -> str:
    """Return the SVG of trials between what they forgot and their value, with the front as steps.

    `labels` and `shares` (whether ticks are percent) are of the two axes, x first.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.4, 3.3), layout="constrained")
        axes = figure.add_subplot()
        steps = sorted(front, key=lambda dot: dot.at)
        axes.step(
            [dot.at for dot in steps], [dot.value for dot in steps], where="post", color=TUNED, linewidth=1.3, zorder=1
        )
        for dot in dots:
            axes.plot(
                dot.at,
                dot.value,
                "o",
                markersize=7,
                markeredgewidth=1.8,
                markerfacecolor=PAPER if dot.is_hollow else dot.colour,
                markeredgecolor=dot.colour,
                zorder=3,
            )
            axes.annotate(dot.label, (dot.at, dot.value), xytext=(6, -11), textcoords="offset points", fontsize=8.5)
        axes.margins(x=0.12, y=0.14)
        axes.set_ylabel(labels[1])
        _finish(axes, x_label=labels[0], share=shares[1])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0) if shares[0] else FuncFormatter(number))
        axes.grid(which="major")
        return svg_element(figure, name)


def draw_candidates(
    name: str, candidates: Sequence[Candidate], *, write: Callable[[float], str], zero: bool = False
) -> str:
    """Return the SVG of values with 95 % intervals, one a row: the first at the top.

    `write` writes a value; `zero` draws a line there: what an interval beyond it can be told from.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.4, 0.5 + 0.42 * len(candidates)), layout="constrained")
        axes = figure.add_subplot()
        for row, one in enumerate(candidates):
            interval = one.interval
            if interval.low is not None and interval.high is not None:
                axes.plot([interval.low, interval.high], [row, row], color=one.colour, linewidth=2.2, alpha=0.55)
            axes.plot(interval.value, row, "o", color=one.colour, markersize=7.5)
            axes.annotate(
                write(interval.value), (interval.value, row), xytext=(0, 7), textcoords="offset points", ha="center"
            )
        axes.set_yticks(range(len(candidates)), [one.name for one in candidates])
        axes.set_ylim(len(candidates) - 0.6, -0.75)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
        axes.grid(axis="x")
        if zero:
            axes.axvline(0, color=INK, linewidth=1.1, linestyle=(0, (1, 2)), zorder=1)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        return svg_element(figure, name)


def _finish(axes: Axes, *, x_label: str, share: bool) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0) if share else FuncFormatter(number))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.set_xlabel(x_label)
    axes.tick_params(which="both", length=0)


def _thousands(value: float, _: Any) -> str:
    return f"{value:,.0f}"


def nice_ticks(low: float, high: float, *, logarithmic: bool) -> list[float]:
    """Return round numbers within the range."""
    locator = LogLocator(subs=(1.0, 3.0), numticks=9) if logarithmic else MaxNLocator(nbins=5)
    return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
