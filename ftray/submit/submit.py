"""Submit a job once, however often it is asked for: attach to the live attempt, report the finished run, or queue."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ftray import __version__
from ftray.errors import InputError, RunError
from ftray.observe import spans
from ftray.submit.address import is_own
from ftray.submit.client import Cluster, Order, Taken
from ftray.submit.parcel import mebibytes, pack
from ftray.submit.request import Request
from ftray.submit.sealed import SETUP_HOOK, TICKET, Sealed, entry_of, seal
from ftray.submit.staging import JOB_FILE, staged
from ftray.submit.submission import Decision, Submission, attempts_at, decide, submission_id
from ftray.submit.versions import own_versions, require_same_ftray, require_same_versions

Say = Callable[[str], None]
ROUNDS = 5
"""How often another submission of the same job may be quicker before something else is wrong."""
PROBE_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What submitting came to."""

    run_id: str
    submission_id: str | None
    """None for a finished run that this cluster knows nothing of."""
    state: str
    """submitted, attached or finished."""
    reason: str
    record: Mapping[str, Any] | None = None
    """result.json or sweep.json of finished work whose folder can be read from here."""


def submit(request: Request, cluster: Cluster, *, say: Say) -> Submitted:
    """Submit a job. Raises InputError for whatever is wrong with it or the cluster, before anything is queued."""
    with spans.root("submit", job=request.job.name, kind=request.kind) as told:
        submitted = _submit(request, cluster, say=say)
        told.set(run=submitted.run_id[:12], submission=submitted.submission_id, state=submitted.state)
    return submitted


def _submit(request: Request, cluster: Cluster, *, say: Say) -> Submitted:
    parcel = pack(request.loaded, request.reach)
    identity = request.identity()
    require_same_versions(own_versions(), cluster.versions())
    for _ in range(ROUNDS):
        attempts = attempts_at(identity, cluster.submissions())
        record = request.finished_record(identity)
        can_read = request.loaded.place.url is not None or request.loaded.storage.is_dir()
        decision = decide(attempts, finished=record is not None if can_read else None, judged=request.judged())
        if decision.action != "submit":
            return _known(request, identity, decision, attempts, record, say=say)
        assert decision.attempt is not None
        _sweep_up(cluster, attempts)
        if not request.ships_ftray:
            require_same_ftray(__version__, installed_version(cluster, _python(request, cluster)))
        sealed = seal(request.secrets) if request.secrets else None
        say(f"Sending {len(parcel.files)} files, {mebibytes(parcel.num_bytes)}, to {cluster.address}")
        try:
            if sealed is not None:
                cluster.put(sealed.entry, sealed.content)
            with staged(parcel, ships_ftray=request.ships_ftray) as folders:
                order = Order(
                    id=submission_id(identity, decision.attempt),
                    entrypoint=entrypoint(request, identity, python=_python(request, cluster)),
                    working_dir=folders.working_dir,
                    module=folders.module,
                    environment=_environment(request, sealed),
                    setup_hook=SETUP_HOOK if sealed else None,
                    metadata=metadata(request, identity),
                    resources=request.entrypoint_resources(),
                )
                cluster.submit(order)
            return Submitted(run_id=identity, submission_id=order.id, state="submitted", reason=decision.reason)
        except Taken:
            say("Another submission of this job was quicker")
            if sealed is not None:
                cluster.put(sealed.entry, b"")
    raise RunError(
        f"{identity[:12]} could not be submitted: its ids are taken as soon as they are free",
        kind="communication",
        hint="Somebody submits the same job over and over, and it ends at once: ftray logs says why.",
    )


def _known(
    request: Request,
    identity: str,
    decision: Decision,
    attempts: list[Submission],
    record: Mapping[str, Any] | None,
    *,
    say: Say,
) -> Submitted:
    """Return what there is of a job that has been submitted before."""
    known = next((one for one in attempts if one.attempt == decision.attempt), None)
    if decision.action == "attach" and known is not None and known.metadata.get("judged") != request.judged():
        say("It was submitted with another `evaluate` or `sweep`: submit this one again when it has ended.")
    return Submitted(
        run_id=identity,
        submission_id=known.id if known else None,
        state="attached" if decision.action == "attach" else "finished",
        reason=decision.reason,
        record=record if decision.action == "finished" else None,
    )


def entrypoint(request: Request, identity: str, *, python: str) -> str:
    """Return the command that the cluster runs."""
    words = [python, "-m", "ftray", request.kind, JOB_FILE, "--storage", request.loaded.place.spelling]
    words += ["--expect-run-id", identity]
    words += ["--smoke"] if request.loaded.smoke else []
    words += ["--attempt", request.loaded.attempt_salt] if request.loaded.attempt_salt else []
    words += ["--gate"] if request.gate else []
    words += ["--force-mode", request.forced_mode] if request.forced_mode else []
    return shlex.join(words)


def metadata(request: Request, identity: str) -> dict[str, str]:
    """Return what the cluster keeps and shows of a submission."""
    return {
        "ftray": __version__,
        "kind": request.kind,
        "run_id": identity,
        "name": request.job.name,
        "storage": request.loaded.place.spelling,
        "path": request.loaded.place.spell(request.folder(identity)),
        "judged": request.judged(),
        "smoke": str(request.loaded.smoke).lower(),
        **{f"label.{key}": text for key, text in request.labels.items()},
    }


def _environment(request: Request, sealed: Sealed | None) -> dict[str, str]:
    return {**spans.carrier(), **request.environment, **({TICKET: sealed.ticket} if sealed else {})}


def _python(request: Request, cluster: Cluster) -> str:
    """Return the Python that runs the command: the cluster's `python`, or this one where the head node is here."""
    if request.python is not None:
        return request.python
    heads = [node.address for node in cluster.nodes() if node.is_head]
    return sys.executable if any(is_own(head) for head in heads) else "python"


def _sweep_up(cluster: Cluster, attempts: list[Submission]) -> None:
    """Delete the secrets of attempts that were killed before they could."""
    for one in attempts:
        forget_secrets(cluster, one)


def forget_secrets(cluster: Cluster, submission: Submission) -> None:
    """Overwrite the secrets of a submission that has ended without deleting them itself."""
    if submission.is_live:
        return
    entry = entry_of(cluster.environment(submission.id))
    if entry is not None and cluster.holds(entry):
        cluster.put(entry, b"")


def installed_version(cluster: Cluster, python: str) -> str | None:
    """Return the version of the ftray that the cluster has installed, by asking it; None where it has none."""
    name = f"ftray-probe-{time.time_ns():x}"
    cluster.run(name, shlex.join([python, "-m", "ftray", "--version"]))
    deadline = time.monotonic() + PROBE_SECONDS
    while (probe := cluster.submission(name)).is_live:
        if time.monotonic() > deadline:
            cluster.stop(name)
            raise InputError(
                f"the cluster has not run a command in {PROBE_SECONDS} s",
                kind="no_cluster",
                given=cluster.address,
                allowed="a head node that runs commands",
                hint=f"ray job logs {name} may say why.",
            )
        time.sleep(0.3)
    match = re.search(r"^ftray (\S+)$", cluster.log(name), re.MULTILINE)
    cluster.forget(name)
    return match.group(1) if match and probe.state == "succeeded" else None
