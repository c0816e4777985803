"""The dataset gate over 10 thousand to a million rows of about 100 tokens: seconds, memory, what it finds.

python jobs/bench_audit/bench.py [--rows 10000 100000 1000000]

The million takes minutes; writes results.json and README.md's table. Every run is a fresh process of `ftray audit`.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from bench_report import Grid, describe_machine, fill_readme  # noqa: E402  (shared by the benchmarks)

ROWS = (10_000, 100_000, 1_000_000)
HELD_OUT_ROWS = 2000
PROMPT_WORDS, ANSWER_WORDS = 55, 20
VOCABULARY = 20_000
SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
PLANTED = {"repeated": 0.01, "reworded": 0.005, "contaminated": 0.001}
GOAL_SECONDS, GOAL_BYTES = 20 * 60, 4 * 2**30


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    asked = parser.parse_args()
    results: dict[str, Any] = {
        "schema": "ftray/bench_audit/1",
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "goal": {"rows": ROWS[-1], "seconds": GOAL_SECONDS, "bytes": GOAL_BYTES},
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for rows in asked.rows:
            results["runs"].append(measure(Path(folder), rows))
            print(json.dumps(results["runs"][-1]), flush=True)
    grid = table(results)
    Console().print(grid.to_rich())
    if tuple(asked.rows) == ROWS:
        (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        fill_readme(HERE / "README.md", grid.to_markdown())


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Write the rows, audit them in a process of its own, and return what it took."""
    train, held_out, output = folder / f"{rows}.jsonl", folder / "held_out.jsonl", folder / "audit.json"
    planted = write_rows(train, held_out, rows)
    command = [sys.executable, "-m", "ftray", "audit", str(train), "--against", str(held_out), "--json", "--quiet"]
    began = time.perf_counter()
    with output.open("w") as stdout:
        process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command} ended with {process.returncode}"
    record = json.loads(output.read_text(encoding="utf-8"))
    size = train.stat().st_size
    train.unlink()
    return {
        "rows": rows,
        "file_bytes": size,
        "seconds": round(seconds, 1),
        "microseconds_per_row": round(seconds / rows * 1e6),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
        "planted": planted,
        "found": {check["name"]: check["count"] for check in record["checks"] if check["status"] != "skipped"},
    }


def write_rows(train: Path, held_out: Path, rows: int) -> dict[str, int]:
    """Write rows of random words by frequency, some of them planted; return how many of each kind."""
    source = random.Random(rows)
    words = [f"{a}{b}{c}" for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES][:VOCABULARY]

    cumulative = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(words))))

    def sentence(count: int) -> list[str]:
        return source.choices(words, cum_weights=cumulative, k=count)

    asked = [sentence(PROMPT_WORDS) for _ in range(HELD_OUT_ROWS)]
    with held_out.open("w", encoding="utf-8") as lines:
        lines.writelines(_line(prompt, sentence(ANSWER_WORDS)) for prompt in asked)
    planted = dict.fromkeys(PLANTED, 0)
    earlier: list[tuple[list[str], list[str]]] = []
    with train.open("w", encoding="utf-8") as lines:
        for _ in range(rows):
            kind = source.choices([*PLANTED, ""], [*PLANTED.values(), 1 - sum(PLANTED.values())])[0]
            prompt, answer = sentence(PROMPT_WORDS), sentence(ANSWER_WORDS)
            if kind in ("repeated", "reworded") and earlier:
                prompt, answer = (list(part) for part in source.choice(earlier))
            if kind == "reworded" and earlier:
                for place in source.sample(range(len(prompt)), 3):
                    prompt[place] = source.choice(words)
            if kind == "contaminated":
                prompt = source.choice(asked)
            if kind and (earlier or kind == "contaminated"):
                planted[kind] += 1
            elif len(earlier) < 1000:
                earlier.append((prompt, answer))
            lines.write(_line(prompt, answer))
    return planted


def _line(prompt: list[str], answer: list[str]) -> str:
    return json.dumps({"prompt": " ".join(prompt) + "?", "completion": " ".join(answer) + "."}) + "\n"


def table(results: dict[str, Any]) -> Grid:
    lines = [
        (
            f"{run['rows']:,}",
            f"{run['file_bytes'] / 1e6:.0f} MB",
            f"{run['seconds']:.0f}",
            f"{run['microseconds_per_row']:,}",
            f"{run['peak_bytes'] / 2**30:.2f} GiB",
            f"{run['found'].get('overlap_normalised', 0):,}",
            f"{run['found'].get('duplicates_exact', 0):,} of {run['planted']['repeated']:,}",
            f"{run['found'].get('duplicates_near', 0):,} of {run['planted']['reworded']:,}",
        )
        for run in results["runs"]
    ]
    header = (
        "rows", "file", "seconds", "µs a row", "peak memory", "held-out rows found", "repetitions", "near repetitions",
    )  # fmt: skip
    machine = results["machine"]
    return Grid(title=f"{machine['cores']} cores of {machine['cpu']}", header=header, rows=lines)


if __name__ == "__main__":
    main()
