"""Keep what a campaign measured beside its job: `python jobs/keep_sweep.py SWEEP jobs/<name>`.

Copies the numbers of sweep.json and the ledger into <job>/results.json, without the paths of this machine.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

LEFT_OUT = ("path", "reused", "judged_digest", "ends_digest")
OF_A_TRIAL = ("trial_id", "config", "seed", "state", "reason", "prefix_of", "steps", "epochs", "best", "seconds",
              "tokens", "is_default", "role")  # fmt: skip


def without_adapters(value: Any) -> Any:
    """Return a record without what lies on this machine only."""
    if isinstance(value, dict):
        return {key: without_adapters(one) for key, one in value.items() if key != "adapter"}
    return [without_adapters(one) for one in value] if isinstance(value, list) else value


def main(sweep: Path, job: Path) -> None:
    record = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    lines = (sweep / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    trials = [json.loads(line) for line in lines]
    kept = {
        "command": f"FTRAY_SHARED=../shared ftray sweep {job}/job.yaml",
        "cpus": os.cpu_count(),
        **without_adapters({key: value for key, value in record.items() if key not in LEFT_OUT}),
        "ledger": [{key: trial[key] for key in OF_A_TRIAL} for trial in trials],
    }
    (job / "results.json").write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
