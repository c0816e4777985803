"""ftray and TRL train the same job in alternation, each run in a fresh process. Prints ratios and judges none of them.

FTRAY_SHARED=../shared python jobs/bench_train/bench.py                  everything, about 25 minutes
FTRAY_SHARED=../shared python jobs/bench_train/bench.py --quick          the same path in a few steps
python jobs/bench_train/bench.py --render-readme                         README.md's tables from results.json
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import statistics
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from held_out import grade_adapter, write_rows
from profile_step import profile_step
from sides import Run, Task, run_ftray, run_trl
from tables import describe_machine, print_tables, render_readme, summarise

from ftray.job import load_job

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "ray", "deepspeed", "datasets")
MOST_REPEATED = 1.02


def main() -> None:
    os.environ.setdefault("FTRAY_SHARED", str(HERE.parents[2] / "shared"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    asked = read_arguments()
    output = asked.output or (None if asked.quick else HERE / "results.json")
    if asked.render_readme:
        assert output is not None, "a --quick run has no results to render"
        render_readme(json.loads(output.read_text(encoding="utf-8")), HERE / "README.md")
        return
    settings = yaml.safe_load((HERE / "settings.yaml").read_text(encoding="utf-8"))
    if asked.quick:
        settings = quickened(settings)
    settings["seeds"] = settings["seeds"][: asked.seeds]
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        bench = Bench(settings, folder=Path(asked.keep or folder))
        parts = {part: getattr(bench, part)() for part in asked.parts}
    results = {
        "schema": "ftray/bench_train/1",
        "quick": asked.quick,
        "command": shlex.join(["python", *sys.argv]),
        "started_at": started_at,
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": settings,
        "job": yaml.safe_load((HERE / "job.yaml").read_text(encoding="utf-8")),
        **parts,
    }
    results["summary"] = summarise(results)
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_tables(results)


def read_arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many of the settings' seeds")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: shows that it works")
    parser.add_argument(
        "--parts", nargs="+", default=PARTS, choices=PARTS, help="only these (comparison: needs choice)"
    )
    parser.add_argument("--keep", type=Path, help="keep runs and logs in this folder")
    parser.add_argument("--output", type=Path, help="default: results.json beside this file; with --quick: none")
    parser.add_argument(
        "--render-readme", action="store_true", help="fill README.md from the output of an earlier call"
    )
    return parser.parse_args()


PARTS = ("choice", "comparison", "overhead", "profile")


def quickened(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a few steps."""
    quick = settings["quick"]
    return {
        **settings,
        "seeds": settings["seeds"][: quick["seeds"]],
        "max_steps": quick["steps"],
        "choice": {"steps": quick["choice_steps"], "repeats": quick["repeats"]},
        "overhead": {**settings["overhead"], "steps": quick["overhead_steps"], "repeats": quick["repeats"]},
        "profile": {**settings["profile"], "steps": quick["profile_steps"]},
    }


class Bench:
    """The parts of the benchmark; each returns its part of results.json."""

    def __init__(self, settings: dict[str, Any], *, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.job_file = HERE / "job.yaml"
        self.best_trl: str = settings["trl"]["assumed"]

    def choice(self) -> dict[str, Any]:
        """Run every variant of both sides for some steps, in turn, and take TRL's fastest."""
        wanted = self.settings["choice"]
        task = self.task(self.settings["seeds"][0], wanted["steps"])
        trl = self.settings["trl"]
        starts: list[Callable[[], Run]] = [
            *(self.trl(task, name) for name in [*trl["variants"], *trl["explanations"]]),
            *(self.ftray(task, name) for name in self.settings["ftray"]["variants"]),
        ]
        runs = [told(start()) for _ in range(wanted["repeats"]) for start in starts]
        self.best_trl = max(
            trl["variants"],
            key=lambda name: statistics.median(
                run.tokens_per_second for run in runs if (run.side, run.variant) == ("trl", name)
            ),
        )
        return {"trl_variant": self.best_trl, "runs": [run.to_record() for run in runs]}

    def comparison(self) -> dict[str, Any]:
        """Run both sides in alternation, once per seed, and grade what they trained alike."""
        headline = self.settings["ftray"]["headline"]
        records = []
        for seed in self.settings["seeds"]:
            task = self.task(seed, self.settings.get("max_steps"))
            pair = [told(self.ftray(task, headline)()), told(self.trl(task, self.best_trl)())]
            assert len({run.steps for run in pair}) == 1, "the sides took other steps"
            # A distributed sampler repeats or leaves out a few rows, so that every process has equally many.
            most, least = max(run.tokens for run in pair), min(run.tokens for run in pair)
            assert most <= MOST_REPEATED * least or task.max_steps, f"the sides saw other tokens: {least} and {most}"
            for run in pair:
                records.append({**run.to_record(), **grade_adapter(self.job_file, Path(run.adapter))})
        return {"runs": records}

    def overhead(self) -> dict[str, Any]:
        """Run the reference in this process and one Ray Train + DeepSpeed worker in alternation."""
        wanted = self.settings["overhead"]
        task = self.task(self.settings["seeds"][0], wanted["steps"])
        runs = [
            told(self.ftray(task, name)()).to_record()
            for _ in range(wanted["repeats"])
            for pair in wanted["pairs"]
            for name in pair
        ]
        return {"runs": runs}

    def profile(self) -> dict[str, Any]:
        """Say where ftray's step spends its time."""
        return profile_step(self.job_file, **self.settings["profile"])

    def task(self, seed: int, max_steps: int | None) -> Task:
        loaded = load_job(self.job_file, sets=[f"seed={seed}"])
        written = write_rows(loaded, self.folder / f"rows-{seed}.jsonl")
        return Task(
            job_file=self.job_file,
            job=loaded.job,
            rows=written.file,
            seed=seed,
            total_steps=written.total_steps,
            max_steps=max_steps,
            folder=self.folder,
        )

    def ftray(self, task: Task, name: str) -> Callable[[], Run]:
        return lambda: run_ftray(task, name, self.settings["ftray"]["variants"][name])

    def trl(self, task: Task, name: str) -> Callable[[], Run]:
        trl = self.settings["trl"]
        variant = {**trl["variants"], **trl["explanations"]}[name]
        return lambda: run_trl(task, name, variant, trl["arguments"])


def told(run: Run) -> Run:
    print(
        f"{run.side:5} {run.variant:22} seed {run.seed}: {run.steps} steps, {run.step_milliseconds:7.1f} ms/step, "
        f"{run.tokens_per_second:7.0f} tokens/s, loss {run.first_loss:.2f} -> {run.last_loss:.3f}, "
        f"load before {run.load_average:.1f}",
        file=sys.stderr,
    )
    return run


if __name__ == "__main__":
    main()
