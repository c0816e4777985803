"""Plots: inline SVG that takes its colours from the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from ftray.report.plots import BASE, TUNED, Curve, Interval, Pair, Point, draw_curves, draw_pairs, is_wide


def curve(*values: float, colour: str = TUNED) -> Curve:
    return Curve(points=tuple(Point(at=10 * index, value=value) for index, value in enumerate(values)), colour=colour)


def interval(value: float, low: float | None = None, high: float | None = None) -> Interval:
    return Interval(value=value, low=low, high=high)


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))


@pytest.mark.parametrize(
    "svg",
    [
        draw_curves("a", [curve(10.0, 1.0, 0.01), curve(2.0, 0.5, colour=BASE)], selected=10),
        draw_curves("a", [curve(0.1, 0.9)], selected=10, share=True),
        draw_curves("a", [curve(3.0)], limit=1.0),
        draw_curves("a", [curve(*range(200)), curve()], selected=5),
        draw_pairs("a", [Pair(name="one", base=interval(0.0), tuned=interval(0.9, 0.8, 0.95))], share=True),
        draw_pairs("a", [Pair(name="$x^2$ <b>", base=interval(-1.0), tuned=interval(-2.0, -3.0, -1.0))], share=False),
        draw_pairs("a", [Pair(name="zero", base=interval(0.0), tuned=interval(0.0))], share=False),
    ],
)
def test_a_plot_is_well_formed_without_colours_of_its_own(svg: str) -> None:
    parsed(svg)
    assert re.findall(r"#[0-9a-fA-F]{6}\b", svg) == []
    assert "http" not in svg
    assert all(name.startswith("a-") for name in re.findall(r' id="([^"]*)"', svg))


def test_names_are_written_as_they_are() -> None:
    svg = draw_pairs("a", [Pair(name="$x^2$ <b>", base=interval(0.2), tuned=interval(0.9))], share=True)
    texts = [element.text for element in parsed(svg).iter("text")]
    assert {"$x^2$ <b>", "20.0%", "90.0%", "100%"} <= set(texts)


def test_wide_ranges_are_logarithmic_unless_something_is_not_positive() -> None:
    assert is_wide([curve(10.0, 0.1)])
    assert not is_wide([curve(10.0, 1.0)])
    assert not is_wide([curve(10.0, 0.0)])
    assert not is_wide([curve()])


def test_shares_are_never_logarithmic() -> None:
    assert is_wide([curve(0.01, 0.9)])
    svg = draw_curves("a", [curve(0.01, 0.9)], share=True)
    assert all(f"{percent}%" in svg for percent in (0, 100))
