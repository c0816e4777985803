"""The same 16 configurations by ftray's shared base, by Ray's recipe and by a process for each. Judges nothing.

FTRAY_SHARED=../shared python jobs/bench_sweep/bench.py                  everything
FTRAY_SHARED=../shared python jobs/bench_sweep/bench.py --quick          the same path with 4 trials of a few steps
python jobs/bench_sweep/bench.py --render-readme                         README.md's tables from results.json
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from campaign import make_campaign, write_campaign
from sides import SIDES, Order, Run, run_side
from tables import describe_machine, print_tables, render_readme, summarise

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "peft", "ray")


def main() -> None:
    os.environ.setdefault("FTRAY_SHARED", str(HERE.parents[2] / "shared"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    asked = read_arguments()
    output = asked.output or (None if asked.quick else HERE / "results.json")
    if asked.render_readme:
        assert output is not None, "a --quick run has no results to render"
        render_readme(json.loads(output.read_text(encoding="utf-8")), HERE / "README.md")
        return
    settings = chosen(yaml.safe_load((HERE / "settings.yaml").read_text(encoding="utf-8")), asked)
    results: dict[str, Any] = {
        "schema": "ftray/bench_sweep/1",
        "quick": asked.quick,
        "command": shlex.join(["python", *sys.argv]),
        "started_at": now(),
        "machine": describe_machine(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": settings,
        "job": yaml.safe_load((HERE / "job.yaml").read_text(encoding="utf-8")),
    }
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as folder:
        kept = (asked.keep or Path(folder)).resolve()
        runs = [run.to_record() for run in all_runs(settings, asked.sides, kept, kept_only=asked.kept_only)]
    results |= {"ended_at": now(), "runs": runs, "summary": summarise(runs, settings)}
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_tables(results)


def read_arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 trials of a few steps: shows that it works")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES, help="only these")
    parser.add_argument("--cases", nargs="+", help="only these of the settings' cases")
    parser.add_argument("--schedulers", nargs="+", choices=("none", "asha"), help="only these")
    parser.add_argument("--repeats", type=int, help="how many times; default: the settings' number")
    parser.add_argument(
        "--keep", type=Path, help="keep runs and logs in this folder; campaigns that are there are not run again"
    )
    parser.add_argument("--kept-only", action="store_true", help="with --keep: run nothing, put together what is there")
    parser.add_argument("--output", type=Path, help="default: results.json beside this file; with --quick: none")
    parser.add_argument(
        "--render-readme", action="store_true", help="fill README.md from the output of an earlier call"
    )
    return parser.parse_args()


def chosen(settings: dict[str, Any], asked: Namespace) -> dict[str, Any]:
    """Return the settings of what was asked for."""
    quick = settings.pop("quick")
    if asked.quick:
        settings |= quick
    cases = asked.cases or list(settings["cases"])
    return settings | {
        "cases": {name: settings["cases"][name] for name in cases},
        "schedulers": asked.schedulers or settings["schedulers"],
        "repeats": asked.repeats or settings["repeats"],
    }


def all_runs(settings: dict[str, Any], sides: list[str], folder: Path, *, kept_only: bool) -> Iterator[Run]:
    """Run every campaign, the sides one after the other and their order turned round from repeat to repeat."""
    for case, of_case in settings["cases"].items():
        campaign = make_campaign(HERE / "job.yaml", of_case["sets"], settings)
        file = folder / f"{case}.json"
        write_campaign(campaign, file)
        for scheduler in settings["schedulers"]:
            for repeat in range(settings["repeats"]):
                order = Order(
                    case=case,
                    scheduler=scheduler,
                    repeat=repeat,
                    job_file=HERE / "job.yaml",
                    sets=of_case["sets"],
                    campaign_file=file,
                    campaign=campaign,
                    limit_seconds=settings["limit_seconds"],
                    folder=folder,
                )
                for side in sides if repeat % 2 == 0 else reversed(sides):
                    if not kept_only or record_of(side, order).exists():
                        yield told(kept_or_run(side, order))


def record_of(side: str, order: Order) -> Path:
    """Return where a run's record is kept."""
    return order.folder / f"{order.case}-{order.scheduler}-{order.repeat}-{side}.json"


def kept_or_run(side: str, order: Order) -> Run:
    """Return the run whose record is in the folder, else run it and put its record there."""
    file = record_of(side, order)
    if file.exists():
        return Run.from_record(json.loads(file.read_text(encoding="utf-8")))
    run = run_side(side, order)
    file.write_text(json.dumps(run.to_record()), encoding="utf-8")
    return run


def told(run: Run) -> Run:
    completed = sum(trial.completed for trial in run.trials)
    print(
        f"{run.case} {run.scheduler} {run.repeat} {run.side:9}: {run.wall_seconds:6.1f} s, "
        f"{completed} of {len(run.trials)} trials completed, {run.steps} steps, "
        f"{run.peak_total_bytes / 2**30:.2f} GiB, load before {run.load_average:.1f}",
        file=sys.stderr,
    )
    return run


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    main()
