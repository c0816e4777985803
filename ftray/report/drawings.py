"""Which plots a run gets: base against tuned, how far answers keep to their format, and what training logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from ftray.report import wording
from ftray.report.answers_view import is_flat
from ftray.report.plots import BASE, INK, TUNED, Curve, Interval, Pair, Point, draw_curves, draw_pairs, is_wide
from ftray.report.records import Records
from ftray.train.schedule import Schedule

LARGEST_BAR = 1e12
"""A bar beyond this (a perplexity without bounds) leaves nothing else to see: the tables say it."""

MOST_POINTS = 600
"""A line of more points is a smear, and a large page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A drawing and what it says. `legend` pairs a CSS class with words."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...]
    note: str = ""


def comparison_plots(records: Records) -> list[Plot]:
    """Return base against tuned as bars: one drawing for all shares, one for each other metric."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for task in records.evaluation["tasks"] if records.evaluation else []:
        ends = [task[model]["value"] for model in ("base", "tuned")]
        if all(end is not None and abs(end) <= LARGEST_BAR for end in ends):
            groups.setdefault("" if wording.is_share(task["metric"]) else task["metric"], []).append(task)
    legend = (("base", "base"), ("tuned", "tuned"), ("whisker", "95% interval"))
    return [
        Plot(
            title=f"{wording.title(wording.metric(metric))}: lower is better" if metric else "Scores: higher is better",
            svg=Markup(draw_pairs(f"pairs{index}", [_pair(task) for task in tasks], share=not metric)),
            legend=legend,
        )
        for index, (metric, tasks) in enumerate(groups.items())
    ]


def _pair(task: dict[str, Any]) -> Pair:
    base, tuned = (
        Interval(**{end: task[model][end] for end in ("value", "low", "high")}) for model in ("base", "tuned")
    )
    return Pair(name=wording.task_name(task), base=base, tuned=tuned)


def validity_plot(records: Records) -> Plot | None:
    """Return the share of answers that are still the beginning of a valid one after each token.

    None without a format, and where every tuned answer keeps to it all along: a sentence says that.
    """
    evaluation = records.evaluation or {}
    tuned, base = (evaluation.get(key) or [] for key in ("prefix_validity", "prefix_validity_base"))
    if not tuned or is_flat(tuned):
        return None
    curves = [
        Curve(points=tuple(Point(at=token, value=share) for token, share in enumerate(shares, start=1)), colour=colour)
        for shares, colour in ((base, BASE), (tuned, TUNED))
    ]
    return Plot(
        title="Answers that are still the beginning of a valid one",
        svg=Markup(draw_curves("validity", curves, x_label="tokens of the answer", share=True)),
        legend=((("base", "base"),) if base else ()) + (("tuned", "tuned"),),
    )


def training_plots(records: Records) -> list[Plot]:
    """Return what was logged over the steps; a quantity that never was is left out."""
    steps, evaluations = records.of_kind("step"), records.of_kind("evaluation")
    selected = records.selection["step"] if records.selection else None
    marked = (("selected", f"selected checkpoint, step {selected}"),) if selected is not None else ()
    # With replay the loss of the task's own rows is what validation loss can be compared with.
    of_task = records.per_step(("train/task_losses",), "train/task_loss")
    losses = of_task or records.per_step(("train/losses",), "train/loss")
    norms = records.per_step(("train/grad_norms",), "train/grad_norm")
    loss = Curve(points=_averaged(losses), colour=BASE)
    validation = Curve(points=_points(evaluations, "val/loss"), colour=TUNED)
    values = Curve(points=_values(records, evaluations), colour=TUNED)
    rate = Curve(points=_points(steps, "train/learning_rate"), colour=TUNED)
    norm = Curve(points=_averaged(norms), colour=TUNED)
    planned = _planned_rate(records)
    plots = []
    if loss.points or validation.points:
        plots.append(
            Plot(
                title="Loss",
                svg=Markup(draw_curves("loss", [loss, validation], selected=selected)),
                legend=(
                    ("base", "training, without replay" if of_task else "training"),
                    ("tuned", "validation"),
                    *marked,
                ),
                note="nats per label token" + _window_words(losses) + _scale_words([loss, validation]),
            )
        )
    if values.points:
        share = wording.is_share(records.metric)
        plots.append(
            Plot(
                title=f"{wording.title(wording.metric(records.metric))} per checkpoint",
                svg=Markup(draw_curves("value", [values], selected=selected, share=share)),
                legend=(("tuned", "validation rows"), *marked),
                note="" if share else "lower is better",
            )
        )
    if rate.points:
        plots.append(
            Plot(
                title="Learning rate",
                svg=Markup(draw_curves("rate", [*planned, rate])),
                legend=(("tuned", "as logged"), *((("planned", "planned"),) if planned else ())),
            )
        )
    if norm.points:
        clip = records.plan["max_grad_norm"] if records.plan and records.plan["max_grad_norm"] else None
        plots.append(
            Plot(
                title="Gradient norm",
                svg=Markup(draw_curves("norm", [norm], limit=clip)),
                legend=(("tuned", "before clipping"), *((("limit", f"clipped to {clip:g}"),) if clip else ())),
                note=(_window_words(norms) + _scale_words([norm])).removeprefix(", "),
            )
        )
    return plots


def _points(lines: Sequence[dict[str, Any]], key: str) -> tuple[Point, ...]:
    return tuple(Point(at=line["step"], value=line[key]) for line in lines if line.get(key) is not None)


def _window(numbers: Mapping[int, float]) -> int:
    """Return how many steps one point of a drawing stands for."""
    return -(-len(numbers) // MOST_POINTS)


def _averaged(numbers: Mapping[int, float]) -> tuple[Point, ...]:
    """Return a point for every step; of a long run the mean of as many steps as leave at most `MOST_POINTS`."""
    steps, values = list(numbers), list(numbers.values())
    every = max(1, _window(numbers))
    return tuple(
        Point(at=steps[min(first + every, len(steps)) - 1], value=fmean(values[first : first + every]))
        for first in range(0, len(steps), every)
    )


def _window_words(numbers: Mapping[int, float]) -> str:
    return f", means over {_window(numbers)} steps" if _window(numbers) > 1 else ""


def _scale_words(curves: Sequence[Curve]) -> str:
    return ", logarithmic" if is_wide(curves) else ""


def _values(records: Records, evaluations: Sequence[dict[str, Any]]) -> tuple[Point, ...]:
    """Return the task's value per step; only the selection's own where the lines were graded by another metric."""
    points = _points(evaluations, "val/accuracy")
    candidates = records.selection["candidates"] if records.selection else []
    chosen = {one["step"]: one["value"] for one in candidates if one["value"] is not None}
    if all(chosen.get(point.at, point.value) == point.value for point in points):
        return points
    return tuple(Point(at=step, value=value) for step, value in sorted(chosen.items()))


def _planned_rate(records: Records) -> list[Curve]:
    if records.plan is None:
        return []
    planned = records.plan["schedule"]
    names = ("kind", "peak", "minimum", "warmup_steps", "total_steps")
    schedule = Schedule(**{name: planned[name] for name in names})
    every = max(1, schedule.total_steps // 400)
    points = tuple(Point(at=step + 1, value=schedule.at(step)) for step in range(0, schedule.total_steps, every))
    return [Curve(points=points, colour=INK, dashed=True)]
