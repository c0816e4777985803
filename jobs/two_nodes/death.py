"""A node is lost in the middle of a training run; another joins, or none does. The run ends with the same result."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from nodes import Cluster, until
from record import Record
from safetensors.torch import load_file
from submitted import Job, headline, whole_checkpoints

from ftray.artifacts import digest_files, read_lines

Line = dict[str, Any]


def show_undisturbed(job: Job, cluster: Cluster, record: Record) -> Path:
    """Train the job without a disturbance, unless the storage has that; return its folder."""
    answer = cluster.ftray(*job.words, "--attempt", "undisturbed", "--wait", "--json")
    result = answer.document["result"]
    record.step("the undisturbed run", answer, ("had before: " if result["reused"] else "") + headline(job, result))
    record.require(result["attempts"] == 1, "the undisturbed run had one attempt", result["attempts"])
    return Path(answer.document["path"])


def show_death(job: Job, undisturbed: Path, cluster: Cluster, record: Record, *, lost: str, joins: str | None) -> None:
    """Kill node `lost` after a checkpoint of a fresh run; let `joins` come for it. Compare with the undisturbed run."""
    first = cluster.ftray(*job.words, "--fresh", "--json")
    record.step("submit it as a fresh run", first, f"{first.document['submission_id']} {first.document['state']}")
    name, folder = first.document["submission_id"], Path(first.document["path"])
    until(lambda: len(whole_checkpoints(folder)) >= 2, "two checkpoints")
    at_step = whole_checkpoints(folder)[-1]
    before = cluster.num_nodes()
    killed, killed_at = cluster.lose(lost), time.time()
    record.note(
        f"kill node {lost}", "SIGKILL to every process of the host", f"{killed} processes, after step {at_step}"
    )
    until(lambda: cluster.num_nodes() == before - 1, "the cluster's knowledge of the loss")
    if joins is not None:
        started = time.monotonic()
        host = cluster.join(joins)
        record.note(
            "another node joins",
            cluster.command(joins),
            f"{joins} at {host.address} is in the cluster",
            seconds=time.monotonic() - started,
        )
    ended = cluster.ftray("logs", name, "--follow", "--json")
    end = json.loads(ended.stdout.splitlines()[-1])
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    record.step("follow it to its end", ended, f"{end['state']}; {headline(job, result)}")
    record.require((end["state"], end["exit_code"]) == ("succeeded", 0), "the run ends well", end)
    require_resumed(folder, at_step, killed_at, record, workers=1 if joins is None else 2)
    compare(undisturbed, folder, record, is_exact=joins is not None)


def require_resumed(folder: Path, at_step: int, killed_at: float, record: Record, *, workers: int) -> None:
    """Require two attempts, the second from a checkpoint; note how long nothing was trained."""
    lines = read_lines(folder / "metrics.jsonl")
    starts = [line for line in lines if line["kind"] == "event" and "workers" in line]
    said = [(line["attempt"], line["event"], line["workers"]) for line in starts]
    record.require([attempt for attempt, _, _ in said] == [1, 2], "it was trained in two attempts", said)
    resumed_at = int(said[1][1].rpartition(" ")[2])
    record.require(resumed_at >= at_step, "the second goes on from the newest checkpoint", said)
    record.require((said[0][2], said[1][2]) == (2, workers), f"with 2 workers, then {workers}", said)
    first = next(line for line in lines if line["attempt"] == 2 and line["kind"] == "step")
    pause = seconds_of(first["time"]) - killed_at
    record.figures |= {"killed_after_step": at_step, "resumed_at_step": resumed_at, "pause_seconds": round(pause, 1)}
    record.note("go on", "", f"from step {resumed_at}; {pause:.0f} s from the kill to the first new line of metrics")


def compare(undisturbed: Path, disturbed: Path, record: Record, *, is_exact: bool) -> None:
    """Require the same selected step, the same answers and the same weights; without `is_exact`, nearly those."""
    one, other = (json.loads((run / "result.json").read_text(encoding="utf-8")) for run in (undisturbed, disturbed))
    asked = [read_lines(run / "predictions.jsonl") for run in (undisturbed, disturbed)]
    answers = [[line["tuned"] for line in lines if line["task"] == "task"] for lines in asked]
    scores = max(abs(mine["tuned_score"] - theirs["tuned_score"]) for mine, theirs in zip(*asked, strict=True))
    same = sum(mine == theirs for mine, theirs in zip(*answers, strict=True))
    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (undisturbed, disturbed)]
    assert weights[0].keys() == weights[1].keys()
    difference = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    largest = max(float(weights[0][name].abs().max()) for name in weights[0])
    steps = (one["selected"]["step"], other["selected"]["step"])
    digests = [digest_files([run / "adapter" / "adapter_model.safetensors"]) for run in (undisturbed, disturbed)]
    record.figures |= {
        "selected_steps": steps,
        "equal_answers": same,
        "answers": len(answers[0]),
        "largest_score_difference": scores,
        "largest_difference": difference,
        "largest_weight": largest,
        "equal_files": digests[0] == digests[1],
    }
    record.note(
        "compare it with the undisturbed run",
        "",
        f"selected steps {steps[0]} and {steps[1]}; {same} of {len(answers[0])} test answers equal; scores of all rows "
        f"differ by at most {scores:.2g}; "
        f"weights differ by at most {difference:.2g}" + (", files equal" if digests[0] == digests[1] else ""),
    )
    record.require(steps[0] == steps[1], "the same step is selected", steps)
    if is_exact:
        record.require(same == len(answers[0]), "all answers are equal", same)
        record.require(difference <= 1e-6, "the weights are equal within 1e-6", difference)
    else:
        record.require(same >= 0.99 * len(answers[0]), "99 of 100 answers are equal", same)
        # Sums over one worker's examples round otherwise than sums of two workers' sums.
        record.require(difference <= 1e-3, "the weights are equal within 1e-3", difference)


def seconds_of(text: str) -> float:
    """Return a time of the records as seconds of the clock."""
    return datetime.fromisoformat(text).timestamp()
