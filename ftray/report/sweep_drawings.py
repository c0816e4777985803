"""Which drawings a campaign gets, and what they say: its space, its trials' courses, its front, its candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from ftray.campaign import Config
from ftray.report import wording
from ftray.report.drawings import Plot
from ftray.report.plots import BASE, INK, MARK, TUNED, WHISKER, Interval
from ftray.report.sweep_plots import (
    Axis,
    Candidate,
    Dot,
    Path,
    Style,
    draw_candidates,
    draw_dots,
    draw_parallel,
    draw_paths,
    nice_ticks,
)  # fmt: skip
from ftray.report.sweep_records import SweepRecords
from ftray.report.sweep_trials import UNDER_WAY, TrialRow, fields, levels
from ftray.report.sweep_view import Side, split_of

LOG_FROM = 10.0
"""A field whose values span more than this factor has a logarithmic axis."""
FEW = 6
"""So many different values of a field have a tick each."""
CLOSEST = 0.075
"""Ticks nearer than this share of an axis are left out."""
APART = 0.035
"""How far trials with the same value are spread on an axis, so that lines do not hide each other."""
TALLEST = 1.5
"""Losses of trials that diverged are cut off at this multiple of the other trials' highest."""
MOST_LABELS = 24
ENDS = {"completed": "o", "budget": "s", UNDER_WAY: ">", "pruned": "|", "diverged": "x", "failed": "x"}
END_WORDS = {
    "completed": "\N{BLACK CIRCLE} completed",
    "pruned": "| pruned",
    "diverged": "\N{MULTIPLICATION SIGN} diverged or failed",
    "failed": "\N{MULTIPLICATION SIGN} diverged or failed",
    "budget": "\N{BLACK SQUARE} out of budget",
    UNDER_WAY: "\N{BLACK RIGHT-POINTING TRIANGLE} not finished",
}


def _styles(rows: Sequence[TrialRow]) -> dict[str, Style]:
    """Return how each trial is drawn: the better, the stronger; winner and default over all."""
    colours, styles = levels(rows), {}
    for row in rows:
        if row.is_winner:
            styles[row.trial_id] = Style(colour=MARK, width=3.0, above=11, dashed=row.is_default)
        elif row.is_default:
            styles[row.trial_id] = Style(colour=WHISKER, width=2.2, above=10, dashed=True)
        else:
            styles[row.trial_id] = Style(colour=colours.get(row.trial_id, INK), above=2)
    return styles


def _roles(rows: Sequence[TrialRow]) -> tuple[tuple[str, str], ...]:
    return (
        *(("winner", f"winner, #{row.number}") for row in rows if row.is_winner),
        *(("default", f"default, #{row.number}") for row in rows if row.is_default),
        ("levels", "other trials, by validation value"),
    )


def parallel_plot(records: SweepRecords, rows: Sequence[TrialRow]) -> Plot | None:
    """Return the space as parallel coordinates; None where no trial has a value."""
    valued = [row for row in rows if row.value is not None]
    names = fields(valued)
    if not valued or not names:
        return None
    drawn = valued[::-1]  # the best last, over the others
    axes = [field_axis(name, [row.config.get(name) for row in drawn]) for name in names]
    axes.append(_value_axis(records, [float(row.value or 0.0) for row in drawn]))
    styles = _styles(rows)
    without = len(rows) - len(valued)
    return Plot(
        title="The space, and what came of it",
        svg=Markup(draw_parallel("parallel", axes, [styles[row.trial_id] for row in drawn])),
        legend=_roles(rows),
        note=f"{without} trial{'s' if without != 1 else ''} without a value left out" if without else "",
    )


def field_axis(name: str, values: Sequence[Config | object]) -> Axis:
    """Return the axis of a field: numbers by size, logarithmic over more than `LOG_FROM`; others evenly spaced."""
    present = [value for value in values if value is not None]
    numbers = [float(value) for value in present if isinstance(value, int | float) and not isinstance(value, bool)]
    label = wording.words(name)
    if len(numbers) < len(present) or not numbers:
        return _named_axis(label, values)
    low, high = min(numbers), max(numbers)
    logarithmic = low > 0 and high / low > LOG_FROM
    distinct = sorted(set(numbers))
    marks = distinct if len(distinct) <= FEW else [low, *nice_ticks(low, high, logarithmic=logarithmic), high]

    def place(number: float) -> float:
        if low == high:
            return 0.5
        if logarithmic:
            return math.log(number / low) / math.log(high / low)
        return (number - low) / (high - low)

    places = [place(float(value)) if isinstance(value, int | float) else None for value in values]
    ticks = _apart([(place(mark), wording.plain(mark)) for mark in marks])
    return Axis(name=label, ticks=ticks, places=tuple(_spread(places) if len(distinct) <= FEW else places))


def _named_axis(label: str, values: Sequence[object]) -> Axis:
    names = sorted({wording.setting(value) for value in values if value is not None})
    place = {name: index / (len(names) - 1) if len(names) > 1 else 0.5 for index, name in enumerate(names)}
    places = [None if value is None else place[wording.setting(value)] for value in values]
    return Axis(name=label, ticks=tuple((place[name], name) for name in names), places=tuple(_spread(places)))


def _value_axis(records: SweepRecords, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    flip = not records.higher_is_better  # the better end is at the top

    def place(value: float) -> float:
        share = 0.5 if low == high else (value - low) / (high - low)
        return 1 - share if flip else share

    marks = [low, high, *nice_ticks(low, high, logarithmic=False)]
    ticks = _apart([(place(mark), wording.value(mark, records.metric)) for mark in marks])
    return Axis(name=wording.metric(records.metric), ticks=ticks, places=tuple(map(place, values)))


def _apart(ticks: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """Return the ticks that do not run into each other; the ends are kept."""
    kept: list[tuple[float, str]] = []
    for place, text in sorted(ticks, key=lambda tick: min(tick[0], 1 - tick[0])):
        if all(abs(place - other) >= CLOSEST for other, _ in kept):
            kept.append((place, text))
    return tuple(sorted(kept))


def _spread(places: Sequence[float | None]) -> list[float | None]:
    """Return places with those that coincide set side by side, in their order."""
    counts: dict[float, int] = {}
    spread: list[float | None] = []
    for place in places:
        if place is None:
            spread.append(None)
            continue
        same = sum(other == place for other in places)
        counts[place] = counts.get(place, -1) + 1
        spread.append(place + (APART * (counts[place] / (same - 1) - 0.5) if same > 1 else 0.0))
    return spread


def course_plots(records: SweepRecords, rows: Sequence[TrialRow]) -> list[Plot]:
    """Return validation value and loss of every trial over the tokens it trained on."""
    lines = [line for row in rows for line in records.lines.get(row.trial_id, [])]
    if not lines:
        return []
    by_tokens = all(line.get("train/tokens") is not None for line in lines)
    key, x_label = ("train/tokens", "tokens trained") if by_tokens else ("step", "optimizer step")
    metric = wording.metric(records.metric)
    plots = []
    for name, column, title in (("values", "val/accuracy", metric), ("losses", "val/loss", "loss")):
        paths = _paths(records, rows, key=key, column=column)
        if not paths:
            continue
        highest = _highest(records, rows) if name == "losses" else None
        notes = {
            "values": "" if records.higher_is_better else "lower is better",
            "losses": "nats per label" + (", what is higher is cut off" if highest else ""),
        }
        share = name == "values" and wording.is_share(records.metric)
        plots.append(
            Plot(
                title=wording.title(f"{title} on the validation rows"),
                svg=Markup(draw_paths(name, paths, x_label=x_label, share=share, highest=highest)),
                legend=(),
                note=notes[name],
            )
        )
    return plots


def course_legend(records: SweepRecords, rows: Sequence[TrialRow]) -> tuple[tuple[str, str], ...]:
    """Return what colours and ends of the courses say."""
    ends = dict.fromkeys(("plain", END_WORDS[row.state]) for row in rows if records.lines.get(row.trial_id))
    return *_roles(rows), *ends


def _paths(records: SweepRecords, rows: Sequence[TrialRow], *, key: str, column: str) -> list[Path]:
    styles, paths = _styles(rows), []
    for row in reversed(rows):
        points = [line for line in records.lines.get(row.trial_id, []) if line.get(column) is not None]
        if points:
            paths.append(
                Path(
                    at=tuple(float(line[key]) for line in points),
                    values=tuple(float(line[column]) for line in points),
                    style=styles[row.trial_id],
                    end=ENDS[row.state],
                )
            )
    return paths


def _highest(records: SweepRecords, rows: Sequence[TrialRow]) -> float | None:
    """Return where losses are cut off, if diverged trials would flatten the others."""
    losses: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        found = [line.get("val/loss") for line in records.lines.get(row.trial_id, [])]
        losses[row.state == "diverged"] += [loss for loss in found if loss is not None]
    if not losses[True] or not losses[False]:
        return None
    top = TALLEST * max(losses[False])
    return top if max(losses[True]) > top else None


def pareto_plot(records: SweepRecords, rows: Sequence[TrialRow]) -> Plot | None:
    """Return value against forgetting; None where forgetting was measured for no trial."""
    scores: Mapping[str, float] = records.extra("forgetting", {})
    measured = [row for row in rows if row.value is not None and scores.get(row.trial_id) is not None]
    if not measured or records.sweep is None:
        return None
    share = wording.is_share(records.metric)
    front_ids = set(records.sweep["pareto"])

    def colour(row: TrialRow) -> str:
        return MARK if row.is_winner else WHISKER if row.is_default else TUNED if row.trial_id in front_ids else BASE

    dots = {
        row.trial_id: Dot(
            at=scores[row.trial_id],
            value=float(row.value or 0.0),
            colour=colour(row),
            label=f"#{row.number}" if len(measured) <= MOST_LABELS or row.trial_id in front_ids else "",
            is_hollow=row.trial_id not in front_ids,
        )
        for row in measured
    }
    unit = records.extra("forgetting_unit", "share")
    labels = (
        "general items that got worse" if unit == "share" else "bits per byte lost on general texts",
        wording.metric(records.metric),
    )
    front = [dot for trial_id, dot in dots.items() if trial_id in front_ids]
    shares = "front: no trial is better in one and no worse in the other"
    return Plot(
        title="What is learned against what is forgotten",
        svg=Markup(draw_dots("pareto", list(dots.values()), front, labels=labels, shares=(unit == "share", share))),
        legend=(("tuned", shares), ("hollow", "behind it"), *_roles(rows)[:-1]),
        note="upper left is better" if records.higher_is_better else "lower left is better",
    )


def candidates_plots(records: SweepRecords, found: Sequence[Side]) -> list[Plot]:
    """Return base, default, winner and finalists with their intervals, and how far trials are from the default."""
    split, metric = split_of(found), records.metric
    values = _candidates([(side, side.on(split)) for side in found])
    differences = _candidates([(side, side.difference) for side in found])
    note = "95% intervals, all of them together" + ("" if records.higher_is_better else ", lower is better")
    plots = []
    if len(values) > 1:
        svg = draw_candidates("candidates", values, write=lambda value: wording.value(value, metric))
        title = wording.title(f"{wording.metric(metric)} on the {split} rows")
        plots.append(Plot(title=title, svg=Markup(svg), legend=(), note=note))
    if differences:
        unit = "points, " if wording.is_share(metric) else ""
        svg = draw_candidates("differences", differences, write=lambda value: _difference(value, metric), zero=True)
        plots.append(Plot(title="Minus the default", svg=Markup(svg), legend=(), note=f"{unit}{note}"))
    return plots


def _candidates(found: Sequence[tuple[Side, Mapping[str, float | None] | None]]) -> list[Candidate]:
    colours = {"base": BASE, "default": WHISKER, "winner": MARK, "default, the winner": MARK, "finalist": TUNED}
    return [
        Candidate(
            name=f"{side.who} {side.trial}".strip(),
            interval=Interval(value=value, low=estimate["low"], high=estimate["high"]),
            colour=colours[side.who],
        )
        for side, estimate in found
        if estimate and (value := estimate["value"]) is not None
    ]


def _difference(value: float, metric: str) -> str:
    return "0" if value == 0 else wording.change(value, metric).removesuffix(" points")
