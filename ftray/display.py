"""Progress of long work on standard error: a live view on a terminal, lines elsewhere, nothing when quiet.

A display is fed the lines of metrics.jsonl, by whichever thread reads them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ftray.artifacts import read_json
from ftray.observe.countdown import Countdown
from ftray.observe.log import LEVELS, PROCESS, is_json
from ftray.summary import duration, shown

if TYPE_CHECKING:
    from ftray.preflight import Prepared

NAMES = {
    "train/loss": "loss",
    "train/learning_rate": "learning rate",
    "train/grad_norm": "gradient norm",
    "train/tokens_per_second": "tokens/s",
}


class Display(Protocol):
    """Where work says how far it is."""

    def __call__(self, line: dict[str, Any]) -> None:
        """Show a line of metrics.jsonl."""

    def on_plan(self, prepared: Prepared) -> None:
        """Show what is about to run."""

    def say(self, text: str) -> None:
        """Show what happens now."""

    def advance(self, done: int, total: int, detail: str = "") -> None:
        """Show how far work other than training is."""


@dataclass(slots=True)
class Course(Countdown):
    """How far a training is, and its last numbers."""

    metric: str
    logged: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    base_value: float | None = None

    def take(self, line: Mapping[str, Any], now: float) -> None:
        """Note a line."""
        Countdown.take(self, line, now)
        if line["kind"] == "step":
            self.logged = {name: line[key] for key, name in NAMES.items() if line.get(key) is not None}
        elif line["kind"] == "evaluation":
            self.validation = {key: line[key] for key in ("val/loss", "val/accuracy") if line.get(key) is not None}
            self.base_value = line.get("val/base_accuracy", self.base_value)

    def numbers(self) -> list[str]:
        """Return the last logged numbers, named."""
        return [f"{name} {_number(name, value)}" for name, value in self.logged.items()]

    def validated(self) -> str:
        """Return the last evaluation."""
        if not self.validation:
            return ""
        value = shown(self.metric, self.validation.get("val/accuracy"))
        base = "" if self.base_value is None else f" (base {shown(self.metric, self.base_value)})"
        return f"validation loss {self.validation.get('val/loss', float('nan')):.4f}, {self.metric} {value}{base}"


def _number(name: str, value: float) -> str:
    if name == "tokens/s":
        return f"{value:,.0f}"
    return f"{value:.2e}" if name == "learning rate" else f"{value:.4g}"


@dataclass(slots=True)
class Tenths:
    """Which tenth of some work is done: lines are for those."""

    last: int = 0

    def passed(self, done: int, total: int) -> bool:
        """Return whether it is another one than the last time."""
        before, self.last = self.last, 10 * done // max(1, total)
        return self.last != before


class PlainLines:
    """One line per log line, evaluation and event."""

    def __init__(self, console: Console, metric: str) -> None:
        self._console = console
        self._course = Course(metric)
        self._tenths = Tenths()

    def __call__(self, line: dict[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        now = time.monotonic()
        self._course.take(line, now)
        where = f"step {line['step']}/{self._course.total}" if self._course.total else f"step {line['step']}"
        if line["kind"] == "event":
            self.say(f"{where}  {line.get('message', line['event'])}")
        elif line["kind"] == "evaluation":
            self.say(f"{where}  {self._course.validated()}")
        else:
            left = self._course.seconds_left(now)
            ending = [f"{duration(left)} left"] if left else []
            self.say("  ".join([where, *self._course.numbers(), *ending]))

    def on_plan(self, prepared: Prepared) -> None:
        """Show what is about to run."""
        self._course.total = prepared.plan.total_steps
        for line in plan_lines(prepared):
            self.say(line)

    def say(self, text: str) -> None:
        """Show what happens now."""
        self._console.print(Text(text), soft_wrap=True)

    def advance(self, done: int, total: int, detail: str = "") -> None:
        """Show how far work other than training is."""
        if self._tenths.passed(done, total):
            self.say(f"{done}/{total}  {detail}".rstrip())


class JsonLines:
    """A JSON object for each log line, evaluation and event: those that rank 0 reports."""

    def __init__(self, metric: str) -> None:
        self._course = Course(metric)
        self._tenths = Tenths()

    def __call__(self, line: dict[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        now = time.monotonic()
        self._course.take(line, now)
        event = str(line.get("event", line["kind"]))
        # Lists are for reports; a log has the newest number.
        numbers = {key: value for key, value in line.items() if "/" in key and not isinstance(value, list)}
        PROCESS.write(
            str(line.get("message", line.get("event", line["kind"]))),
            level=LEVELS.get(event, "info"),
            event=event.split()[0],
            worker=0,
            step=line["step"],
            total_steps=self._course.total or None,
            epoch=line["epoch"],
            attempt=line.get("attempt"),
            seconds_left=self._course.seconds_left(now),
            **numbers,
        )

    def on_plan(self, prepared: Prepared) -> None:
        """Show what is about to run."""
        self._course.total = prepared.plan.total_steps
        PROCESS.bind(sweep=None, run=prepared.run_id[:12], job=read_json(prepared.run.job)["job"]["name"])
        for line in plan_lines(prepared):
            self.say(line)

    def say(self, text: str) -> None:
        """Show what happens now."""
        PROCESS.write(text, event="note")

    def advance(self, done: int, total: int, detail: str = "") -> None:
        """Show how far work other than training is."""
        if self._tenths.passed(done, total):
            PROCESS.write(detail, event="progress", done=done, total=total)


class LiveView:
    """A bar with the last numbers below it; evaluations and events stay above, as lines."""

    def __init__(self, console: Console, metric: str) -> None:
        self._console = console
        self._course = Course(metric)
        self._activity = ""
        self._bar: tuple[int, int, str] | None = None
        self._spinner = Spinner("dots", style="cyan")

    def __call__(self, line: dict[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        self._bar = None
        self._course.take(line, time.monotonic())
        where = f"step {line['step']:>{len(str(self._course.total))}}"
        if line["kind"] == "event":
            self._keep(where, line.get("message", line["event"]))
        elif line["kind"] == "evaluation":
            self._keep(where, self._course.validated())
        last = line["kind"] == "evaluation" and line["step"] >= self._course.total
        self._activity = "Choosing the checkpoint, comparing base and tuned model" if last else "Training"

    def on_plan(self, prepared: Prepared) -> None:
        """Show what is about to run."""
        self._course.total = prepared.plan.total_steps
        title, *lines = plan_lines(prepared)
        self._console.print(Text(title, style="bold"))
        for line in lines:
            self._console.print(Text(line, style="dim"))
        starting = "Loading the model" if prepared.plan.engine == "torch" else "Starting the workers"
        self._activity = starting

    def say(self, text: str) -> None:
        """Show what happens now."""
        self._activity, self._bar = text, None

    def advance(self, done: int, total: int, detail: str = "") -> None:
        """Show how far work other than training is."""
        self._bar = (done, total, detail)

    def _keep(self, where: str, text: str) -> None:
        self._console.print(Text.assemble((where, "dim"), "  ", text))

    def render(self) -> RenderableType:
        """Return the live part."""
        course = self._course
        self._spinner.update(text=Text(self._activity, style="bold"))
        if self._bar is not None:
            done, total, detail = self._bar
            return Group(self._spinner, _bar(done, total, detail))
        if course.first_step is None:
            return self._spinner
        left = course.seconds_left(time.monotonic())
        ending = f"{duration(left)} left" if left else ""
        return Group(
            self._spinner,
            _bar(course.step, course.total, ending),
            Text("   ".join(course.numbers())),
            Text(course.validated(), style="dim"),
        )


def _bar(done: int, total: int, detail: str) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row(ProgressBar(total=max(1, total), completed=done, width=40), f"{done}/{total}", Text(detail))
    return table


def plan_lines(prepared: Prepared) -> list[str]:
    """Return what is about to run, in a few lines: the run, its data, its steps, what to know."""
    plan, datasets = prepared.plan, prepared.datasets
    count = f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"
    workers = "in this process" if plan.engine == "torch" else f"{count}, DeepSpeed stage {plan.stage}"
    counts = {
        "training": datasets.num_task_rows,
        "replay": len(datasets.replay.rows) if datasets.replay else 0,
        "validation": len(datasets.validation),
        "test": len(datasets.test or []),
        **{name: len(rows) for name, rows in datasets.probes.items()},
    }
    rows = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    lines = [
        f"{prepared.run.root.name}: {plan.method}, {plan.precision}, {workers}",
        f"rows: {rows}; {plan.data.train_tokens:,} training tokens, {plan.data.train_labels:,} of them learned",
        f"steps: {plan.total_steps} of {plan.batch_size} examples, evaluated every {plan.evaluate_every}",
    ]
    if datasets.decontaminated:
        lines.append(f"dropped: {datasets.decontaminated} training rows that also stand in the held-out data")
    if datasets.dropped:
        lines.append(f"dropped: {len(datasets.dropped)} rows that cannot be used")
    checks = prepared.audit.to_record()["checks"]
    lines += [f"warning: {one['name']}: {one['fix']}" for one in checks if one["status"] == "warn"]
    accepted = [one for one in checks if one["status"] == "fail" and one["accepted"]]
    lines += [f"accepted: {one['name']}: {one['accepted']}" for one in accepted]
    return [*lines, *(f"note: {note}" for note in datasets.notes)]


@contextmanager
def open_display(*, quiet: bool, metric: str = "accuracy", console: Console | None = None) -> Iterator[Display]:
    """Yield the display that fits standard error; `metric` is the name of the validation value."""
    console = console or Console(stderr=True, highlight=False)
    if quiet:
        console.quiet = True
    if is_json() and not quiet:
        yield JsonLines(metric)
    elif quiet or not console.is_terminal:
        yield PlainLines(console, metric)
    else:
        view = LiveView(console, metric)
        with Live(get_renderable=view.render, console=console, refresh_per_second=5, transient=True):
            yield view
