"""Planted contamination: how much of each kind the gate finds, and what it says of the pair as it is.

FTRAY_SHARED=../shared python jobs/bench_contamination/bench.py

About a minute; writes results.json and README.md's tables.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plant import KINDS, Pair, load_pair, plant, search
from rich.console import Console

from ftray.audit.overlap import KINDS as CHECKS

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from bench_report import Grid, fill_readme  # noqa: E402  (the folder above is where benchmarks share it)

PAIRS = ("snips-joined", "clinc150-joined", "snips", "clinc150", "gsm8k")
ROWS = 200
SEEDS = (1, 2, 3)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=list(PAIRS))
    asked = parser.parse_args()
    shared = Path(os.environ.get("FTRAY_SHARED", HERE.parent.parent.parent / "shared"))
    results: dict[str, Any] = {
        "schema": "ftray/bench_contamination/1",
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows_planted": ROWS,
        "seeds": list(SEEDS),
        "pairs": {name: measure(load_pair(shared, name)) for name in asked.data},
    }
    grids = tables(results)
    for grid in grids:
        Console().print(grid.to_rich())
    if asked.data == list(PAIRS):
        (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        fill_readme(HERE / "README.md", "\n\n".join(grid.to_markdown() for grid in grids))


def measure(pair: Pair) -> dict[str, Any]:
    """Return what is found in the pair as it is, and the recall of each kind planted into rows that were clean."""
    held = search(pair).held
    clean = {position for position, row in enumerate(held) if not row.seen}
    kinds = {}
    for name, kind in KINDS.items():
        runs = [plant(pair, kind, rows=ROWS, seed=seed, clean=clean) for seed in SEEDS]
        by = {check: sum(run.by.get(check, 0) for run in runs) for check in CHECKS}
        kinds[name] = {"planted": sum(run.planted for run in runs), "found": sum(run.found for run in runs), "by": by}
    return {
        "train": len(pair.train),
        "test": len(pair.test),
        "as_it_is": {
            "flagged": len(held) - len(clean),
            **{check: sum(check in row.seen for row in held) for check in CHECKS},
        },
        "kinds": kinds,
    }


def tables(results: dict[str, Any]) -> list[Grid]:
    pairs = results["pairs"]
    recall = [
        (kind, *(_share(pair["kinds"][kind]["found"], pair["kinds"][kind]["planted"]) for pair in pairs.values()))
        for kind in KINDS
    ]
    as_it_is = [
        (
            name,
            f"{pair['train']:,}",
            f"{pair['test']:,}",
            *(_count(pair["as_it_is"][check], pair["test"]) for check in (*CHECKS, "flagged")),
        )
        for name, pair in pairs.items()
    ]
    return [
        Grid(title="Planted rows found", header=("kind", *pairs), rows=recall),
        Grid(title="The pairs as they are", header=("pair", "train", "test", *CHECKS, "any"), rows=as_it_is),
    ]


def _share(found: int, planted: int) -> str:
    return f"{found / planted:.1%} of {planted}" if planted else "none to plant"


def _count(count: int, rows: int) -> str:
    return f"{count} ({count / rows:.2%})"


if __name__ == "__main__":
    main()
