"""The leaderboard of a running campaign on standard error: a live table on a terminal, lines elsewhere.

It is fed the results that trials report and the lines of the ledger, by the driver's thread.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ftray.campaign import Config, TrialResult
from ftray.evaluate.config import LOWER_IS_BETTER
from ftray.observe.log import PROCESS, is_json
from ftray.summary import duration, setting, shown

RUNNING = "running"
STATES = ("completed", "pruned", "diverged", "failed", "budget")
STYLES = {
    RUNNING: "cyan",
    "completed": "green",
    "pruned": "dim",
    "diverged": "red",
    "failed": "red",
    "budget": "yellow",
}
MOST_ROWS = 10
SUMMARY_EVERY_SECONDS = 60.0


class Leaderboard(Protocol):
    """Where a campaign says how far it is."""

    def say(self, text: str) -> None:
        """Show what happens now."""

    def on_plan(self, plan: Mapping[str, Any]) -> None:
        """Show what is about to run.

        `plan` has sweep_id, name, trials, mode, mode_reason, searcher and scheduler (and `_reason` of both), slots,
        workers and notes; sweep_id, name and trials have to be there.
        """

    def remember(self, trial: TrialResult) -> None:
        """Take a trial that had ended before the command began: it counts, and is no news."""

    def on_result(self, trial_id: str, config: Config, result: Mapping[str, Any]) -> None:
        """Take what a trial reports at an evaluation; its first result shows that it started."""

    def on_end(self, trial: TrialResult) -> None:
        """Take a trial that has ended."""


@dataclass(slots=True)
class Entry:
    """One trial."""

    trial_id: str
    config: Config
    state: str = RUNNING
    value: float | None = None
    """The best value so far."""
    step: int = 0
    epoch: float = 0.0
    tokens: int = 0

    def settings(self) -> str:
        """Return its configuration in a line."""
        return " ".join(f"{name}={setting(value)}" for name, value in self.config.items())


@dataclass(slots=True)
class Standing:
    """Every trial so far, and the order they are in."""

    metric: str
    total: int = 0
    began: float = field(default_factory=time.monotonic)
    entries: dict[str, Entry] = field(default_factory=dict)

    def take(self, trial_id: str, config: Config, result: Mapping[str, Any]) -> bool:
        """Note a report; return whether it is the trial's first."""
        is_new = trial_id not in self.entries
        entry = self.entries.setdefault(trial_id, Entry(trial_id, config))
        entry.value = _finite(result["best_validation_accuracy"])
        entry.step, entry.epoch, entry.tokens = result["step"], result["epoch"], result["tokens"]
        return is_new

    def end(self, trial: TrialResult) -> Entry:
        """Note the end of a trial; a seed of the winner is no candidate, and is in no list."""
        entry = Entry(trial.trial_id, trial.config, state=trial.state, epoch=trial.epochs, tokens=trial.tokens)
        entry.step = trial.steps
        entry.value = _finite(trial.best.validation_accuracy) if trial.best else None
        if trial.role == "search":
            self.entries[trial.trial_id] = entry
        else:
            self.entries.pop(trial.trial_id, None)
        return entry

    def ranked(self) -> list[Entry]:
        """Return the trials, the best first; those without a value last."""
        sign = 1 if self.metric in LOWER_IS_BETTER else -1
        entries = list(self.entries.values())
        return sorted(entries, key=lambda one: math.inf if one.value is None else sign * one.value)

    def ended(self) -> int:
        """Return how many trials have ended."""
        return sum(entry.state != RUNNING for entry in list(self.entries.values()))

    def counts(self) -> str:
        """Say how many trials have ended, how, and how many run."""
        states = Counter(entry.state for entry in list(self.entries.values()))
        ended = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
        total = f" of {self.total}" if self.total else ""
        running = f", {states[RUNNING]} running" if states[RUNNING] else ""
        return f"{self.ended()}{total} trials ended" + (f" ({ended})" if ended else "") + running

    def best(self) -> str:
        """Say what the best value is, and whose; empty before there is one."""
        first = next(iter(self.ranked()), None)
        if first is None or first.value is None:
            return ""
        return f"best {self.metric} {shown(self.metric, first.value)}: {first.settings()}"

    def elapsed(self) -> str:
        """Return the time since it was opened."""
        return duration(time.monotonic() - self.began)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


class PlainBoard:
    """One line when a trial starts, one when it ends, and a summary now and then."""

    def __init__(self, console: Console, metric: str) -> None:
        self._console = console
        self._standing = Standing(metric)
        self._summed_at = time.monotonic()
        self._summed_tenth = 0

    def say(self, text: str) -> None:
        """Show what happens now."""
        self._console.print(Text(text), soft_wrap=True)

    def on_plan(self, plan: Mapping[str, Any]) -> None:
        """Show what is about to run."""
        self._standing.total = plan["trials"]
        for line in plan_lines(plan):
            self.say(line)

    def remember(self, trial: TrialResult) -> None:
        """Take a trial that had ended before the command began."""
        self._standing.end(trial)

    def on_result(self, trial_id: str, config: Config, result: Mapping[str, Any]) -> None:
        """Take what a trial reports."""
        if self._standing.take(trial_id, config, result):
            self.say(f"trial {trial_id} runs: {self._standing.entries[trial_id].settings()}")
        if time.monotonic() - self._summed_at > SUMMARY_EVERY_SECONDS:
            self._sum_up()

    def on_end(self, trial: TrialResult) -> None:
        """Take a trial that has ended."""
        entry = self._standing.end(trial)
        self.say(ended_line(entry, trial, self._standing.metric))
        tenth = 10 * self._standing.ended() // max(1, self._standing.total)
        if tenth > self._summed_tenth:
            self._summed_tenth = tenth
            self._sum_up()

    def _sum_up(self) -> None:
        self._summed_at = time.monotonic()
        standing = self._standing
        self.say("  ".join(filter(None, [standing.counts(), standing.best(), standing.elapsed()])))


class JsonBoard:
    """A JSON object for each result and each end of a trial."""

    def __init__(self, metric: str) -> None:
        self._standing = Standing(metric)

    def say(self, text: str) -> None:
        """Show what happens now."""
        PROCESS.write(text, event="note")

    def on_plan(self, plan: Mapping[str, Any]) -> None:
        """Show what is about to run."""
        self._standing.total = plan["trials"]
        PROCESS.bind(run=None, job=plan["name"], sweep=str(plan["sweep_id"])[:12])
        for line in plan_lines(plan):
            self.say(line)

    def remember(self, trial: TrialResult) -> None:
        """Take a trial that had ended before the command began."""
        self._standing.end(trial)

    def on_result(self, trial_id: str, config: Config, result: Mapping[str, Any]) -> None:
        """Take what a trial reports."""
        is_new = self._standing.take(trial_id, config, result)
        names = ("step", "epoch", "tokens", "validation_accuracy", "validation_loss", "train_loss", "prefix_of")
        told: dict[str, Any] = {name: result.get(name) for name in names}
        PROCESS.write(
            "evaluated",
            event="evaluation",
            trial=trial_id,
            config=config if is_new else None,
            **told,
        )

    def on_end(self, trial: TrialResult) -> None:
        """Take a trial that has ended."""
        entry = self._standing.end(trial)
        PROCESS.write(
            trial.reason or trial.state,
            level="error" if trial.state == "failed" else "info",
            event="ended",
            trial=trial.trial_id,
            step=trial.steps,
            state=trial.state,
            value=entry.value,
            seed=trial.seed,
            trials=self._standing.ended(),
            total_trials=self._standing.total,
        )


class LiveBoard:
    """A table of the best trials; those that end stay above it, as lines."""

    def __init__(self, console: Console, metric: str) -> None:
        self._console = console
        self._standing = Standing(metric)
        self._spinner = Spinner("dots", style="cyan")
        self._activity = ""

    def say(self, text: str) -> None:
        """Show what happens now."""
        self._activity = text

    def on_plan(self, plan: Mapping[str, Any]) -> None:
        """Show what is about to run."""
        self._standing.total = plan["trials"]
        title, *lines = plan_lines(plan)
        self._console.print(Text(title, style="bold"))
        for line in lines:
            self._console.print(Text(line, style="dim"))

    def remember(self, trial: TrialResult) -> None:
        """Take a trial that had ended before the command began."""
        self._standing.end(trial)

    def on_result(self, trial_id: str, config: Config, result: Mapping[str, Any]) -> None:
        """Take what a trial reports."""
        self._standing.take(trial_id, config, result)
        self._activity = "Trials are training"

    def on_end(self, trial: TrialResult) -> None:
        """Take a trial that has ended."""
        entry = self._standing.end(trial)
        self._console.print(Text(ended_line(entry, trial, self._standing.metric), style="dim"))

    def render(self) -> RenderableType:
        """Return the live part."""
        standing = self._standing
        self._spinner.update(text=Text(self._activity, style="bold"))
        if not standing.entries:
            return self._spinner
        grid = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, standing.total), completed=standing.ended(), width=40)
        grid.add_row(bar, Text(standing.counts()), Text(standing.elapsed(), style="dim"))
        return Group(self._table(), self._spinner, grid)

    def _table(self) -> Table:
        standing = self._standing
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        table.add_column("#", justify="right")
        for name in (standing.metric, "epoch", "tokens"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("configuration", overflow="ellipsis", no_wrap=True)
        ranked = standing.ranked()
        for number, entry in enumerate(ranked[:MOST_ROWS], start=1):
            table.add_row(
                str(number),
                Text(shown(standing.metric, entry.value), style="bold" if number == 1 else ""),
                f"{entry.epoch:.2f}",
                f"{entry.tokens:,}",
                Text(entry.state, style=STYLES[entry.state]),
                Text(entry.settings()),
            )
        if len(ranked) > MOST_ROWS:
            table.add_row("", "", "", "", "", Text(f"and {len(ranked) - MOST_ROWS} more", style="dim"))
        return table


def ended_line(entry: Entry, trial: TrialResult, metric: str) -> str:
    """Return what is said of a trial that has ended."""
    value = shown(metric, entry.value)
    seed = f" again with seed {trial.seed}" if trial.role == "seed" else ""
    at = f" at step {trial.best.step}" if trial.best else ""
    who = f"trial {trial.trial_id}{' (default)' if trial.is_default else ''}{seed}"
    return f"{who} {trial.state}: {metric} {value}{at}, {trial.epochs:.2f} epochs; {entry.settings()}; {trial.reason}"


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return what is about to run, in a few lines."""
    lines = [f"{plan['name']}: {plan['trials']} trials"]
    for name in ("mode", "searcher", "scheduler"):
        if plan.get(name):
            reason = plan.get(f"{name}_reason")
            lines.append(f"{name}: {plan[name]}" + (f" ({reason})" if reason else ""))
    if plan.get("workers"):
        slots = f", {plan['slots']} trials on each at a time" if plan.get("slots") else ""
        lines.append(f"trainers: {plan['workers']}{slots}")
    return [*lines, *(f"note: {note}" for note in plan.get("notes", ()))]


@contextmanager
def open_leaderboard(*, quiet: bool, metric: str, console: Console | None = None) -> Iterator[Leaderboard]:
    """Yield the leaderboard that fits standard error; `metric` is the objective. Quiet shows nothing."""
    console = console or Console(stderr=True, highlight=False)
    if quiet:
        console.quiet = True
    if is_json() and not quiet:
        yield JsonBoard(metric)
    elif quiet or not console.is_terminal:
        yield PlainBoard(console, metric)
    else:
        board = LiveBoard(console, metric)
        with Live(get_renderable=board.render, console=console, refresh_per_second=4, transient=True):
            yield board
