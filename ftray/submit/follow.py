"""Follow a submission to its end. Whoever stops following stops nothing: the work goes on without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from ftray.errors import Interrupted, RunError
from ftray.submit.client import STOP_SECONDS, Cluster
from ftray.submit.submission import Submission

POLL_SECONDS = 0.5
RETRY_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
"""How long a cluster may be unreachable before following it ends."""


def lines(cluster: Cluster, submission_id: str) -> Iterator[str]:
    """Yield each line a submission says, once, from its beginning to its end.

    Goes on where it was when the connection breaks. Raises RunError `communication` when it stays broken.
    """
    told = 0
    deadline: float | None = None
    rest = ""
    while True:
        seen = 0
        try:
            for piece in cluster.tail(submission_id):
                seen += len(piece)
                fresh = piece[max(0, len(piece) - max(0, seen - told)) :] if seen > told else ""
                told, deadline = max(told, seen), None
                *whole, rest = (rest + fresh).split("\n")
                yield from whole
            if not cluster.submission(submission_id).is_live:
                break
        except RunError:
            deadline = deadline or time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > deadline:
                raise
        time.sleep(RETRY_SECONDS)
    if rest:
        yield rest


def wait_for_end(cluster: Cluster, submission_id: str, *, seconds: float | None = None) -> Submission:
    """Return a submission that has ended; after `seconds` the one that has not."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        submission = cluster.submission(submission_id)
        if not submission.is_live or (deadline is not None and time.monotonic() > deadline):
            return submission
        time.sleep(POLL_SECONDS)


def follow(cluster: Cluster, submission_id: str, say: Callable[[str], None]) -> Submission:
    """Say each line of a submission until it has ended; return it.

    Raises Interrupted on Ctrl-C: the submission goes on.
    """
    try:
        for line in lines(cluster, submission_id):
            say(line)
        return wait_for_end(cluster, submission_id)
    except KeyboardInterrupt as error:
        raise detached(submission_id) from error


def detached(submission_id: str) -> Interrupted:
    """Return what Ctrl-C says: it ends following, not the work."""
    return Interrupted(
        f"detached; {submission_id} goes on",
        kind="detached",
        given=submission_id,
        hint=f"ftray logs {submission_id} --follow attaches again; ftray stop {submission_id} ends it.",
    )


def stop(cluster: Cluster, submission: Submission) -> Submission:
    """Ask a submission to end and wait until it has written what it has; return it."""
    if not submission.is_live:
        return submission
    cluster.stop(submission.id)
    stopped = wait_for_end(cluster, submission.id, seconds=STOP_SECONDS + 30)
    if stopped.is_live:
        raise RunError(
            f"{submission.id} is still {stopped.state} {STOP_SECONDS + 30} s after it was asked to end",
            kind="node",
            given=submission.id,
            hint=f"Ask again: ftray stop {submission.id}. The node it runs on may be gone.",
        )
    return stopped
