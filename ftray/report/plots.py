"""The report's plots: matplotlib, as inline SVG without a background.

Colours are drawn as stand-ins that become CSS variables, so one drawing serves the light and the dark page; legends are
the page's. Equal input gives equal bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

INK, GRID, BASE, TUNED, MARK, PAPER, WHISKER = (f"#0{digit}0{digit}0{digit}" for digit in "1234567")
LEVELS = tuple(f"#0{digit}0{digit}0{digit}" for digit in "89abcd")
"""From the worst sixth of a campaign's trials to the best."""
VARIABLES = {
    **{INK: "muted", GRID: "grid", BASE: "base", TUNED: "tuned", MARK: "mark", PAPER: "paper", WHISKER: "ink"},
    **{level: f"level-{index}" for index, level in enumerate(LEVELS)},
}
"""Which CSS variable takes a stand-in's place."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
LOG_FROM = 30.0
"""A quantity that spans more than this factor is drawn on a logarithmic axis."""
MOST_MARKERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A number at a place of the x axis: an optimizer step, or a token of an answer."""

    at: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line; `colour` is one of this module's stand-ins."""

    points: tuple[Point, ...]
    colour: str
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % interval, where there is one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Base and tuned on one evaluation."""

    name: str
    base: Interval
    tuned: Interval


def is_wide(curves: Sequence[Curve]) -> bool:
    """Return whether the values want a logarithmic axis: all positive, and over more than `LOG_FROM`."""
    values = [point.value for curve in curves for point in curve.points]
    return bool(values) and min(values) > 0 and max(values) / min(values) > LOG_FROM


def draw_curves(
    name: str,
    curves: Sequence[Curve],
    *,
    x_label: str = "optimizer step",
    selected: int | None = None,
    share: bool = False,
    limit: float | None = None,
) -> str:
    """Return the SVG of lines over what `x_label` says.

    `selected` marks a step and the last curve's value there; `share` writes values as percent, from 0 to 1; `limit` is
    a dotted horizontal line.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.4, 2.7), layout="constrained")
        axes = figure.add_subplot()
        if is_wide(curves) and not share:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=9))
            axes.yaxis.set_minor_locator(NullLocator())
        for curve in curves:
            _draw_curve(axes, curve)
        if limit is not None:
            axes.axhline(limit, color=INK, linewidth=1.0, linestyle=(0, (1, 2)))
        if selected is not None:
            _mark(axes, curves[-1], selected)
        axes.yaxis.set_major_formatter(FuncFormatter(percent if share else number))
        if share:
            axes.set_ylim(-0.03, 1.03)
        axes.margins(x=0.02, y=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
        axes.set_xlabel(x_label)
        axes.grid(axis="y", which="major")
        axes.tick_params(which="both", length=0)
        return svg_element(figure, name)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    few = len(curve.points) <= MOST_MARKERS and not curve.dashed
    axes.plot(
        [point.at for point in curve.points],
        [point.value for point in curve.points],
        color=curve.colour,
        linewidth=1.1 if curve.dashed else 1.8,
        linestyle=(0, (4, 2)) if curve.dashed else "solid",
        marker="o" if few else None,
        markersize=3.6,
        markeredgewidth=0,
    )


def _mark(axes: Axes, curve: Curve, step: int) -> None:
    axes.axvline(step, color=MARK, linewidth=1.1, linestyle=(0, (3, 2)), zorder=1)
    here = [point.value for point in curve.points if point.at == step]
    if here:
        axes.plot(step, here[-1], "o", markersize=8, markerfacecolor=PAPER, markeredgecolor=MARK, markeredgewidth=2.2)


def draw_pairs(name: str, pairs: Sequence[Pair], *, share: bool) -> str:
    """Return the SVG of base and tuned bars with 95 % intervals, one pair of bars a row."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.4, 0.42 + 0.78 * len(pairs)), layout="constrained")
        axes = figure.add_subplot()
        ends = [end for pair in pairs for one in (pair.base, pair.tuned) for end in (one.value, one.high or one.value)]
        least, most = min(0.0, *ends), 1.0 if share else max(0.0, *ends)
        room = (most - least) or 1.0
        for row, pair in enumerate(pairs):
            axes.text(least, row - 0.3, pair.name, va="bottom", ha="left", in_layout=False)
            for offset, colour, one in ((-0.12, BASE, pair.base), (0.2, TUNED, pair.tuned)):
                _draw_bar(axes, one, at=row + offset, colour=colour, share=share, room=room)
        axes.set_yticks([])
        axes.set_ylim(len(pairs) - 0.55, -0.6)
        axes.set_xlim(least, most + 0.18 * room)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        if share:
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(FuncFormatter(percent if share else number))
        axes.grid(axis="x")
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        return svg_element(figure, name)


def _draw_bar(axes: Axes, one: Interval, *, at: float, colour: str, share: bool, room: float) -> None:
    axes.barh(at, one.value, height=0.28, color=colour)
    end = one.value
    if one.low is not None and one.high is not None:
        end = max(end, one.high)
        axes.errorbar(
            one.value,
            at,
            xerr=[[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]],
            color=WHISKER,
            linewidth=1.1,
            capsize=2.6,
        )
    label = f"{one.value:.1%}" if share else number(one.value, None)
    axes.text(end + 0.015 * room, at, label, va="center", ha="left", in_layout=False)


def percent(value: float, _: Any) -> str:
    """Write a tick of shares."""
    return f"{value:.0%}"


def number(value: float, _: Any) -> str:
    """Write a tick of anything else."""
    return f"{value:.4g}"


def svg_element(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element whose ids do not meet those of other plots on the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=METADATA)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;]*; ", "", svg, flags=re.DOTALL)
    opening, rest = svg.split(">", 1)
    svg = re.sub(r' (?:xmlns(?::xlink)?|width|height)="[^"]*"', "", opening) + ">" + rest
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg.strip()
