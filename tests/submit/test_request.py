from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftray.errors import InputError
from ftray.job import load_job, run_id_of
from ftray.submit.client import EntrypointResources
from ftray.submit.parcel import Reach
from ftray.submit.request import (
    Request,
    parse_environment,
    parse_labels,
    parse_secrets,
    require_apart,
    require_shared_storage,
)
from ftray.submit.submit import entrypoint, metadata


def request_of(job: Path, *, sets: tuple[str, ...] = (), **more: Any) -> Request:
    loaded = load_job(job, sets=sets, storage="/mnt/shared/runs")
    return Request(loaded=loaded, kind=more.pop("kind", "train"), reach=Reach(storage=loaded.storage), **more)


@pytest.mark.parametrize("given", ["./runs", "runs", "~/runs", "${HERE}/runs"])
def test_a_relative_storage_is_refused(job: Path, given: str) -> None:
    with pytest.raises(InputError) as caught:
        require_shared_storage(job, sets=[f"storage={given}"], flag=None, environment={"HERE": "there"})
    assert caught.value.kind == "relative_storage"
    assert caught.value.given == given


def test_the_default_storage_is_relative(job: Path) -> None:
    with pytest.raises(InputError) as caught:
        require_shared_storage(job, sets=[], flag=None, environment={})
    assert caught.value.file == str(job)
    with pytest.raises(InputError) as caught:
        require_shared_storage(job, sets=[], flag=None, environment={"FTRAY_STORAGE": "runs"})
    assert caught.value.file is None


def test_an_absolute_storage_passes_wherever_it_is_said(job: Path) -> None:
    require_shared_storage(job, sets=[], flag="/mnt/runs", environment={"FTRAY_STORAGE": "runs"})
    require_shared_storage(job, sets=[], flag=None, environment={"FTRAY_STORAGE": "/mnt/runs"})
    require_shared_storage(job, sets=["storage=${MOUNT}/runs"], flag=None, environment={"MOUNT": "/mnt"})


def test_environment_is_taken_from_here_where_no_value_is_given() -> None:
    assert parse_environment(["A=1", "B", "C=x=y"], {"B": "two"}) == {"A": "1", "B": "two", "C": "x=y"}


@pytest.mark.parametrize(
    ("given", "kind"), [("NOT_SET", "unset_variable"), ("1A=2", "bad_value"), ("RAY_ADDRESS=x", "bad_value")]
)
def test_environment_that_cannot_be_set_is_refused(given: str, kind: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_environment([given], {})
    assert caught.value.kind == kind


def test_secrets_are_named_and_never_shown() -> None:
    assert parse_secrets(["TOKEN"], {"TOKEN": "s3cret"}) == {"TOKEN": "s3cret"}
    with pytest.raises(InputError) as caught:
        parse_secrets(["TOKEN=s3cret"], {})
    assert "s3cret" not in str(caught.value.to_record())
    with pytest.raises(InputError):
        parse_secrets(["TOKEN"], {})


def test_a_secret_is_not_also_shown() -> None:
    require_apart({"A": "1"}, {"B": "2"})
    with pytest.raises(InputError):
        require_apart({"A": "1"}, {"A": "1"})


def test_labels() -> None:
    assert parse_labels(["team=search", "k8s.io/x=a=b", "empty="]) == {"team": "search", "k8s.io/x": "a=b", "empty": ""}
    for bad in ("team", "=x", "a b=c"):
        with pytest.raises(InputError):
            parse_labels([bad])


def test_the_entrypoint_is_the_command_for_the_job_that_travels(job: Path) -> None:
    request = request_of(job, gate=True)
    run_id = request.identity()
    assert run_id == run_id_of(request.loaded)
    words = entrypoint(request, run_id, python="python").split()
    assert words[:5] == ["python", "-m", "ftray", "train", "job.yaml"]
    assert words[5:] == ["--storage", "/mnt/shared/runs", "--expect-run-id", run_id, "--gate"]


def test_a_campaign_is_known_by_its_own_id(job: Path) -> None:
    request = request_of(job, kind="sweep", forced_mode="shared")
    sweep_id = request.identity()
    assert sweep_id != run_id_of(request.loaded)
    assert request.folder(sweep_id).name == f"boxes-sweep-{sweep_id[:12]}"
    assert entrypoint(request, sweep_id, python="python").endswith("--force-mode shared")


def test_a_fresh_run_is_another_one_and_says_which(job: Path) -> None:
    loaded = load_job(job, storage="/mnt/runs", attempt_salt="20260101T000000Z-abc", smoke=True)
    request = Request(loaded=loaded, kind="train", reach=Reach(storage=loaded.storage))
    assert request.identity() != request_of(job).identity()
    assert "--smoke --attempt 20260101T000000Z-abc" in entrypoint(request, request.identity(), python="python")


def test_metadata_says_what_status_shows_and_no_secret(job: Path) -> None:
    request = request_of(job, secrets={"TOKEN": "s3cret"}, labels={"team": "search"})
    known = metadata(request, request.identity())
    assert known["run_id"] == request.identity()
    assert known["path"] == f"/mnt/shared/runs/boxes-{request.identity()[:12]}"
    assert known["label.team"] == "search"
    assert all(isinstance(text, str) for text in known.values())
    assert "s3cret" not in str(known) + repr(request)


def test_other_questions_are_the_same_run_judged_otherwise(job: Path) -> None:
    one, other = request_of(job), request_of(job, sets=("evaluate.task.max_new_tokens=8",))
    assert one.identity() == other.identity()
    assert one.judged() != other.judged()


def test_a_larger_budget_lets_a_campaign_go_on(job: Path) -> None:
    sets = ("sweep.trials=4", "sweep.budget={hours: 1}")
    one = request_of(job, kind="sweep", sets=sets)
    other = request_of(job, kind="sweep", sets=(sets[0], "sweep.budget={hours: 2}"))
    assert one.identity() == other.identity()
    assert one.judged() != other.judged()


def test_the_command_asks_for_what_it_trains_with(job: Path) -> None:
    assert request_of(job).entrypoint_resources() == EntrypointResources(cpus=1, gpus=0)
    assert request_of(job, sets=("compute.workers=2",)).entrypoint_resources() == EntrypointResources()
    own = EntrypointResources(cpus=3, memory=2**30)
    assert request_of(job, resources=own).entrypoint_resources() == own
