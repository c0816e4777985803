"""Real trials, each a Ray Train run of its own under Ray Tune: what they report, what they leave, what they free."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from trial_world import load_world

from ftray.artifacts import digest_of, read_json
from ftray.campaign import Config, SweepDirectory
from ftray.errors import InputError, RunError
from ftray.job import LoadedJob, run_directory, run_id_of
from ftray.preflight import check
from ftray.storage.place import Place
from ftray.sweep.best import best_checkpoint, export_best
from ftray.sweep.per_trial import PerTrial, fitting_trials, make_trainable, require_same_copies
from ftray.sweep.reaper import Reaper
from ftray.sweep.trial import TrialSpec
from ftray.tracking import current_lines
from ftray.train.plan import Plan

pytestmark = [
    pytest.mark.ray,
    # Ray Train reads Ray Data's settings, whose own defaults warn.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
STEPS, EVERY = 12, 4
GOOD, STOPPED, BROKEN = 5e-3, 4e-3, 1e30
"""Learning rates: one that trains to its end, one that is stopped, one that leaves no number a number."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start one Ray for this file, with room for one worker: what a trial leaves behind stops the next one."""
    import ray

    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    if ray.is_initialized():
        ray.shutdown()
    ray.init(
        num_cpus=1, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False,
        logging_level="error",
    )  # fmt: skip
    yield
    ray.shutdown()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedJob:
    """Return a job whose rows can be learned in seconds."""
    train = {"learning_rate": GOOD, "max_steps": STEPS, "evaluate_every": EVERY, "checkpoint_every": STEPS}
    return load_world(tmp_path_factory.mktemp("world"), train=train)


def campaign_of(loaded: LoadedJob, root: Path) -> PerTrial:
    """Return a campaign over the learning rate."""
    run_id = run_id_of(loaded)
    prepared = check(loaded, run_id=run_id, run=run_directory(loaded, run_id))
    plan, job = prepared.plan, loaded.job

    # Defined in here, so that it travels to the drivers by value.
    def spec_of(config: Config) -> TrialSpec:
        rate = float(config["learning_rate"])
        return TrialSpec(
            trial_id=digest_of(config)[:12],
            config=config,
            seed=job.seed,
            job=job.model_copy(update={"train": job.train.model_copy(update={"learning_rate": rate})}),
            plan=replace(plan, schedule=replace(plan.schedule, peak=rate)),
        )

    return PerTrial(
        sweep=SweepDirectory(root),
        sweep_id="a" * 64,
        loaded=loaded,
        spec_of=spec_of,
        data_digests=prepared.datasets.digests,
    )


def run_campaign(
    campaign: PerTrial, rates: list[float], *, scheduler: Any = None, retries: int = 0, on_report: Any = None
) -> Any:
    """Run a trial for each learning rate, one at a time; return Tune's results and all reports, by rate."""
    from ray import tune

    reports: dict[float, list[dict[str, Any]]] = {rate: [] for rate in rates}

    class Listener(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            reports[trial.config["learning_rate"]].append(dict(result))
            if on_report is not None:
                on_report(result)

    tuner: Any = tune.Tuner(
        make_trainable(campaign),
        param_space={"learning_rate": tune.grid_search(rates)},
        tune_config=tune.TuneConfig(
            metric="best_validation_accuracy", mode="max", max_concurrent_trials=1, scheduler=scheduler
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(campaign.sweep.root),
            callbacks=[Reaper(campaign.groups), Listener()],
            failure_config=tune.FailureConfig(max_failures=retries),
            verbose=0,
        ),
    )
    return tuner.fit(), reports


def eventually(condition: Callable[[], bool], *, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def trial_processes() -> list[str]:
    """Return the titles of this Ray's drivers, controllers, workers and cleaners."""
    names = ("RayTrainWorker", "TrainController", "PlacementGroupCleaner", "run_trial", "ImplicitFunc")
    titles = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            titles.append(" ".join(process.cmdline()))
    return [title for title in titles if any(name in title for name in names)]


def require_nothing_left() -> None:
    """Fail unless every placement group, worker, controller and cleaner is gone."""
    from ray.util.placement_group import placement_group_table

    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    assert groups == []
    assert eventually(lambda: trial_processes() == []), trial_processes()


@pytest.fixture(scope="module")
def three(cluster: None, loaded: LoadedJob, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run three trials on one CPU; a scheduler stops the first, the second breaks, the third finishes."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class StopOne(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            stops = trial.config["learning_rate"] == STOPPED and result["step"] >= 2 * EVERY
            return TrialScheduler.STOP if stops else TrialScheduler.CONTINUE

    campaign = campaign_of(loaded, tmp_path_factory.mktemp("campaign"))
    grid, reports = run_campaign(campaign, [STOPPED, BROKEN, GOOD], scheduler=StopOne())
    require_nothing_left()
    return {"campaign": campaign, "grid": grid, "reports": reports}


@pytest.mark.slow
def test_every_trial_ends_although_one_leaves_its_workers_behind(three: dict[str, Any]) -> None:
    assert (three["grid"].num_terminated, three["grid"].num_errors) == (3, 0)
    reports = three["reports"]
    assert [report["step"] for report in reports[GOOD]] == [4, 8, 12]
    assert [report["finished"] for report in reports[GOOD]] == [False, False, True]
    assert [report["step"] for report in reports[STOPPED]] == [4, 8]
    assert not reports[STOPPED][-1]["finished"]
    assert not list(three["campaign"].groups.glob("*.group"))


@pytest.mark.slow
def test_a_report_says_what_the_trial_wrote(three: dict[str, Any]) -> None:
    campaign, report = three["campaign"], three["reports"][GOOD][-1]
    trial = campaign.sweep.trial(report["trial"])
    assert read_json(trial.record)["config"] == {"learning_rate": GOOD}
    lines = [line for line in current_lines(trial.metrics) if line["kind"] == "evaluation"]
    assert report["validation_accuracy"] == lines[-1]["val/accuracy"]
    assert report["validation_loss"] == lines[-1]["val/loss"]
    assert report["best_validation_accuracy"] == max(line["val/accuracy"] for line in lines)
    (last_step,) = [line for line in current_lines(trial.metrics) if line["kind"] == "step" and line["step"] == STEPS]
    assert report["tokens"] == last_step["train/tokens"]
    assert report["warmup_steps"] == 1
    assert (report["nonfinite"], report["failure"]) == ("", "")


@pytest.mark.slow
def test_a_trial_that_breaks_says_why_and_is_not_tried_again(three: dict[str, Any]) -> None:
    (report,) = three["reports"][BROKEN]
    assert "not a finite number" in report["nonfinite"]
    assert (report["failure"], report["done"], report["finished"]) == ("", True, False)
    campaign = three["campaign"]
    trial = campaign.sweep.trial(report["trial"])
    assert [line["event"] for line in current_lines(trial.metrics) if line["kind"] == "event"] == ["started"]
    assert export_best(trial, job=campaign.loaded.job, run_id=campaign.run_id(trial.root.name), higher_is_better=True) \
        is None  # fmt: skip


@pytest.mark.slow
def test_a_stopped_trial_has_no_checkpoint_that_it_did_not_tell_of(three: dict[str, Any]) -> None:
    campaign, report = three["campaign"], three["reports"][STOPPED][-1]
    trial = campaign.sweep.trial(report["trial"])
    assert [path.name for path in sorted(trial.checkpoints.glob("step-*"))] == ["step-00000004", "step-00000008"]
    assert max(line["step"] for line in current_lines(trial.metrics)) <= 9
    best = best_checkpoint(trial, run_id=campaign.run_id(report["trial"]), higher_is_better=True)
    assert best is not None
    selection, _ = best
    assert (selection.step, selection.value) == (report["best_step"], report["best_validation_accuracy"])


@pytest.mark.slow
def test_an_interrupted_trial_tells_again_what_it_told_and_goes_on(three: dict[str, Any]) -> None:
    campaign, earlier = three["campaign"], three["reports"][STOPPED]
    _, reports = run_campaign(campaign, [STOPPED])
    again = reports[STOPPED]
    names = ("trial", "step", "tokens", "validation_accuracy", "validation_loss", "train_loss", "best_step")
    assert [[report[name] for name in names] for report in again[:2]] == [
        [report[name] for name in names] for report in earlier
    ]
    assert [(report["step"], report["finished"]) for report in again] == [(4, False), (8, False), (12, True)]
    assert again[-1]["seconds"] > earlier[-1]["seconds"] + 1
    trial = campaign.sweep.trial(again[-1]["trial"])
    events = [line["event"] for line in current_lines(trial.metrics) if line["kind"] == "event"]
    assert events == ["started", "resumed at step 8"]
    require_nothing_left()


@pytest.mark.slow
def test_a_killed_driver_is_replaced_and_its_workers_make_room(
    cluster: None, loaded: LoadedJob, three: dict[str, Any], tmp_path: Path
) -> None:
    from ray.util.placement_group import placement_group

    # What a driver leaves that is killed before its workers could say where they stand: the only CPU is taken.
    orphan = placement_group([{"CPU": 1.0}])
    assert orphan.wait(20)
    killed = []

    def kill_once(report: dict[str, Any]) -> None:
        if not killed:
            killed.append(report["pid"])
            assert len(trial_processes()) >= 3
            os.kill(report["pid"], signal.SIGKILL)

    campaign = campaign_of(loaded, tmp_path)
    grid, reports = run_campaign(campaign, [GOOD], retries=1, on_report=kill_once)
    assert (grid.num_terminated, grid.num_errors, len(killed)) == (1, 0, 1)
    undisturbed = three["reports"][GOOD][-1]
    names = ("step", "tokens", "validation_accuracy", "validation_loss", "train_loss")
    assert [reports[GOOD][-1][name] for name in names] == [undisturbed[name] for name in names]
    require_nothing_left()


@pytest.mark.parametrize(
    ("workers", "nodes", "fits"),
    [
        (1, [{"CPU": 3.0}], 3),
        (2, [{"CPU": 3.0}], 1),
        (2, [{"CPU": 3.0}, {"CPU": 1.0}], 2),
    ],
)
def test_how_many_trials_fit(loaded: LoadedJob, workers: int, nodes: list[dict[str, float]], fits: int) -> None:
    assert fitting_trials(plan_of(loaded, workers), nodes) == fits


def test_a_trial_that_never_fits_is_refused(loaded: LoadedJob) -> None:
    needy = replace(plan_of(loaded, 1), gpus_per_worker=2.0)
    with pytest.raises(InputError, match="2 GPUs") as caught:
        fitting_trials(needy, [{"CPU": 8.0, "GPU": 1.0}])
    assert caught.value.kind == "too_few_resources"
    with pytest.raises(InputError, match=r"compute\.workers is 0"):
        fitting_trials(plan_of(loaded, 0), [{"CPU": 8.0}])


def plan_of(loaded: LoadedJob, workers: int) -> Plan:
    compute = loaded.job.compute.model_copy(update={"workers": workers})
    asked = replace(loaded, job=loaded.job.model_copy(update={"compute": compute}))
    run_id = run_id_of(asked)
    return check(asked, run_id=run_id, run=run_directory(asked, run_id)).plan


def test_a_driver_with_another_copy_of_the_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAY_CACHE", str(tmp_path / "command"))
    place = Place("s3://bucket/runs")
    campaign: Any = SimpleNamespace(loaded=SimpleNamespace(place=place), sweep=SweepDirectory(place.folder / "one"))
    require_same_copies(campaign)
    monkeypatch.setenv("FTRAY_CACHE", str(tmp_path / "ray"))
    with pytest.raises(RunError, match="the command at") as caught:
        require_same_copies(campaign)
    assert "FTRAY_CACHE" in caught.value.hint
