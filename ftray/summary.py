"""What a run or an evaluation came to, for people: the verdict first, then the numbers, then what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ftray.artifacts import RunDirectory, read_json

if TYPE_CHECKING:
    from rich.console import Console

VERDICTS = {
    "ship": ("ship", "bold green"),
    "do_not_ship": ("do not ship", "bold red"),
    "inconclusive": ("inconclusive", "bold yellow"),
    "none": ("no verdict", "bold"),
}
STATUS_STYLES = {
    "damaged": "red",
    "completed": "green",
    "early_stopped": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "failed": "red",
}
SHARES = frozenset({
    "exact_match", "choice", "token_f1", "macro_f1", "json_valid", "json_fields", "rouge_l", "instructions",
    "format_valid",
})  # fmt: skip
WORSE = {
    "right_or_wrong": "general items forgotten",
    "score": "general scores fell by more than 0.1",
    "likelihood": "general texts cost over a tenth more bits",
}


def show_result(result: Mapping[str, Any], console: Console, *, command: str) -> None:
    """Print a run's end; `command` is what goes on with it."""
    run = RunDirectory(Path(result["path"]))
    if result["status"] in ("failed", "interrupted"):
        _show_unfinished(result, console, command)
        return
    console.print()
    _show_verdict(result["verdict"], result["verdict_reasons"], console, title=run.root.name)
    evaluation = read_json(run.evaluation)
    console.print(_tasks_table(evaluation))
    selected = result["selected"]
    value, last = (shown(result_metric(result), selected[key]) for key in ("value", "last_value"))
    pairs = {
        "selected": f"step {selected['step']} of {result['steps']}, {value} on validation (last step {last})",
        "forgetting": _forgetting(evaluation),
        "time": _times(result),
        "adapter" if result["method"] == "lora" else "model": result["adapter"]["path"],
        **_findings(run),
        "report": str(run.report),
        "next": _next(result, run, command),
    }
    if result["status"] == "early_stopped":
        pairs = {"stopped": str(result.get("stopped_reason") or "early"), **pairs}
    if result["reused"]:
        pairs = {"reused": "this job has run before; nothing was trained (--fresh makes a new run)", **pairs}
    show_pairs(pairs, console)


def result_metric(result: Mapping[str, Any]) -> str:
    """Return the metric that chose the checkpoint."""
    return str(result["selected"]["metric"])


def show_evaluation(record: Mapping[str, Any], console: Console, *, title: str, place: Path) -> None:
    """Print an evaluation of base and tuned."""
    console.print()
    _show_verdict(record["verdict"]["decision"], record["verdict"]["reasons"], console, title=title)
    console.print(_tasks_table(record))
    paired = record["tasks"][0]["paired"]
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in paired.items()) if paired else ""
    seen = record.get("seen_in_training")
    pairs = {
        "rows right": counts,
        "forgetting": _forgetting(record),
        "caution": f"{seen} of these rows ask what the run was trained on" if seen else "",
        "written": str(place),
    }
    show_pairs(pairs, console)


def show_runs(runs: list[dict[str, Any]], console: Console, *, storage: Path | str) -> None:
    """Print the table of runs; whole folder names, so that they can be copied."""
    if not runs:
        console.print(f"No runs in {storage}. Try: ftray quickstart", markup=False, soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "status", "verdict", "updated"):
        table.add_column(name, no_wrap=True, overflow="ignore" if name == "run" else "ellipsis")
    for run in runs:
        verdict, style = VERDICTS[run["verdict"]]
        table.add_row(
            Path(run["path"]).name + (" (smoke)" if run["smoke"] else ""),
            Text(run["status"].replace("_", " "), style=STATUS_STYLES[run["status"]]),
            Text("" if run["verdict"] == "none" else verdict, style=style),
            _age(run["updated_at"]),
        )
    console.print(table)
    where = storage.resolve() if isinstance(storage, Path) else storage
    console.print(f"in {where}", style="dim", markup=False, soft_wrap=True)


def show_pairs(pairs: Mapping[str, str], console: Console) -> None:
    """Print names and values; a value is never wrapped, so that paths and commands can be copied."""
    width = max(len(name) for name in pairs)
    for name, value in pairs.items():
        if value:
            console.print(Text.assemble((f"  {name:<{width}}  ", "dim"), value), soft_wrap=True)


def _show_unfinished(result: Mapping[str, Any], console: Console, command: str) -> None:
    status, failure = result["status"], result["failure"]
    console.print()
    console.print(Text(f"{Path(result['path']).name}: {status}", style=f"bold {STATUS_STYLES[status]}"), soft_wrap=True)
    pairs = {"why": f"{failure['kind']}: {failure['message']}"} if failure else {}
    if failure:
        pairs |= _findings(RunDirectory(Path(result["path"])))
    pairs |= {"run": result["path"], "next": f"{command}   (goes on from the last checkpoint)"}
    show_pairs(pairs, console)


def _show_verdict(decision: str, reasons: list[str], console: Console, *, title: str) -> None:
    words, style = VERDICTS[decision]
    console.print(Text.assemble((f"{title}: ", "bold"), (words, style)), soft_wrap=True)
    for reason in reasons:
        if not console.is_terminal:
            console.print(f"  - {reason}", markup=False, soft_wrap=True)
            continue
        grid = Table.grid(padding=(0, 1))
        grid.add_row("  ·", Text(reason))
        console.print(grid)
    console.print()


def _tasks_table(evaluation: Mapping[str, Any]) -> Table:
    """Return base beside tuned, a row per task, with 95 % intervals."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("  task", no_wrap=True)
    for name in ("metric", "rows", "base", "tuned"):
        table.add_column(name, justify="right" if name == "rows" else "left")
    for task in evaluation["tasks"]:
        sign = 1 if task["higher_is_better"] else -1
        values = [task[side]["value"] for side in ("base", "tuned")]
        change = 0 if None in values else sign * (values[1] - values[0])
        style = "green" if change > 0 else "red" if change < 0 else ""
        table.add_row(
            f"  {evaluation['split'] if task['role'] == 'task' else task['name']}",
            task["metric"],
            str(task["n"]),
            _interval(task["metric"], task["base"]),
            Text(_interval(task["metric"], task["tuned"]), style=style),
        )
    table.add_row()
    return table


def _interval(metric: str, estimate: Mapping[str, Any]) -> str:
    return f"{shown(metric, estimate['value'])} ({shown(metric, estimate['low'])} to {shown(metric, estimate['high'])})"


def shown(metric: str, value: float | None) -> str:
    """Return a metric's value as people read it: shares as per cent."""
    if value is None:
        return "-"
    # Whatever lm-eval measures counts here as a score between 0 and 1.
    return f"{value:.1%}" if metric in SHARES or metric.startswith("lm_eval:") else f"{value:.4g}"


def setting(value: Any) -> str:
    """Return a field's value as a job file writes it, with four digits."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _findings(run: RunDirectory) -> dict[str, str]:
    """Return a line for each finding: what shows, what to do, and the settings that do it."""
    if not run.diagnosis.exists():
        return {}
    lines = {}
    for finding in read_json(run.diagnosis)["findings"]:
        sets = " ".join(f"--set {shlex.quote(change)}" for change in finding["set"])
        tried = f" Or in short: {sets}" if sets else ""
        lines[finding["kind"].replace("_", " ")] = f"{finding['symptom']} {finding['fix']}{tried}"
    return lines


def _forgetting(evaluation: Mapping[str, Any]) -> str:
    forgetting = evaluation["forgetting"]
    if forgetting is None:
        return "not measured (the job names no general probe)"
    passed = "within the job's limits" if forgetting["passed"] else "beyond the job's limits"
    parts = [
        f"{part['degraded']} of {part['n']} {WORSE[grading]} ({part['score']:.1%})"
        for grading, part in forgetting["parts"].items()
    ]
    return f"{', '.join(parts)}: {passed}"


def _times(result: Mapping[str, Any]) -> str:
    seconds = result["seconds"]
    parts = ", ".join(f"{name} {duration(seconds[name])}" for name in ("startup", "train", "evaluate", "checkpoint"))
    return f"{duration(seconds['total'])} ({parts}); {result['tokens_per_second']:,.0f} tokens/s in training"


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _next(result: Mapping[str, Any], run: RunDirectory, command: str) -> str:
    if result["smoke"]:
        return f"{command.replace(' --smoke', '')}   (all rows; this was a smoke run)"
    if result["test"] is None:
        return "add data.test to the job: without test rows there is no verdict"
    return f"ftray evaluate {run.root.name} --data FILE --storage {run.root.parent}   (rows it has never seen)"


def _age(moment: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        count = int(seconds // size)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
