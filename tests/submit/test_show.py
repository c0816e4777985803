"""What people see of a cluster: whole ids on a narrow terminal, what waits, and nothing where there is nothing."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from ftray.errors import InputError
from ftray.submit.client import Load, Node, _load
from ftray.submit.show import render_all, render_one, watch_status
from ftray.submit.standing import describe_cluster, describe_queue
from ftray.submit.submission import Submission

NODES = [
    Node(address="10.0.0.1", is_head=True, cpus=4, gpus=0),
    Node(address="10.0.0.2", is_head=False, cpus=4, gpus=2),
]


def submission(name: str, state: Any) -> Submission:
    return Submission(
        id=name, state=state, exit_code=None, message="", metadata={}, submitted_at=None, ended_at=None
    )  # fmt: skip


def standing(**changes: Any) -> dict[str, Any]:
    known = {
        "submission_id": "ftray-d070713d7545-1", "name": "a-rather-long-name-of-a-job", "smoke": False, "kind": "sweep",
        "state": "running", "trials": 7, "total_trials": 16, "best_value": 0.9712, "tokens_per_second": 12345.0,
        "seconds_left": 754.0, "verdict": None, "step": None, "total_steps": None,
        "states": {"running": 2, "pruned": 5},
        "exit_code": None, "message": "", "labels": {}, "path": "/runs/a", "submitted_at": None, "ended_at": None,
    }  # fmt: skip
    return {**known, **changes}


def text_of(renderable: Any, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def record(load: Load, submissions: list[dict[str, Any]], queued: list[Submission]) -> dict[str, Any]:
    return {
        "address": "http://head:8265",
        "cluster": describe_cluster(NODES, load),
        "queue": describe_queue(load, queued),
        "submissions": submissions,
    }


@pytest.mark.parametrize("width", [80, 200])
def test_the_cluster_its_queue_and_whole_ids_are_shown(width: int) -> None:
    load = Load(used={"CPU": 3.0}, waiting=[({"CPU": 4.0}, 2), ({"CPU": 1.0, "GPU": 1.0}, 1)])
    shown = text_of(
        render_all(record(load, [standing()], [submission("ftray-d070713d7545-2", "queued")]), width), width
    )
    assert "2 nodes, 3 of 8 CPUs in use, 0 of 2 GPUs in use" in shown
    assert "10.0.0.1 (head): 4 CPUs, 0 GPUs" in shown
    assert "waiting for room: 2 x 4 CPU, 1 x 1 CPU and 1 GPU" in shown
    assert "queued: ftray-d070713d7545-2" in shown
    for part in ("ftray-d070713d7545-1", "7/16 trials", "12 min 34 s"):
        assert part in shown
    assert ("a-rather-long-name-of-a-job" in shown) is (width > 80)
    assert ("0.9712" in shown, "12,345" in shown) == (width > 80, width > 80)
    assert "verdict" not in shown, "a column without anything is left out"


def test_a_cluster_that_does_not_tell_its_use_is_shown_without() -> None:
    shown = text_of(render_all(record(Load(used=None), [], []), 80), 80)
    assert "8 CPUs, 2 GPUs" in shown
    assert "Nothing has been submitted with ftray." in shown


def test_one_campaign_is_shown_with_its_trials() -> None:
    shown = text_of(render_one(standing()), 80)
    assert "2 running, 5 pruned" in shown
    assert "0.9712" in shown


def test_the_autoscalers_report_is_read() -> None:
    report = {
        "usage": {"CPU": [3.0, 8.0], "memory": [1.0, 2.0], "node:10.0.0.1": [0.0, 1.0]},
        "resourceDemand": [[{"CPU": 4.0}, 2]],
        "pgDemand": [[{"strategy": "PACK", "bundles": [[{"CPU": 1.0}, 2]]}, 3]],
    }
    assert _load(report) == Load(used={"CPU": 3.0}, waiting=[({"CPU": 4.0}, 2), ({"CPU": 1.0}, 6)])
    assert _load({}) == Load(used=None, waiting=[])


def test_watching_needs_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as caught:
        watch_status(lambda width: "")
    assert caught.value.kind == "usage"
