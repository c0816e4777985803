"""Submissions of a job: their ids, their states, and which attempt is next. Nothing here speaks to a cluster.

The id of a submission is `ftray-<first 12 of the run's or the campaign's id>-<attempt>`. The Jobs API takes an id once,
so that of two submissions at the same moment one is refused, and attaches to the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from ftray.artifacts import timestamp
from ftray.errors import InputError, Interrupted, nearest

Kind = Literal["train", "sweep"]
State = Literal["queued", "running", "succeeded", "failed", "stopped"]
STATES: Mapping[str, State] = {
    "PENDING": "queued",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
"""What the Jobs API says, in the contract's words."""
LIVE: tuple[State, ...] = ("queued", "running")
GATED = 3
"""Exit code of a run that is done, and whose verdict --gate does not let pass."""
ID_LENGTH = 12
ID = re.compile(rf"^ftray-([0-9a-f]{{{ID_LENGTH}}})-([1-9]\d*)$")
SHORTEST_ID = 4
"""Characters of a run id that are enough to name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One attempt at a job, as the cluster knows it."""

    id: str
    state: State
    exit_code: int | None
    """Of its entrypoint; None while it runs, and for one that was killed."""
    message: str
    metadata: Mapping[str, str]
    submitted_at: str | None
    ended_at: str | None

    @property
    def attempt(self) -> int:
        match = ID.match(self.id)
        assert match is not None, "only ftray's submissions are taken"
        return int(match.group(2))

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def run_id(self) -> str:
        """The run's id, or the campaign's."""
        return self.metadata.get("run_id", "")

    @property
    def name(self) -> str:
        return self.metadata.get("name", "")

    @property
    def kind(self) -> Kind:
        return "sweep" if self.metadata.get("kind") == "sweep" else "train"

    @property
    def labels(self) -> dict[str, str]:
        """What the user wrote on it."""
        return {key.removeprefix("label."): text for key, text in self.metadata.items() if key.startswith("label.")}

    @property
    def code(self) -> int:
        """The exit code of the work: that of an entrypoint, or what stands for its end."""
        if self.exit_code is not None and self.state != "stopped":
            return self.exit_code
        return {"succeeded": 0, "stopped": Interrupted.exit_code}.get(self.state, 1)


def submission_id(identity: str, attempt: int) -> str:
    """Return the id of an attempt at the run or campaign with this id."""
    return f"ftray-{identity[:ID_LENGTH]}-{attempt}"


def state_of(status: str, exit_code: int | None) -> State:
    """Return what a status of the Jobs API means: an exit code that is no failure is none."""
    state = STATES[status]
    if state == "failed" and exit_code == GATED:
        return "succeeded"
    if state == "failed" and exit_code == Interrupted.exit_code:
        return "stopped"
    return state


def moment(milliseconds: int | None) -> str | None:
    """Return a time of the Jobs API as records spell it."""
    return None if milliseconds is None else timestamp(datetime.fromtimestamp(milliseconds / 1000, UTC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What submitting a job comes to."""

    action: Literal["submit", "attach", "finished"]
    attempt: int | None
    """The attempt that is meant; None for a finished run that the cluster knows nothing of."""
    reason: str


def attempts_at(identity: str, submissions: Iterable[Submission]) -> list[Submission]:
    """Return the attempts at a run or campaign, the first one first."""
    start = f"ftray-{identity[:ID_LENGTH]}-"
    return sorted((one for one in submissions if one.id.startswith(start)), key=lambda one: one.attempt)


def decide(attempts: Sequence[Submission], *, finished: bool | None, judged: str) -> Decision:
    """Return whether to attach to an attempt, to report the finished run, or to make the next attempt.

    `attempts`: in order. `finished`: whether the run's folder holds its result, None where the folder cannot be read
    from here. `judged`: digest of how the job is judged; a run that was judged otherwise is judged again.
    """
    live = [one for one in attempts if one.is_live]
    if live:
        return Decision(action="attach", attempt=live[-1].attempt, reason=f"it is {live[-1].state}")
    last = attempts[-1] if attempts else None
    if finished:
        return Decision(
            action="finished", attempt=last.attempt if last else None, reason="its result is in the storage"
        )
    if last is None:
        return Decision(action="submit", attempt=1, reason="it has not been submitted to this cluster")
    if finished is None and last.state == "succeeded" and last.metadata.get("judged") == judged:
        return Decision(action="finished", attempt=last.attempt, reason="the cluster says so")
    ended = "was judged otherwise" if last.state == "succeeded" else f"{last.state}"
    return Decision(action="submit", attempt=last.attempt + 1, reason=f"attempt {last.attempt} {ended}: it resumes")


def find(text: str, submissions: Sequence[Submission], *, name: str | None = None) -> Submission:
    """Return the submission that `text` names: its id, the start of a run id, or a job's name.

    `name`: the name of the job that `text` is the file of. Of several attempts at one run the newest is meant.
    Raises InputError `missing_submission` or `ambiguous_submission`.
    """
    found = [one for one in submissions if one.id == text]
    if not found:
        wanted = name or text
        newest = {one.run_id or one.id: one for one in sorted(submissions, key=lambda one: one.attempt)}
        found = [one for one in newest.values() if one.name == wanted or (name is None and _starts(one, text))]
        live = [one for one in found if one.is_live]
        found = live if len(live) == 1 else found
    if len(found) == 1:
        return found[0]
    known = [one.id for one in submissions]
    if found:
        raise InputError(
            f"{len(found)} submissions answer to {text!r}",
            kind="ambiguous_submission",
            given=text,
            allowed=[f"{one.id} ({one.name}, {one.state})" for one in found],
            hint="Name one of these ids.",
        )
    close = nearest(text, [*known, *(one.name for one in submissions)])
    raise InputError(
        f"the cluster knows no submission {text!r}",
        kind="missing_submission",
        given=text,
        allowed=known or "a submission of ftray (this cluster has none)",
        hint=f"Did you mean {close}?" if close else "ftray status lists them; a cluster forgets them when it restarts.",
    )


def _starts(one: Submission, text: str) -> bool:
    """Return whether `text` is the beginning of a run's id, as it is or as folders and submissions spell it."""
    start = text.removeprefix("ftray-").removeprefix(f"{one.name}-sweep-").removeprefix(f"{one.name}-")
    return len(start) >= SHORTEST_ID and one.run_id.startswith(start)
