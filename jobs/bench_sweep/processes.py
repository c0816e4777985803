"""One plain PEFT process for each trial, some at a time.

python processes.py CAMPAIGN SCHEDULER FOLDER    runs every trial of the campaign; results go to FOLDER/results.json
Under asha this process asks Ray Tune's ASHAScheduler after every evaluation, as Tune itself would; Ray is not started.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

LOOP = Path(__file__).resolve().with_name("plain_loop.py")
Record = dict[str, Any]
Decide = Callable[[int, Record], bool]


def main(campaign_file: Path, scheduler: str, folder: Path) -> None:
    campaign = json.loads(campaign_file.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=1 + campaign["plain"]["at_a_time"]) as pool:
        # Trials load while Ray Tune is imported.
        decide = pool.submit(make_scheduler, scheduler, campaign)
        runs = [
            pool.submit(run_trial, campaign_file, index, folder, decide) for index in range(len(campaign["trials"]))
        ]
        results = {trial["name"]: run.result() for trial, run in zip(campaign["trials"], runs, strict=True)}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def make_scheduler(scheduler: str, campaign: Record) -> Decide:
    """Return what says of a trial's result whether it goes on."""
    if scheduler == "none":
        return lambda index, result: True
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    asha = ASHAScheduler(time_attr="tokens", metric="best_validation_accuracy", mode="max", **campaign["asha"])
    trials = [SimpleNamespace(trial_id=str(index)) for index in range(len(campaign["trials"]))]
    for trial in trials:
        asha.on_trial_add(None, trial)
    asking = Lock()

    def decide(index: int, result: Record) -> bool:
        with asking:
            return asha.on_trial_result(None, trials[index], result) == TrialScheduler.CONTINUE

    return decide


def run_trial(campaign_file: Path, index: int, folder: Path, decide: Future[Decide]) -> list[Record]:
    """Run one trial in a process of its own; return its evaluations."""
    results: list[Record] = []
    with (folder / f"trial-{index}.log").open("w", encoding="utf-8") as messages:
        command = [sys.executable, str(LOOP), str(campaign_file), str(index), str(folder)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, text=True, bufsize=1
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for line in process.stdout:
                results.append(json.loads(line))
                process.stdin.write("go\n" if decide.result()(index, results[-1]) else "stop\n")
    assert process.returncode == 0, f"trial {index} ended with {process.returncode}: see {messages.name}"
    return results


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
