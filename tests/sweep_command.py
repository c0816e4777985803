"""A campaign as a process of its own, for tests that kill it: `python sweep_command.py JOB [--set KEY=VALUE ...]`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ftray.campaign import TrialResult
from ftray.cli.process import interruptible, quieten_libraries


class Plain:
    """Writes a line for everything that happens."""

    def say(self, text: str) -> None:
        self._write("say", text)

    def remember(self, trial: Any) -> None: ...

    def on_plan(self, plan: dict[str, Any]) -> None:
        self._write("plan", plan["mode"])

    def advance(self, done: int, total: int, unit: str) -> None:
        self._write("advance", done, total, unit)

    def on_start(self, trial_id: str, config: dict[str, Any]) -> None:
        self._write("start", trial_id)

    def on_result(self, trial_id: str, config: dict[str, Any], result: dict[str, Any]) -> None:
        self._write("result", trial_id, result["step"])

    def on_end(self, result: TrialResult) -> None:
        self._write("end", result.trial_id, result.state)

    def _write(self, *words: object) -> None:
        print(*words, file=sys.stderr, flush=True)


def main() -> int:
    """Print sweep.json, or the error; return the exit code."""
    quieten_libraries()
    from ftray.errors import FtrayError
    from ftray.job import load_job
    from ftray.sweep.run import sweep

    parser = argparse.ArgumentParser()
    parser.add_argument("job")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    given = parser.parse_args()
    try:
        with interruptible():
            print(json.dumps(sweep(load_job(Path(given.job), sets=given.sets), display=Plain())))
    except FtrayError as error:
        print(json.dumps({"error": error.kind, "message": error.message, "path": getattr(error, "path", None)}))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
