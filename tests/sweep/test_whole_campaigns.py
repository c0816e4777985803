"""Whole campaigns in this process, on one Ray for the file: prefixes, numbers that end, budgets, Tune's own results."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from sweep_world import losses, write_job, write_world

from ftray.artifacts import RunDirectory, read_lines
from ftray.campaign import TrialResult
from ftray.finetune import finetune
from ftray.job import LoadedJob, load_job
from ftray.sweep.prepare import Campaign, prepare_campaign, sweep_id_of
from ftray.sweep.run import TUNE_SETTINGS, open_mode, sweep
from ftray.sweep.spent import Spent
from ftray.sweep.trial import OBJECTIVE, RESULT_KEY
from ftray.sweep.tuning import Search
from ftray.tracking import current_lines

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
HOUR = 3600.0
# Long enough that the second client joins while the first one trains.
LONG, SHORT = 20, 16
STEPS_PER_EPOCH = 10
NO_NUMBER = 1e30
"""A learning rate that no number survives."""
TRAIN = {
    "learning_rate": 2e-3, "epochs": LONG, "batch_size": 8, "schedule": "constant", "warmup": 2, "log_every": 1,
    "evaluate_every": STEPS_PER_EPOCH, "early_stopping": None,
}  # fmt: skip
LIKELIHOOD = {"task": {"metric": "nll"}}


@dataclass
class Watch:
    """Watches a campaign; its clock jumps by an hour at each of the first `jumps` evaluations."""

    jumps: int = 0
    ended: list[TrialResult] = field(default_factory=list)
    ahead: float = 0.0

    def clock(self) -> float:
        return time.monotonic() + self.ahead

    def say(self, text: str) -> None: ...
    def remember(self, trial: Any) -> None: ...

    def on_plan(self, plan: dict[str, Any]) -> None: ...

    def on_result(self, trial_id: str, config: Any, result: Any) -> None:
        if self.jumps:
            self.jumps, self.ahead = self.jumps - 1, self.ahead + HOUR

    def on_end(self, trial: TrialResult) -> None:
        self.ended.append(trial)


@dataclass(frozen=True)
class Searched:
    """The part of a campaign that Tune runs, and what its trainers say of it."""

    campaign: Campaign
    search: Search
    trainers: list[dict[str, Any]]

    @property
    def ledger(self) -> dict[str, TrialResult]:
        return {result.trial_id: result for result in self.search.ledger.results()}

    def folder(self, trial: TrialResult) -> RunDirectory:
        return RunDirectory(self.campaign.directory.trial(trial.trial_id).root)


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False,
        logging_level="error",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TUNE_SETTINGS.items():
            patch.setenv(name, value)
        yield
    ray.shutdown()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("campaigns")
    write_world(folder)
    return folder


def searched(loaded: LoadedJob, watch: Watch) -> Searched:
    """Run a campaign up to the choice of its winner."""
    campaign = prepare_campaign(loaded, sweep_id=sweep_id_of(loaded), forced=None)
    campaign.directory.trials.mkdir(parents=True)
    spent = Spent(campaign.directory.root / "spent.json", began=watch.clock(), clock=watch.clock)
    mode = open_mode(campaign)
    try:
        spent.start_trainers(mode.workers)
        search = Search(campaign, mode, [watch], spent)
        search.run()
        return Searched(campaign, search, mode.describe()["trainers"])
    finally:
        spent.stop_trainers()
        spent.write(at_once=True)
        mode.close()


@pytest.fixture(scope="module")
def family(world: Path) -> Searched:
    """Return a campaign of two learning rates, one of them no number survives, over two lengths each."""
    space = {"epochs": [SHORT, LONG], "learning_rate": [2e-3, NO_NUMBER]}
    job = write_job(
        world, "family.yaml", train=TRAIN, evaluate=LIKELIHOOD,
        sweep={"space": space, "slots": 2, "workers": 1},
    )  # fmt: skip
    return searched(load_job(job), Watch())


def of_family(family: Searched, *, epochs: int, rate: float) -> TrialResult:
    (found,) = [one for one in family.ledger.values() if one.config == {"epochs": epochs, "learning_rate": rate}]
    return found


def test_the_shorter_trial_is_the_beginning_of_the_longer_one(family: Searched, tmp_path: Path) -> None:
    short, long = (of_family(family, epochs=epochs, rate=2e-3) for epochs in (SHORT, LONG))
    assert (short.state, long.state) == ("completed", "completed")
    assert (short.prefix_of, long.prefix_of) == (long.trial_id, None)
    assert (short.steps, long.steps) == (SHORT * STEPS_PER_EPOCH, LONG * STEPS_PER_EPOCH)
    # Each step was made once; those that end in no number are few.
    assert long.steps <= family.trainers[0]["steps"] < long.steps + STEPS_PER_EPOCH
    alone = load_job(family.campaign.loaded.base / "family.yaml", sets=[f"train.epochs={SHORT}"], storage=str(tmp_path))
    own = finetune(alone, display=lambda line: None, on_plan=lambda prepared: None)
    own_losses = losses(RunDirectory(Path(own["path"])))
    assert len(own_losses) == short.steps
    for trial in (short, long):
        assert np.allclose(losses(family.folder(trial))[: short.steps], own_losses, rtol=0, atol=1e-4)
    assert short.best is not None
    assert own["selected"]["step"] == short.best.step
    assert own["selected"]["value"] == pytest.approx(short.best.validation_accuracy, abs=1e-4)
    assert short.adapter is not None
    assert Path(short.adapter, "adapter_model.safetensors").is_file()


def test_a_trial_whose_numbers_end_has_diverged_and_its_neighbours_have_not(family: Searched) -> None:
    for epochs in (SHORT, LONG):
        broken = of_family(family, epochs=epochs, rate=NO_NUMBER)
        assert broken.state == "diverged"
        assert "not a finite number" in broken.reason
        assert broken.steps < STEPS_PER_EPOCH
        assert broken.best is None
        assert broken.adapter is None
        # Its neighbours' losses are those of a run that has none: see the test before.
        assert all(math.isfinite(loss) for loss in losses(family.folder(of_family(family, epochs=epochs, rate=2e-3))))


def test_tunes_results_are_the_ledger(family: Searched) -> None:
    told = {result.metrics[RESULT_KEY]: result.metrics for result in family.search.grid}
    assert len(family.search.grid) == len(told) == 4
    assert told.keys() == family.ledger.keys()
    for trial_id, line in family.ledger.items():
        last = told[trial_id]
        assert line.steps == last["step"]
        assert (line.state == "completed") == last["finished"]
        assert (line.state == "diverged") == bool(last["nonfinite"])
        if line.best is not None:
            assert (line.best.step, line.best.validation_accuracy) == (last["best_step"], last[OBJECTIVE])
            assert line.tokens == last["tokens"]
    best = family.search.grid.get_best_result()
    of_ledger = [one for one in family.ledger.values() if one.best is not None]
    assert best.metrics[OBJECTIVE] == min(one.best.validation_accuracy for one in of_ledger if one.best)


def test_a_budget_ends_a_campaign_and_a_larger_one_goes_on_with_it(world: Path, tmp_path: Path) -> None:
    sweep_of = {"space": {"learning_rate": [2e-3, 4e-3]}, "slots": 1, "workers": 1, "budget": {"hours": 1.0}}
    job = write_job(world, "budget.yaml", train=TRAIN | {"epochs": 4}, evaluate=LIKELIHOOD, sweep=sweep_of)
    loaded = load_job(job, storage=str(tmp_path / "runs"))
    cut = searched(loaded, Watch(jumps=1))
    assert cut.search.is_out_of_budget
    (before,) = cut.ledger.values()
    assert before.state == "budget"
    assert "budget of 1 hours is spent" in before.reason
    assert 0 < before.steps < 4 * STEPS_PER_EPOCH
    assert before.adapter is not None
    lines = len(read_lines(cut.folder(before).metrics))

    watch = Watch()
    larger = load_job(job, sets=["sweep.budget.hours=3"], storage=str(tmp_path / "runs"))
    record = sweep(larger, display=watch)
    assert record["path"] == str(cut.campaign.directory.root)
    assert record["status"] == "completed"
    assert record["counts"] == {
        "requested": 2, "completed": 2, "pruned": 0, "diverged": 0, "failed": 0, "budget": 0, "deduplicated": 0,
    }  # fmt: skip
    assert record["seconds"]["wall"] > HOUR
    states = [(line["trial_id"], line["state"]) for line in read_lines(cut.campaign.directory.ledger)]
    assert states[0] == (before.trial_id, "budget")
    assert sorted(states[1:]) == sorted((trial.trial_id, "completed") for trial in watch.ended)
    # It went on from its checkpoint: what it had computed is not computed again.
    metrics = cut.folder(before).metrics
    again = [line for line in read_lines(metrics)[lines:] if line["kind"] == "step"]
    assert again[0]["step"] == before.steps + 1
    assert len([line for line in current_lines(metrics) if line["kind"] == "step"]) == 4 * STEPS_PER_EPOCH
    default = next(trial for trial in watch.ended if trial.is_default)
    own = finetune(load_job(job, storage=str(tmp_path / "own")), display=lambda _: None, on_plan=lambda _: None)
    assert default.best is not None
    assert own["selected"]["value"] == pytest.approx(default.best.validation_accuracy, abs=1e-4)
    assert sweep(larger, display=watch)["reused"]
