"""How submissions stand: what the cluster says of them, and how far their runs are."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftray.artifacts import RunDirectory, read_json
from ftray.campaign import SweepDirectory
from ftray.errors import InputError, RunError
from ftray.storage.mirror import is_brief
from ftray.storage.place import open_place
from ftray.submit.client import Cluster, Load, Node
from ftray.submit.progress import Progress, run_progress, said_so_far, sweep_progress
from ftray.submit.submission import Submission


def stand(
    cluster: Cluster, submission: Submission, *, is_newest: bool = True, mounted: str | None = None
) -> dict[str, Any]:
    """Return the `ftray/status/1` record of a submission.

    `is_newest`: whether no later attempt at its run has changed the run's folder. `mounted`: where the storage is on
    this machine, if elsewhere.
    """
    there = submission.metadata.get("path", "")
    folder = _folder(submission, there, mounted)
    result = _result(submission, folder) if is_newest else {}
    return {
        "schema": "ftray/status/1",
        "run_id": submission.run_id,
        "submission_id": submission.id,
        "state": submission.state,
        "kind": submission.kind,
        "name": submission.name,
        "attempt": submission.attempt,
        "smoke": submission.metadata.get("smoke") == "true",
        **progress(cluster, submission, folder if is_newest else None).to_record(),
        "exit_code": None if submission.is_live else submission.code,
        "message": _message(submission),
        "status": result.get("status"),
        "verdict": result.get("verdict"),
        "path": there,
        "labels": submission.labels,
        "submitted_at": submission.submitted_at,
        "ended_at": submission.ended_at,
        "address": cluster.address,
    }


def _folder(submission: Submission, there: str, mounted: str | None) -> Path:
    """Return where the run's folder is on this machine; of a store, the records that say how far it is are fetched."""
    place = open_place(mounted or submission.metadata.get("storage", ""))
    name = there.rstrip("/").rpartition("/")[2]
    if place.url is None:
        return Path(there) if mounted is None else place.folder / name
    folder = place.folder / name
    with contextlib.suppress(InputError, RunError):
        # Without it the cluster's word and the log say how it stands.
        place.require(writes=False)
        place.mirror(folder).fetch(says_how_far, as_reader=True)
    return folder


def says_how_far(name: str) -> bool:
    """Return whether a file of a run or campaign is read to say how far it is."""
    return is_brief(name) or name in ("plan.json", "trials.jsonl") or name.endswith("/metrics.jsonl")


def progress(cluster: Cluster, submission: Submission, folder: Path | None) -> Progress:
    """Return how far a submission is: by its folder, where that is here, else by its log."""
    if submission.state == "queued":
        return Progress()
    if folder is not None and (folder / "job.json").is_file():
        try:
            if submission.kind == "sweep":
                return sweep_progress(SweepDirectory(folder))
            return run_progress(RunDirectory(folder))
        except (InputError, KeyError):
            pass  # a record that is not what it should be says less than the log
    return said_so_far(cluster.log(submission.id).splitlines())


def _result(submission: Submission, folder: Path) -> dict[str, Any]:
    """Return status and verdict of the work, where its folder is here and this submission has ended."""
    file = folder / ("sweep.json" if submission.kind == "sweep" else "result.json")
    if submission.is_live or not file.is_file():
        return {}
    record = read_json(file)
    verdict = record.get("verdict")
    return {"status": record["status"], "verdict": verdict["decision"] if isinstance(verdict, dict) else verdict}


def _message(submission: Submission) -> str:
    """Return the end of what the cluster says of a submission: for a failed one, the end of its log."""
    lines = [line for line in submission.message.splitlines() if line.strip()]
    if submission.state == "failed":
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines[-1:] or [""])[-1].strip()
    return lines[0].strip() if lines else ""


def stand_all(cluster: Cluster, *, mounted: str | None = None) -> dict[str, Any]:
    """Return the cluster and all of ftray's submissions, the newest first."""
    nodes, load, submissions = cluster.nodes(), cluster.load(), cluster.submissions()
    newest = {one.run_id: one.id for one in sorted(submissions, key=lambda one: one.attempt)}
    return {
        "schema": "ftray/status-list/1",
        "address": cluster.address,
        "cluster": describe_cluster(nodes, load),
        "queue": describe_queue(load, submissions),
        "submissions": [
            stand(cluster, one, is_newest=newest[one.run_id] == one.id, mounted=mounted)
            for one in reversed(submissions)
        ],
    }


def describe_cluster(nodes: Sequence[Node], load: Load) -> dict[str, Any]:
    """Return what a cluster has, and how much of it is given out; None where the cluster does not tell."""
    used = load.used
    return {
        "nodes": len(nodes),
        "cpus": sum(node.cpus for node in nodes),
        "gpus": sum(node.gpus for node in nodes),
        "used_cpus": None if used is None else used.get("CPU", 0.0),
        "used_gpus": None if used is None else used.get("GPU", 0.0),
        "each": [
            {"address": node.address, "head": node.is_head, "cpus": node.cpus, "gpus": node.gpus} for node in nodes
        ],
    }


def describe_queue(load: Load, submissions: Sequence[Submission]) -> dict[str, Any]:
    """Return what waits: submissions that have not begun, and resources that are asked for and not there."""
    return {
        "submissions": [one.id for one in submissions if one.state == "queued"],
        "resources": [{"wanted": dict(wanted), "count": count} for wanted, count in load.waiting],
    }
