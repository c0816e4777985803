"""Trials in one adapter bank beside PEFT models one by one, in the same call. Prints ratios and judges none of them.

python jobs/bench_bank/bench.py                    everything, about 15 minutes on 2 cores; writes results.json
python jobs/bench_bank/bench.py --quick            the same path in a few steps; its numbers mean nothing
python jobs/bench_bank/bench.py --device cuda      shapes of 0.5B and 8B in bf16; writes results_cuda.json
python jobs/bench_bank/bench.py --render-readme    README.md's table from results.json
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from tables import describe_machine, print_tables, render_readme

from ftray.cli.process import quieten_libraries

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "peft")
RESULTS = {"cpu": "results.json", "cuda": "results_cuda.json"}
PARTS = ("training", "serving", "memory")


def main() -> None:
    asked = read_arguments()
    if asked.child is not None:
        print(json.dumps(measure(json.loads(asked.child))))
        return
    if asked.render_readme:
        render_readme(
            json.loads((asked.output or HERE / "results.json").read_text(encoding="utf-8")), HERE / "README.md"
        )
        return
    settings = read_settings(asked)
    # What ftray sets for itself and its workers; both sides of the comparison have it.
    quieten_libraries()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    output = asked.output or (None if asked.quick else HERE / RESULTS[asked.device])
    results: dict[str, Any] = {
        "schema": "ftray/bench_bank/1",
        "quick": asked.quick,
        "device": asked.device,
        "started_at": started_at,
        "machine": describe_machine(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": settings,
    }
    for part in asked.parts:
        results[part] = PART_OF[part](settings)
        results["ended_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        if output is not None:
            # After every part: what was measured is not lost with what fails.
            output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_tables(results)


def read_arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: shows that it works")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="only these")
    parser.add_argument("--output", type=Path, help="default: results.json beside this file; with --quick: none")
    parser.add_argument("--render-readme", action="store_true", help="fill README.md from earlier results")
    parser.add_argument("--child", help="internal: one measurement, as JSON")
    return parser.parse_args()


def read_settings(asked: Namespace) -> dict[str, Any]:
    everything = yaml.safe_load((HERE / "settings.yaml").read_text(encoding="utf-8"))
    settings = {**everything[asked.device], **{key: everything[key] for key in ("ranks", "slots", "seed")}}
    settings["device"] = asked.device
    if asked.quick:
        quick = everything["quick"]
        settings |= {key: quick[key] for key in ("repeats", "seconds", "slots", "threads")}
        settings["serving"] |= {"new_tokens": quick["new_tokens"], "rows": 2}
        settings["memory"] |= {"slots": 2}
    return settings


def training(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Time every shape, load, number of threads and number of slots, each combination in a process of its own."""
    records = []
    for shape in settings["shapes"]:
        for load in settings["loads"]:
            for threads in settings["threads"]:
                for slots in settings["slots"]:
                    what = {"part": "training", "shape": shape, "load": load, "slots": slots}
                    record = {**what, "threads": threads, **child(what, settings, threads=threads)}
                    del record["part"]
                    records.append(record)
                    said = (
                        f"failed: {record['failed']}"
                        if "failed" in record
                        else (
                            f"PEFT {record['peft_ms']:7.1f} ms, bank {record['bank_ms']:7.1f} ms a trial's step, "
                            f"{record['ratio']:.2f}x"
                        )
                    )
                    print(f"{shape} {load} {threads} threads, {slots:2} slots: {said}", flush=True)
    return records


def serving(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Time batches of different adapters."""
    return [
        {"threads": threads, **child({"part": "serving"}, settings, threads=threads)} for threads in settings["threads"]
    ]


def memory(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the peak memory of both sides with all trials at once, beside a process that holds the base alone."""
    sides = {side: child({"part": "memory", "side": side}, settings, threads=1) for side in ("base", "bank", "peft")}
    return {**settings["memory"], **{f"{side}_bytes": record["bytes"] for side, record in sides.items()}}


PART_OF = {"training": training, "serving": serving, "memory": memory}


def child(what: dict[str, Any], settings: dict[str, Any], *, threads: int) -> dict[str, Any]:
    """Measure in a fresh process with so many threads."""
    order = json.dumps({**what, "settings": settings})
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "ignore::FutureWarning", __file__, "--child", order]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        if what["part"] != "training" or settings["device"] == "cpu":
            raise SystemExit(f"the measurement {what} failed with exit code {done.returncode}")
        # On a GPU the largest cases may not fit; the others are still worth having.
        return {"failed": f"exit code {done.returncode}"}
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Do one measurement in this process."""
    import torch
    from sides import Packed, Separate, make_base, measure_serving, measure_training

    from ftray.model.base import recompute_activations
    from ftray.train.memory import keep_freed_memory

    keep_freed_memory()
    settings, part = order["settings"], order["part"]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    chosen = order.get("shape") or settings[part]["shape"]
    shape, precision, ranks = settings["shapes"][chosen], settings["precision"], settings["ranks"]
    base = make_base(shape, device=settings["device"], precision=precision, seed=settings["seed"])
    if part == "training" and chosen in settings["recompute"]:
        recompute_activations(base)
    timing = {"repeats": settings["repeats"], "seconds": settings["seconds"]}
    if part == "training":
        what = {"slots": order["slots"], "load": order["load"], "models": settings["separate_models"]}
        return measure_training(base, ranks=ranks, precision=precision, **what, **timing)
    if part == "serving":
        what = {key: value for key, value in settings["serving"].items() if key != "shape"}
        return {"shape": chosen, **measure_serving(base, ranks=ranks, **what, **timing)}
    load, slots = settings["memory"]["load"], settings["memory"]["slots"]
    if order["side"] == "bank":
        Packed(base, ranks=ranks, slots=slots, load=load, precision=precision).step()
    elif order["side"] == "peft":
        separate = Separate(base, ranks=ranks, models=slots, load=load, precision=precision)
        for _ in separate.models:
            separate.step()
    if settings["device"] == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated()}
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    main()
