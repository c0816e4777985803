"""Against a real Ray: submitted once, followed, detached, stopped, killed, resumed; and no secret anywhere."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from submit_world import Answer, LiveRay, make_job, until

from ftray import __version__
from ftray.job import load_job
from ftray.submit.address import DEFAULT_ADDRESS
from ftray.submit.parcel import Reach
from ftray.submit.request import Request
from ftray.submit.sealed import entry_of
from ftray.submit.submit import Submitted, installed_version, submit
from ftray.submit.versions import own_versions

pytestmark = [pytest.mark.ray]
SECRET = "a-value-that-nobody-may-see-0c5e1b7d93"
METRIC = f"""
import hashlib, os

def knows(prediction, expected):
    found = hashlib.sha256(os.environ["PROBE_TOKEN"].encode()).hexdigest()
    assert found == "{hashlib.sha256(SECRET.encode()).hexdigest()}", "the secret has not arrived"
    return float(os.environ["SHOWN"] == "shown")
"""
GIVEN = ("--env", "SHOWN=shown", "--secret", "PROBE_TOKEN", "--label", "team=search")


@dataclass(frozen=True)
class Place:
    """A job folder and a storage."""

    job: Path
    storage: Path

    def words(self, *more: str) -> tuple[str, ...]:
        return ("submit", str(self.job), "--storage", str(self.storage), *more)


def make_place(folder: Path, base: Path, **changes: Any) -> Place:
    """Return a job whose metric knows whether the secret and the variable have arrived where it is asked."""
    asked = {"task": {"max_new_tokens": 4, "metric": "grading:knows"}}
    job = make_job(folder / "job", base, evaluate=asked, **changes)
    (job.parent / "grading.py").write_text(METRIC)
    (folder / "storage").mkdir()
    return Place(job, folder / "storage")


@dataclass(frozen=True)
class Done:
    """A submission that was followed to its end."""

    place: Place
    answer: Answer


@pytest.fixture(scope="session")
def done(live_ray: LiveRay, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run with one Ray worker."""
    place = make_place(tmp_path_factory.mktemp("done"), base, compute={"workers": 1})
    answer = live_ray.ftray(*place.words(*GIVEN, "--wait", "--json"), PROBE_TOKEN=SECRET)
    return Done(place, answer)


def test_it_is_followed_to_its_end_which_is_the_commands(done: Done) -> None:
    document = done.answer.document
    assert done.answer.exit_code == 0, done.answer.stderr
    assert document["submission_id"] == f"ftray-{document['run_id'][:12]}-1"
    assert (document["state"], document["ended"], document["exit_code"]) == ("submitted", "succeeded", 0)
    assert document["result"]["run_id"] == document["run_id"]
    assert document["result"]["engine"] == "deepspeed"
    assert any(line.startswith("step 2/4  loss ") for line in done.answer.stderr.splitlines())


def test_the_metric_saw_secret_and_environment_in_the_worker(done: Done) -> None:
    assert done.answer.document["result"]["test"]["tuned"]["value"] == 1.0


def test_the_runs_records_name_files_that_stay(done: Done) -> None:
    run = Path(done.answer.document["path"])
    named = json.loads((run / "job.json").read_text())["job"]
    for path in (named["model"], named["data"]["train"]["path"]):
        assert Path(path).exists()
        assert Path(path).is_relative_to(done.place.storage / "shipped")


def test_submitted_again_it_is_reported(live_ray: LiveRay, done: Done) -> None:
    before = len(live_ray.cluster().submissions())
    again = live_ray.ftray(*done.place.words("--json"))
    assert again.exit_code == 0, again.stderr
    assert again.document["state"] == "finished"
    assert again.document["submission_id"] == done.answer.document["submission_id"]
    assert again.document["result"] == {**done.answer.document["result"], "reused": True}
    assert live_ray.ftray(*done.place.words("--gate", "--quiet")).exit_code == 3
    hidden = done.place.storage.with_name("hidden")
    done.place.storage.rename(hidden)
    try:
        unseen = live_ray.ftray(*done.place.words("--json"))
    finally:
        hidden.rename(done.place.storage)
    assert (unseen.document["state"], unseen.document["reason"]) == ("finished", "the cluster says so")
    assert len(live_ray.cluster().submissions()) == before


def test_status_tells_how_it_stands(live_ray: LiveRay, done: Done) -> None:
    document = live_ray.ftray("status", str(done.place.job), "--json").document
    assert (document["state"], document["step"], document["total_steps"]) == ("succeeded", 4, 4)
    assert (document["run_id"], document["labels"]) == (done.answer.document["run_id"], {"team": "search"})
    everything = live_ray.ftray("status", "--json").document
    cluster = everything["cluster"]
    assert (cluster["nodes"], cluster["cpus"], cluster["gpus"]) == (1, 4.0, 0.0)
    assert [(node["head"], node["cpus"]) for node in cluster["each"]] == [(True, 4.0)]
    assert everything["queue"] == {"submissions": [], "resources": []}
    assert document["submission_id"] in [one["submission_id"] for one in everything["submissions"]]
    assert document["submission_id"] in live_ray.ftray("status").stdout


def test_where_the_folder_is_not_here_the_log_says_how_far_it_is(live_ray: LiveRay, done: Done, tmp_path: Path) -> None:
    words = ("status", done.answer.document["submission_id"], "--storage", str(tmp_path), "--json")
    document = live_ray.ftray(*words).document
    assert (document["state"], document["step"], document["total_steps"]) == ("succeeded", 4, 4)
    assert document["verdict"] is None


def test_logs_are_lines(live_ray: LiveRay, done: Done, capfd: pytest.CaptureFixture[str]) -> None:
    name = done.answer.document["submission_id"]
    document = live_ray.ftray("logs", name, "--json").document
    assert document["state"] == "succeeded"
    capfd.readouterr()
    last = live_ray.ftray("logs", name, "--follow", "--json").stdout
    followed = [json.loads(line) for line in (capfd.readouterr().out + last).splitlines()]
    assert [line["line"] for line in followed[:-1]] == document["lines"]
    assert [line["step"] for line in followed if "step" in line][-1] == 4
    assert followed[-1] == {"event": "ended", "submission_id": name, "state": "succeeded", "exit_code": 0}
    assert live_ray.ftray("logs", name).stdout.splitlines() == document["lines"]


def test_no_secret_is_anywhere(live_ray: LiveRay, done: Done) -> None:
    name = done.answer.document["submission_id"]
    entry = entry_of(live_ray.cluster().environment(name))
    assert entry is not None
    assert not live_ray.cluster().holds(entry)
    told = [done.answer.stdout, done.answer.stderr, live_ray.ftray("status", "--json").stdout]
    told += [live_ray.get(f"/api/jobs/{name}"), live_ray.get("/api/jobs/"), live_ray.get(f"/api/jobs/{name}/logs")]
    kinds = ("actors", "tasks", "workers", "runtime_envs", "jobs")
    told += [live_ray.get(f"/api/v0/{kind}?detail=true&limit=1000") for kind in kinds]
    assert "PROBE_TOKEN" not in "".join(told[2:])
    assert not [text for text in told if SECRET in text]
    files = [*done.place.storage.rglob("*"), *live_ray.folder.rglob("*")]
    read = [path for path in files if path.is_file()]
    assert len(read) > 50
    assert not [path for path in read if SECRET.encode() in path.read_bytes()]


def test_stopping_what_has_ended_says_so(live_ray: LiveRay, done: Done) -> None:
    document = live_ray.ftray("stop", done.answer.document["submission_id"], "--json").document
    assert (document["state"], document["was_live"]) == ("succeeded", False)


@pytest.mark.parametrize("words", [("submit", "{job}", "--storage", "/mnt/runs"), ("status",), ("logs", "x")])
@pytest.mark.parametrize("token", ["another", ""])
def test_a_wrong_token_is_refused_before_anything_is_queued(
    live_ray: LiveRay, job: Path, words: tuple[str, ...], token: str
) -> None:
    asked = [word.replace("{job}", str(job)) for word in words]
    answer = live_ray.ftray(*asked, "--json", RAY_AUTH_TOKEN=token)
    assert (answer.exit_code, answer.document["kind"]) == (2, "bad_token")
    assert "RAY_AUTH_TOKEN" in answer.document["allowed"]
    assert ("asks for a token" in answer.document["message"]) is not bool(token)
    assert live_ray.token not in answer.stdout + answer.stderr


def test_an_unknown_submission_is_refused(live_ray: LiveRay) -> None:
    answer = live_ray.ftray("logs", "nobody", "--json")
    assert (answer.exit_code, answer.document["kind"]) == (2, "missing_submission")


def test_the_clusters_versions_and_nodes_are_read(live_ray: LiveRay) -> None:
    cluster = live_ray.cluster()
    assert cluster.versions() == own_versions()
    (node,) = cluster.nodes()
    assert (node.is_head, node.cpus) == (True, 4.0)
    assert live_ray.address != DEFAULT_ADDRESS


def test_the_clusters_own_ftray_is_asked_for_its_version(live_ray: LiveRay, done: Done) -> None:
    import sys

    cluster = live_ray.cluster()
    before = len(cluster.submissions())
    assert installed_version(cluster, sys.executable) == __version__
    assert installed_version(cluster, "false") is None
    assert len(cluster.submissions()) == before


def drivers(run_id: str) -> list[psutil.Process]:
    """Return the processes of this run's command."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if run_id in process.cmdline():
                found.append(process)
    return found


def command_lines() -> str:
    """Return the command lines of all processes."""
    lines = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            lines += process.cmdline()
    return "\n".join(lines)


@pytest.mark.slow
def test_a_long_run_is_submitted_once_detached_stopped_killed_and_resumed(
    live_ray: LiveRay, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBE_TOKEN", SECRET)
    train = {"max_steps": 100_000, "log_every": 1, "evaluate_every": 20, "checkpoint_every": 5, "early_stopping": None}
    place = make_place(tmp_path, base, train=train)

    # Two at the same moment are one.
    loaded = load_job(place.job, storage=str(place.storage))
    request = Request(
        loaded=loaded,
        kind="train",
        reach=Reach(storage=place.storage),
        environment={"SHOWN": "shown"},
        secrets={"PROBE_TOKEN": SECRET},
    )
    came: list[Submitted] = []
    start = threading.Barrier(2)

    def submit_now() -> None:
        cluster = live_ray.cluster()
        start.wait()
        came.append(submit(request, cluster, say=lambda text: None))

    threads = [threading.Thread(target=submit_now) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.state for one in came) == ["attached", "submitted"]
    name, run_id = came[0].submission_id, came[0].run_id
    assert name == came[1].submission_id == f"ftray-{run_id[:12]}-1"

    # Ctrl-C detaches.
    with live_ray.start("logs", str(place.job), "--follow", "--json") as following:
        assert following.stdout is not None
        for line in following.stdout:
            if json.loads(line).get("step", 0) >= 6:
                break
        assert SECRET not in command_lines()
        following.send_signal(signal.SIGINT)
        rest, said = following.communicate(timeout=30)
    assert following.returncode == 130, said
    assert f"detached; {name} goes on" in said
    assert json.loads(rest.splitlines()[-1]) == {"event": "detached", "submission_id": name}
    document = live_ray.ftray("status", name, "--json").document
    assert (document["state"], document["total_steps"]) == ("running", 100_000)
    assert document["step"] >= 6
    assert document["seconds_left"] > 0

    # Stopped, it has written what it has.
    stopped = live_ray.ftray("stop", name, "--json")
    assert (stopped.document["state"], stopped.document["exit_code"]) == ("stopped", 130), stopped.stderr
    run = Path(document["path"])
    assert json.loads((run / "result.json").read_text())["status"] == "interrupted"

    # The next attempt goes on; its command is killed.
    again = live_ray.ftray(*place.words("--env", "SHOWN=shown", "--secret", "PROBE_TOKEN", "--json"))
    assert (again.document["state"], again.document["submission_id"]) == ("submitted", f"ftray-{run_id[:12]}-2")
    until(lambda: '"event": "resumed at step' in (run / "metrics.jsonl").read_text(), "a resumed run")
    for process in drivers(run_id):
        os.kill(process.pid, signal.SIGKILL)
    second = again.document["submission_id"]
    cluster = live_ray.cluster()
    until(lambda: cluster.submission(second).state == "failed", "a failed submission")
    entry = entry_of(cluster.environment(second))
    assert entry is not None
    assert cluster.holds(entry), "a killed command has not deleted its secrets"
    third = live_ray.ftray(*place.words("--env", "SHOWN=shown", "--secret", "PROBE_TOKEN", "--json"))
    assert (third.document["state"], third.document["submission_id"]) == ("submitted", f"ftray-{run_id[:12]}-3")
    assert "attempt 2 failed" in third.document["reason"]
    assert live_ray.ftray("stop", str(place.job), "--json").document["state"] in ("stopped", "failed")


@pytest.mark.slow
def test_a_campaign_is_submitted_as_a_run_is(live_ray: LiveRay, base: Path, tmp_path: Path) -> None:
    sweep = {"space": {"learning_rate": [1e-3, 5e-3]}, "trials": 2, "searcher": "grid", "slots": 2, "workers": 1}
    place = make_place(tmp_path, base, sweep=sweep)
    answer = live_ray.ftray(*place.words(*GIVEN, "--sweep", "--wait", "--json"), PROBE_TOKEN=SECRET)
    assert answer.exit_code == 0, answer.stderr
    document = answer.document
    assert document["result"]["sweep_id"] == document["run_id"]
    assert document["submission_id"] == f"ftray-{document['run_id'][:12]}-1"
    stands = live_ray.ftray("status", document["submission_id"], "--json").document
    assert (stands["kind"], stands["trials"], stands["state"]) == (
        "sweep",
        document["result"]["counts"]["completed"],
        "succeeded",
    )
    assert live_ray.ftray(*place.words("--sweep", "--json")).document["state"] == "finished"
