"""The bank engine beside PEFT: throughput of mixed arms, what adapters cost, what loading one takes.

FTRAY_SHARED=../shared python jobs/bench_serve/bench.py     everything, about 4 minutes on 2 cores; writes results.json
python jobs/bench_serve/bench.py --quick                    the same path in a few steps; its numbers mean nothing
python jobs/bench_serve/bench.py --render-readme            README.md's tables from results.json

Prints ratios and judges none of them; stops where an answer is not its model's own. The endpoint has `endpoint.py`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from tables import describe_machine, print_tables, render_readme

from ftray.cli.process import quieten_libraries

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "peft")
PARTS = ("throughput", "adapters", "hot_load")


def main() -> None:
    asked = read_arguments()
    if asked.child is not None:
        print(json.dumps(measure(json.loads(asked.child))))
        return
    file = asked.output or HERE / "results.json"
    if asked.render_readme:
        render_readme(json.loads(file.read_text(encoding="utf-8")), HERE / "README.md")
        return
    settings = read_settings(asked)
    # What ftray sets for itself and its workers; all sides of the comparison have it.
    quieten_libraries()
    results: dict[str, Any] = {
        "schema": "ftray/bench_serve/1",
        "quick": asked.quick,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": settings,
    }
    for part in asked.parts:
        results[part] = [record for threads in settings["threads"][part] for record in child(part, settings, threads)]
        results["ended_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        if not asked.quick or asked.output is not None:
            # After every part: what was measured is not lost with what fails.
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_tables(results)


def read_arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: shows that it works")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="only these")
    parser.add_argument("--output", type=Path, help="default: results.json beside this file; with --quick: none")
    parser.add_argument("--render-readme", action="store_true", help="fill README.md from earlier results")
    parser.add_argument("--child", help="internal: one measurement, as JSON")
    return parser.parse_args()


def read_settings(asked: Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((HERE / "settings.yaml").read_text(encoding="utf-8"))
    quick = settings.pop("quick")
    if asked.quick:
        settings["hot_load"] |= quick.pop("hot_load")
        settings["adapters"] |= quick.pop("adapters")
        settings |= quick
    return settings


def child(part: str, settings: dict[str, Any], threads: int) -> list[dict[str, Any]]:
    """Measure in a fresh process with so many threads."""
    order = json.dumps({"part": part, "settings": settings})
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "ignore::FutureWarning", __file__, "--child", order]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"measuring {part} failed with exit code {done.returncode}")
    records: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    for record in records:
        print(f"{part}, {threads} threads: {json.dumps(record)[:300]}", file=sys.stderr, flush=True)
    return [{"threads": threads, **record} for record in records]


def measure(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Do one part in this process."""
    import torch
    from sides import World, make_requests, measure_adapters, measure_hot_load, measure_throughput

    from ftray.train.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    part, settings = order["part"], order["settings"]
    real = Path(os.environ.get("FTRAY_SHARED", "nowhere")) / "models"
    with tempfile.TemporaryDirectory() as folder:

        def world(shape: str, ranks: list[int]) -> World:
            return World(Path(folder), settings["shapes"][shape], ranks=ranks, real=real / shape, seed=settings["seed"])

        if part == "adapters":
            return [measure_adapters(world(settings[part]["shape"], settings["ranks"]), settings)]
        if part == "hot_load":
            return [measure_hot_load(world(settings[part]["shape"], [settings[part]["rank"]]), settings)]
        made = world("stories3M", settings["ranks"])
        return [
            {
                "load": name,
                **load,
                **measure_throughput(made, make_requests(settings, load["new_tokens"]), repeats=settings["repeats"]),
            }
            for name, load in settings["loads"].items()
        ]


if __name__ == "__main__":
    main()
