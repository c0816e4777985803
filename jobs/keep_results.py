"""Keep what a run measured beside its job: `python jobs/keep_results.py RUN jobs/<name>`.

Copies the numbers of result.json and evaluation.json into <job>/results.json, without the paths of this machine.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

KEPT = (
    "run_id", "name", "status", "stopped_reason", "verdict", "verdict_reasons", "method", "engine", "zero_stage",
    "workers", "steps", "epochs", "tokens", "label_tokens", "tokens_per_second", "peak_memory_bytes",
    "optimizer_bytes_per_rank", "seconds", "selected", "replay", "test", "forgetting", "versions", "started_at",
)  # fmt: skip


def main(run: Path, job: Path) -> None:
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    kept = {
        "command": f"FTRAY_SHARED=../shared ftray train {job}/job.yaml",
        "cpus": os.cpu_count(),
        **{key: result[key] for key in KEPT if key in result},
        "tasks": evaluation["tasks"],
    }
    (job / "results.json").write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
