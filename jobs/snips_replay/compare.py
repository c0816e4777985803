"""What replay buys: the job without it, with several fractions of it, and with more texts; accuracy and forgetting.

python jobs/snips_replay/compare.py           # runs the job, writes comparison.json, draws comparison.svg
python jobs/snips_replay/compare.py --draw    # draws comparison.svg from comparison.json again

Runs that are finished are not repeated: their results are read.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from ftray.artifacts import read_json, write_json
from ftray.cli.process import quieten_libraries

HERE = Path(__file__).parent

TICKS = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """How much is rehearsed, from how many sampled texts."""

    fraction: float
    texts: int

    @property
    def setting(self) -> str:
        if not self.texts:
            return "data.replay=null"
        return f"data.replay={{sample_base: {self.texts}, fraction: {self.fraction}}}"


ARMS = (
    Arm(fraction=0.0, texts=0),
    Arm(fraction=0.1, texts=300),
    Arm(fraction=0.25, texts=300),
    Arm(fraction=0.5, texts=300),
    Arm(fraction=0.5, texts=900),
)
KEPT = ("run_id", "status", "verdict", "steps", "epochs", "tokens", "label_tokens", "seconds", "replay", "versions")


def main() -> None:
    quieten_libraries()
    from ftray.finetune import finetune
    from ftray.job import load_job

    runs = []
    for arm in ARMS:
        loaded = load_job(HERE / "job.yaml", sets=[arm.setting])
        result = finetune(loaded, display=lambda line: None, on_plan=lambda prepared: None)
        runs.append(describe(arm, result))
        print(f"{arm.setting}: {result['verdict']}", flush=True)
    record = {"job": "jobs/snips_replay/job.yaml", "cpus": os.cpu_count(), "runs": runs}
    write_json(HERE / "comparison.json", record)


def describe(arm: Arm, result: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a run, without the paths of this machine."""
    evaluation = read_json(Path(result["path"]) / "evaluation.json")
    (task,) = [one for one in evaluation["tasks"] if one["role"] == "task"]
    return {
        "fraction": arm.fraction,
        "texts": arm.texts,
        **{key: result[key] for key in KEPT},
        "task": {key: task[key] for key in ("metric", "n", "base", "tuned")},
        "probes": [
            {key: one[key] for key in ("name", "metric", "n", "base", "tuned", "bits_per_byte_change")}
            for one in evaluation["tasks"]
            if one["role"] == "general"
        ],
        "max_bits_per_byte_increase": evaluation["forgetting"]["max_bits_per_byte_increase"],
    }


def draw() -> None:
    """Draw accuracy against forgetting, from comparison.json alone; the same numbers give the same file."""
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "snips_replay", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    runs = read_json(HERE / "comparison.json")["runs"]
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for run in runs:
        tuned = run["task"]["tuned"]
        # The probe that suffers most: the verdict looks at each by itself.
        forgotten = max(probe["bits_per_byte_change"] for probe in run["probes"])
        errors = [[tuned["value"] - tuned["low"]], [tuned["high"] - tuned["value"]]]
        axes.errorbar(forgotten, tuned["value"], yerr=errors, fmt="o", color="#1f5fbf", capsize=3)
        label = f"{run['fraction']:.0%}, {run['texts']} texts" if run["texts"] else "no replay"
        axes.annotate(label, (forgotten, tuned["high"]), xytext=(0, 5), textcoords="offset points", ha="center")
    limit = runs[0]["max_bits_per_byte_increase"]
    axes.axvline(limit, color="#b0342c", linestyle="--", linewidth=1)
    axes.text(limit, 0.02, " limit", color="#b0342c", transform=axes.get_xaxis_transform())
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xlabel("forgetting: bits per byte that the worse story probe rose by (logarithmic)")
    axes.set_ylabel(f"{runs[0]['task']['metric']} on {runs[0]['task']['n']} test rows")
    axes.margins(x=0.2, y=0.2)
    axes.grid(alpha=0.2)
    figure.savefig(HERE / "comparison.svg", metadata={"Date": None})


if __name__ == "__main__":
    if sys.argv[1:] != ["--draw"]:
        main()
    draw()
