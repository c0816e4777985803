"""A job submitted twice, followed, detached from, stopped, submitted again, ended, and submitted once more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodes import Cluster
from record import Record

from ftray.artifacts import read_lines

Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it is given to `ftray submit`."""

    file: Path
    storage: Path | str
    """A folder that all nodes have, or a URL."""
    kind: str
    """train or sweep."""
    settings: Sequence[str]

    @property
    def words(self) -> tuple[str, ...]:
        sets = [word for setting in self.settings for word in ("--set", setting)]
        sweep = ["--sweep"] if self.kind == "sweep" else []
        return ("submit", str(self.file), *sweep, "--storage", str(self.storage), *sets)


def show_submitted(job: Job, cluster: Cluster, record: Record) -> Path:
    """Do all of it, and require that the work was done once; return its folder."""
    first = cluster.ftray(*job.words, "--json")
    record.step("submit", first, f"{first.document['submission_id']} {first.document['state']}")
    name, folder = first.document["submission_id"], Path(first.document["path"])
    run_id = first.document["run_id"]
    record.require(first.document["state"] == "submitted" and name.endswith("-1"), "the first submission is the first")

    again = cluster.ftray(*job.words, "--json")
    record.step("submit it again", again, f"{again.document['submission_id']} {again.document['state']}")
    record.require(
        (again.document["state"], again.document["submission_id"]) == ("attached", name), "the second one attaches"
    )
    record.require(attempts(cluster, run_id) == 1, "the cluster has one submission of it")

    left = cluster.detach("logs", name, "--follow", enough=lambda: is_under_way(job, folder), what=f"{name} under way")
    record.step("follow it, then Ctrl-C", left, f"{len(left.stdout.splitlines())} lines; detached", exit_code=130)
    record.require(f"detached; {name} goes on" in left.stderr, "Ctrl-C says that it goes on", left.stderr)
    stands = cluster.ftray("status", name, "--json")
    record.step("ask how it stands", stands, stands.document["state"] + progress(stands.document))
    record.require(stands.document["state"] == "running", "it goes on after Ctrl-C")

    stopped = cluster.ftray("stop", name, "--json")
    record.step(
        "stop it", stopped, f"{stopped.document['state']}, its command's exit code {stopped.document['exit_code']}"
    )
    record.require(
        (stopped.document["state"], stopped.document["exit_code"]) == ("stopped", 130), "stopped, and resumable"
    )
    before = ledger(job, folder)
    record.require(not is_done(job, folder), "it was stopped before its end")

    resumed = cluster.ftray(*job.words, "--json")
    record.step("submit it again", resumed, f"{resumed.document['submission_id']}: {resumed.document['reason']}")
    record.require(resumed.document["submission_id"] == f"{name[:-1]}2", "the next attempt has the next number")
    ended = cluster.ftray(*job.words, "--wait", "--json")
    result = ended.document["result"]
    record.require(result is not None, "its result is in the storage", ended.document)
    record.step("attach and wait for its end", ended, f"{ended.document['ended']}; {headline(job, result)}")
    after = ledger(job, folder)
    require_once(job, before, after, record)

    finished = cluster.ftray(*job.words, "--json")
    record.step("submit it once more", finished, f"{finished.document['state']}: {finished.document['reason']}")
    record.require(finished.document["state"] == "finished", "a finished one is reported")
    record.require(finished.document["result"] == {**result, "reused": True}, "with the result that it had")
    record.require(ledger(job, folder) == after, "nothing was trained for that")
    record.require(attempts(cluster, run_id) == 2, "the cluster has two submissions of it, and no third")
    record.figures["result"] = headline(job, result)
    return folder


def attempts(cluster: Cluster, run_id: str) -> int:
    """Return how many submissions of a run the cluster knows."""
    known = cluster.ftray("status", "--json").document["submissions"]
    return sum(one["run_id"] == run_id for one in known)


def ledger(job: Job, folder: Path) -> list[Line]:
    """Return what was trained, line by line: the run's steps, or the campaign's trials that have ended."""
    return read_lines(folder / ("trials.jsonl" if job.kind == "sweep" else "metrics.jsonl"))


def whole_checkpoints(folder: Path) -> list[int]:
    """Return the steps of a run's checkpoints that are whole."""
    manifests = sorted((folder / "checkpoints").glob("step-*/manifest.json"))
    return [int(manifest.parent.name.removeprefix("step-")) for manifest in manifests]


def is_under_way(job: Job, folder: Path) -> bool:
    """Return whether there is something to go on from: two checkpoints, or a trial that has ended."""
    return bool(ledger(job, folder)) if job.kind == "sweep" else len(whole_checkpoints(folder)) >= 2


def is_done(job: Job, folder: Path) -> bool:
    """Return whether the work has come to its end."""
    file = folder / ("sweep.json" if job.kind == "sweep" else "result.json")
    return file.exists() and json.loads(file.read_text(encoding="utf-8"))["status"] not in ("interrupted", "failed")


def require_once(job: Job, before: list[Line], after: list[Line], record: Record) -> None:
    """Require that the second attempt went on where the first was, and note what it trained again."""
    record.require(after[: len(before)] == before, "what was recorded before the stop is still there")
    if job.kind == "sweep":
        ids = [line["trial_id"] for line in after]
        record.require(len(set(ids)) == len(ids), "every trial ended once", ids)
        record.figures |= {"trials_before_stop": len(before), "trials": len(after)}
        return
    events = [(line["attempt"], line["event"]) for line in after if line["kind"] == "event"]
    starts = [one for one in events if one[1] == "started" or one[1].startswith("resumed")]
    record.require([attempt for attempt, _ in starts] == [1, 2], "it was trained in two attempts", starts)
    record.require(starts[0][1] == "started" and starts[1][1].startswith("resumed at step "), "and resumed", starts)
    resumed_at = int(starts[1][1].rpartition(" ")[2])
    second = [line["step"] for line in after if line["attempt"] == 2 and line["kind"] == "step"]
    record.require(min(second) > resumed_at > 0, "the second attempt trained nothing before that step", second[:3])
    stopped_at = max(line["step"] for line in before)
    record.figures |= {"stopped_at_step": stopped_at, "resumed_at_step": resumed_at, "steps": max(second)}


def progress(document: Line) -> str:
    """Return how far a submission is, in words."""
    if document["trials"] is not None:
        return f", {document['trials']} of {document['total_trials']} trials ended"
    return "" if document["step"] is None else f", step {document['step']} of {document['total_steps']}"


def headline(job: Job, result: Line) -> str:
    """Return what the work came to."""
    if job.kind == "sweep":
        counts = result["counts"]
        ended = ", ".join(f"{count} {state}" for state, count in counts.items() if count and state != "requested")
        return f"{counts['requested']} trials: {ended}; recommended: {result['recommended']}"
    test, tries, workers = result["test"], result["attempts"], result["workers_seen"]
    return (
        f"step {result['selected']['step']} of {result['steps']} selected, {test['tuned']['value']:.1%} of {test['n']} "
        f"test rows (base {test['base']['value']:.1%}), {workers} worker{'s' if workers > 1 else ''} at the end, "
        f"{tries} attempt{'s' if tries > 1 else ''}"
    )
