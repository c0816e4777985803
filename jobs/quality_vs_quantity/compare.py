"""Few clean rows against ten times as many with wrong labels: the same steps, the same clean test rows.

FTRAY_SHARED=../shared python jobs/quality_vs_quantity/compare.py

A few minutes on one core; writes results.json and README.md's table. The noisy rows are written to a temporary folder.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from ftray.cli.process import quieten_libraries

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from bench_report import Grid, fill_readme  # noqa: E402  (the folder above is where jobs share it)

CLEAN_ROWS, MANY = 300, 10
WRONG_SHARES = (0.0, 0.2, 0.4, 0.6)
SEEDS = (0, 1, 2)
PLANTED = ("conflicts", "label_noise")


def main() -> None:
    quieten_libraries()
    shared = Path(os.environ.setdefault("FTRAY_SHARED", str(HERE.parent.parent.parent / "shared")))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        sides = [{"rows": CLEAN_ROWS, "wrong": 0.0, "runs": [run(shared, place, CLEAN_ROWS, 0.0, s) for s in SEEDS]}]
        for wrong in WRONG_SHARES:
            runs = [run(shared, place, CLEAN_ROWS * MANY, wrong, seed) for seed in SEEDS]
            sides.append({"rows": CLEAN_ROWS * MANY, "wrong": wrong, "runs": runs})
    results = {"schema": "ftray/quality_vs_quantity/1", "seeds": list(SEEDS), "sides": sides}
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    grid = table(results)
    Console().print(grid.to_rich())
    fill_readme(HERE / "README.md", grid.to_markdown())


def run(shared: Path, place: Path, rows: int, wrong: float, seed: int) -> dict[str, Any]:
    """Train on `rows` rows of which the share `wrong` has another row's label; return what the test rows say."""
    from ftray.finetune import finetune
    from ftray.job import load_job

    data = place / f"{rows}-{wrong}-{seed}.jsonl"
    if not data.exists():
        data.write_text("".join(json.dumps(row) + "\n" for row in planted(shared, rows, wrong, seed)), encoding="utf-8")
    sets = (
        f"data.train.path={data}", "data.train.limit=null", f"seed={seed}",
        # What is planted is for training to survive, not for the gate to refuse.
        f"audit.accept=[{', '.join(f'{{check: {name}, reason: planted on purpose}}' for name in PLANTED)}]",
    )  # fmt: skip
    loaded = load_job(HERE / "job.yaml", sets=sets, storage=str(place / "runs"))
    # Labels of validation rows are as wrong as those of training rows, as they would be.
    result = finetune(loaded, display=lambda line: None, on_plan=lambda prepared: None)
    assert result["status"] == "completed", result["failure"]
    print(f"{rows} rows, {wrong:.0%} wrong, seed {seed}: {result['test']['tuned']['value']:.1%}", flush=True)
    audit = json.loads((Path(result["path"]) / "audit.json").read_text(encoding="utf-8"))
    noise = next((check for check in audit["checks"] if check["name"] == "label_noise"), None)
    return {
        "seed": seed,
        "steps": result["steps"],
        "tuned": result["test"]["tuned"],
        "validation": result["selected"]["value"],
        "label_noise": None
        if noise is None
        else {"count": noise["count"], "rows": noise["rows"], "status": noise["status"]},
    }


def planted(shared: Path, rows: int, wrong: float, seed: int) -> list[dict[str, str]]:
    source = random.Random(f"{rows} {wrong} {seed}")
    text = (shared / "data/snips/train.jsonl").read_text(encoding="utf-8")
    everything = [json.loads(line) for line in text.splitlines()]
    labels = sorted({row["intent"] for row in everything})
    # The same seed takes the same rows: only the labels differ.
    chosen = random.Random(seed).sample(everything, rows)
    return [
        {
            "text": row["text"],
            "intent": source.choice([one for one in labels if one != row["intent"]])
            if source.random() < wrong
            else row["intent"],
        }
        for row in chosen
    ]


def table(results: dict[str, Any]) -> Grid:
    lines = []
    for side in results["sides"]:
        values = [one["tuned"]["value"] for one in side["runs"]]
        noise = [one["label_noise"] for one in side["runs"] if one["label_noise"] is not None]
        suspects = sum(one["count"] for one in noise) / max(1, sum(one["rows"] for one in noise))
        lines.append(
            (
                f"{side['rows']:,}",
                f"{side['wrong']:.0%}",
                f"{sum(values) / len(values):.1%}",
                f"{min(values):.1%} to {max(values):.1%}",
                f"{suspects:.1%}" if noise else "not looked for",
            )
        )
    header = ("rows", "wrong labels", "test accuracy, mean", "lowest to highest", "suspects by label_noise")
    steps = results["sides"][0]["runs"][0]["steps"]
    return Grid(title=f"{steps} steps of 16 rows each, {len(results['seeds'])} seeds", header=header, rows=lines)


if __name__ == "__main__":
    main()
