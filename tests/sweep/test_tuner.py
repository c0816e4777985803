"""Searcher, scheduler and stoppers inside a real Tuner: trials without weights, whose results are what they are told.

One Ray for the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.stopper import CombinedStopper
from sweep.campaign import configurations

from ftray.sweep.configurations import Configurations
from ftray.sweep.schedulers import Sparing, make_scheduler
from ftray.sweep.search import Distinct, make_searcher
from ftray.sweep.stoppers import EarlyStopper, NonFinite
from ftray.sweep.trial import OBJECTIVE, RESULT_KEY
from ftray.train.config import EarlyStopping

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
EVALUATIONS = 6
SPACE = {"learning_rate": {"loguniform": [1e-5, 1e-2]}, "dropout": [0.0, 0.1]}


class Thin(tune.Trainable):
    """A trial's accuracy is its learning rate's distance to 1e-2; a rate near 1e-3 is no number."""

    def setup(self, config: dict[str, Any]) -> None:
        made: Configurations = config["made"]
        given = {field: value for field, value in config.items() if field != "made"}
        self.spec, self.step_done = made.spec(given), 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self.step_done += 1
        rate = self.spec.plan.schedule.peak
        accuracy = min(0.99, rate * 100) * self.step_done / EVALUATIONS
        finished = self.step_done == EVALUATIONS
        return {
            RESULT_KEY: self.spec.trial_id, "step": self.step_done, "tokens": 100 * self.step_done,
            "validation_accuracy": accuracy, OBJECTIVE: accuracy, "validation_loss": 1 - accuracy, "train_loss": 1.0,
            "warmup_steps": 0, "nonfinite": "nan" if 0.9e-3 < rate < 1.5e-3 else "", "finished": finished,
            "done": finished,
        }  # fmt: skip

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to keep."""


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    ray.init(
        num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(Path.cwd() / "tests")])}},
    )  # fmt: skip
    yield
    ray.shutdown()


def campaign(
    folder: Path, *, name: str, rule: str, trials: int = 8
) -> tuple[tune.ResultGrid, Distinct, Sparing, NonFinite, Configurations]:
    made = configurations(SPACE, train={"learning_rate": 1e-5})
    default = made.default()
    search = make_searcher(
        name, made.space, points=[default.config], trials=trials, seed=0, mode="max", key_of=made.key
    )
    scheduler = make_scheduler(
        rule, max_tokens=600, grace_tokens=100, mode="max", default_trial_id=default.trial_id,  # type: ignore[arg-type]
    )  # fmt: skip
    nonfinite = NonFinite()
    stoppers = [EarlyStopper(EarlyStopping(), higher_is_better=True), nonfinite]
    tuner = tune.Tuner(
        tune.with_resources(Thin, {"node:__internal_head__": 0.001}),
        param_space={"made": made},
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE, mode="max", search_alg=search, scheduler=scheduler, num_samples=-1,
            max_concurrent_trials=2, reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{name}-{rule}", storage_path=str(folder), stop=CombinedStopper(*stoppers), verbose=0
        ),
    )  # fmt: skip
    return tuner.fit(), search, scheduler, nonfinite, made


def ends(grid: tune.ResultGrid) -> dict[str, int]:
    return {result.metrics[RESULT_KEY]: result.metrics["step"] for result in grid}


def test_the_scheduler_decides_how_trials_end(tmp_path: Path) -> None:
    every, _, fifo, nonfinite, made = campaign(tmp_path, name="random", rule="none")
    halved, search, asha, _, _ = campaign(tmp_path, name="random", rule="asha")
    default = made.default().trial_id
    assert set(ends(every)) == set(ends(halved))
    assert len(ends(every)) == len(every) == len(halved) == 8
    assert {trial for trial, step in ends(every).items() if step < EVALUATIONS} == set(nonfinite.reasons)
    stopped = {trial for trial, step in ends(halved).items() if step < EVALUATIONS} - set(nonfinite.reasons)
    # Stopped for falling behind, each with its reason; the default, which is the worst, is not.
    assert fifo.reasons == {}
    assert set(asha.reasons) == stopped
    assert len(stopped) >= 2
    assert ends(halved)[default] == EVALUATIONS
    assert not search.exhausted


def test_no_trial_is_run_twice(tmp_path: Path) -> None:
    grid, search, _, _, _ = campaign(tmp_path, name="optuna", rule="none", trials=12)
    assert len(grid) == len(ends(grid)) == 12
    assert not grid.errors
    values = [trial.value for trial in search.inner._ot_study.trials if trial.value is not None]
    assert len(values) >= 12 - 1
