from __future__ import annotations

from typing import Any

import pytest

from ftray.errors import InputError
from ftray.submit.submission import Submission, attempts_at, decide, find, state_of, submission_id

RUN = "ab" * 32
OTHER = "abcd" * 16


def made(attempt: int, state: Any, *, run: str = RUN, name: str = "boxes", **more: Any) -> Submission:
    fields: dict[str, Any] = {"exit_code": None, "message": "", "submitted_at": None, "ended_at": None, **more}
    metadata = {"run_id": run, "name": name, "judged": "as now", **fields.pop("metadata", {})}
    return Submission(id=submission_id(run, attempt), state=state, metadata=metadata, **fields)


def test_an_id_names_the_run_and_the_attempt() -> None:
    assert submission_id(RUN, 3) == "ftray-abababababab-3"
    assert made(3, "running").attempt == 3


@pytest.mark.parametrize(
    ("status", "code", "state"),
    [
        ("PENDING", None, "queued"),
        ("RUNNING", None, "running"),
        ("SUCCEEDED", 0, "succeeded"),
        ("FAILED", 1, "failed"),
        ("FAILED", 2, "failed"),
        ("FAILED", None, "failed"),
        ("FAILED", 3, "succeeded"),  # --gate: done, not shipped
        ("FAILED", 130, "stopped"),  # it wrote its result before it ended
        ("STOPPED", None, "stopped"),
    ],
)
def test_states_of_the_jobs_api_in_the_contracts_words(status: str, code: int | None, state: str) -> None:
    assert state_of(status, code) == state


@pytest.mark.parametrize(
    ("state", "exit_code", "code"),
    [("succeeded", 0, 0), ("succeeded", 3, 3), ("failed", 2, 2), ("failed", None, 1), ("stopped", None, 130)],
)
def test_the_exit_code_of_work_is_its_own_where_it_has_one(state: str, exit_code: int | None, code: int) -> None:
    assert made(1, state, exit_code=exit_code).code == code


def test_attempts_are_those_at_this_run_in_order() -> None:
    known = [made(10, "failed"), made(2, "failed"), made(1, "failed", run=OTHER)]
    assert [one.attempt for one in attempts_at(RUN, known)] == [2, 10]


def test_the_first_submission_is_attempt_1() -> None:
    decision = decide([], finished=None, judged="as now")
    assert (decision.action, decision.attempt) == ("submit", 1)


@pytest.mark.parametrize("state", ["queued", "running"])
@pytest.mark.parametrize("finished", [True, False, None])
def test_a_live_attempt_is_attached_to(state: str, finished: bool | None) -> None:
    decision = decide([made(1, "failed"), made(2, state)], finished=finished, judged="as now")
    assert (decision.action, decision.attempt) == ("attach", 2)
    assert state in decision.reason


@pytest.mark.parametrize("state", ["failed", "stopped"])
@pytest.mark.parametrize("finished", [False, None])
def test_after_a_failure_the_next_attempt_resumes(state: str, finished: bool | None) -> None:
    decision = decide([made(1, "failed"), made(2, state)], finished=finished, judged="as now")
    assert (decision.action, decision.attempt) == ("submit", 3)
    assert "resumes" in decision.reason


def test_a_result_in_the_storage_is_the_truth() -> None:
    assert decide([made(1, "failed")], finished=True, judged="as now").action == "finished"
    # Somebody trained it without the cluster.
    assert decide([], finished=True, judged="as now") == decide([], finished=True, judged="otherwise")
    # The folder is gone: what the cluster remembers is not enough.
    assert decide([made(1, "succeeded")], finished=False, judged="as now").action == "submit"


def test_where_the_storage_cannot_be_read_the_cluster_is_believed() -> None:
    assert decide([made(1, "succeeded")], finished=None, judged="as now").action == "finished"
    # Judged otherwise, it is the same run, evaluated again.
    again = decide([made(1, "succeeded")], finished=None, judged="otherwise")
    assert (again.action, again.attempt) == ("submit", 2)


def test_a_submission_is_found_by_its_ids_and_its_jobs_name() -> None:
    known = [made(1, "failed"), made(2, "running"), made(1, "succeeded", run="9" * 64, name="stories")]
    newest = known[1]
    for text in ("ftray-abababababab-2", "ftray-abababababab", "ababab", "boxes-ababab", "boxes", RUN):
        assert find(text, known) is newest, text
    assert find("ftray-abababababab-1", known) is known[0]
    assert find("jobs/boxes.yaml", known, name="boxes") is newest
    assert find("stories", known) is known[2]


def test_of_several_runs_of_a_name_the_live_one_is_meant() -> None:
    known = [made(1, "succeeded"), made(1, "running", run=OTHER)]
    assert find("boxes", known) is known[1]


def test_a_name_that_several_answer_to_is_refused() -> None:
    known = [made(1, "succeeded"), made(1, "failed", run=OTHER)]
    with pytest.raises(InputError) as caught:
        find("boxes", known)
    assert caught.value.kind == "ambiguous_submission"
    assert [text.split()[0] for text in caught.value.allowed] == [one.id for one in known]


@pytest.mark.parametrize("text", ["abc", "nobody", "ftray-000000000000-1"])
def test_an_unknown_submission_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(InputError) as caught:
        find(text, [made(1, "failed")])
    assert caught.value.kind == "missing_submission"
    assert caught.value.allowed == ["ftray-abababababab-1"]


def test_labels_are_told_from_what_ftray_notes_itself() -> None:
    assert made(1, "running", metadata={"label.team": "search"}).labels == {"team": "search"}
