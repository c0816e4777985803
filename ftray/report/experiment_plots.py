"""Drawings of an experiment: intervals over the outcomes, and the evidence. Made as `plots.py` makes its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ftray.report.plots import INK, STYLE, svg_element

EARLY = 0.2
"""Intervals of the first outcomes are as wide as can be: this share of the plot does not set its height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """An estimate with its interval, over numbers of outcomes."""

    at: tuple[int, ...]
    values: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    colour: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Positive numbers over numbers of outcomes."""

    at: tuple[int, ...]
    values: tuple[float, ...]
    colour: str


def draw_bands(
    name: str,
    bands: Sequence[Band],
    *,
    write: Callable[[float], str],
    limits: tuple[float, float],
    zero: bool = False,
    margin: float | None = None,
) -> str:
    """Return the SVG of estimates as lines and their intervals as bands.

    `write` writes a tick; `limits` are what values can be; `zero` and `margin` draw lines at 0 and beside it.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for band in bands:
            axes.fill_between(band.at, band.lows, band.highs, color=band.colour, alpha=0.17, linewidth=0)
            axes.plot(band.at, band.lows, color=band.colour, linewidth=0.7, alpha=0.6)
            axes.plot(band.at, band.highs, color=band.colour, linewidth=0.7, alpha=0.6)
            axes.plot(band.at, band.values, color=band.colour, linewidth=1.9)
        shown = [0.0] if zero else []
        if zero:
            axes.axhline(0, color=INK, linewidth=1.1)
        if margin:
            shown += [-margin, margin]
            for side in (-margin, margin):
                axes.axhline(side, color=INK, linewidth=1.0, linestyle=(0, (1, 2)))
        axes.set_ylim(*height(bands, shown, limits))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=7))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
        _finish(axes)
        return svg_element(figure, name)


def height(bands: Sequence[Band], shown: Sequence[float], limits: tuple[float, float]) -> tuple[float, float]:
    """Return the ends of the upright axis: the intervals but for the early ones, and what else is shown."""
    last = max(at for band in bands for at in band.at)
    ends = [
        end
        for band in bands
        for at, low, high in zip(band.at, band.lows, band.highs, strict=True)
        if at >= EARLY * last
        for end in (low, high)
    ]
    low, high = min([*ends, *shown]), max([*ends, *shown])
    room = 0.06 * ((high - low) or 1.0)
    return max(limits[0] - room, low - room), min(limits[1] + room, high + room)


def draw_evidence(name: str, traces: Sequence[Trace], *, needed: float) -> str:
    """Return the SVG of e-values on a logarithmic axis, with what a winner needs."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.set_yscale("log")
        for trace in traces:
            axes.plot(trace.at, trace.values, color=trace.colour, linewidth=1.8)
        axes.axhline(needed, color=INK, linewidth=1.0, linestyle=(0, (1, 2)))
        values = [needed, 1.0, *(value for trace in traces for value in trace.values)]
        axes.set_ylim(min(values) / 2, max(values) * 2)
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(_evidence))
        _finish(axes)
        return svg_element(figure, name)


def _evidence(value: float, _: Any) -> str:
    return f"{value:,.0f}" if 1 <= value < 1e6 else f"{value:.4g}"


def _finish(axes: Axes) -> None:
    axes.margins(x=0.01)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("outcomes")
    axes.grid(axis="y", which="major")
    axes.tick_params(which="both", length=0)
