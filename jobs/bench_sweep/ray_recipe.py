"""Ray's documented way to tune Ray Train: a Tune function that builds a TorchTrainer for its trial.

python ray_recipe.py CAMPAIGN SCHEDULER FOLDER    runs every trial of the campaign; results go to FOLDER/results.json
Source: https://docs.ray.io/en/latest/train/user-guides/hyperparameter-optimization.html
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

Record = dict[str, Any]


def train_fn_per_worker(config: Record) -> None:
    """Train a trial; report each evaluation, and the adapter as a checkpoint where it is the best so far."""
    from plain_loop import train_trial

    campaign = json.loads(Path(config["campaign"]).read_text(encoding="utf-8"))
    group = ray.util.get_current_placement_group()
    assert group is not None, "Ray Train gives its workers a placement group"

    def report(numbers: Record, best_model: Any) -> bool:
        metrics = {**numbers, "placement_group": group.id.hex()}
        if best_model is None:
            ray.train.report(metrics)
            return True
        with tempfile.TemporaryDirectory() as folder:
            best_model.save_pretrained(folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        return True

    train_trial(campaign, campaign["trials"][config["trial"]], report)


def train_driver_fn(config: Record) -> None:
    """Build the trainer of one trial and wait for it."""
    trainer = ray.train.torch.TorchTrainer(
        train_fn_per_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker=config["worker"]),
        run_config=ray.train.RunConfig(
            name=f"train-{ray.tune.get_context().get_trial_id()}",
            storage_path=config["storage"],
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


class PlacementGroups(ray.tune.Callback):
    """Removes the placement group of a trial that has ended: one that was stopped leaves it behind."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._remove(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._remove(trial)

    def _remove(self, trial: Any) -> None:
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        group = (trial.last_result or {}).get("placement_group")
        if group is not None:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def main(campaign_file: Path, scheduler: str, folder: Path) -> None:
    campaign = json.loads(campaign_file.read_text(encoding="utf-8"))
    settings = campaign["recipe"]
    ray.init(
        num_cpus=settings["num_cpus"],
        include_dashboard=settings["include_dashboard"],
        object_store_memory=settings["object_store_bytes"],
        log_to_driver=False,
    )
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(train_driver_fn, settings["driver"]),
        param_space={
            "campaign": str(campaign_file),
            "trial": ray.tune.grid_search(list(range(len(campaign["trials"])))),
            "worker": settings["worker"],
            "storage": str(folder / "train"),
        },
        tune_config=ray.tune.TuneConfig(
            metric="best_validation_accuracy",
            mode="max",
            scheduler=ASHAScheduler(time_attr="tokens", **campaign["asha"]) if scheduler == "asha" else None,
            max_concurrent_trials=campaign["plain"]["at_a_time"],
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            callbacks=[PlacementGroups()] if settings["remove_placement_groups"] else [],
            verbose=0,
        ),
    )
    grid = tuner.fit()
    assert not grid.errors, f"{len(grid.errors)} trials failed: {grid.errors[0]}"
    results = {campaign["trials"][one.config["trial"]]["name"]: evaluations(one) for one in grid}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    ray.shutdown()


def evaluations(result: Any) -> list[Record]:
    """Return what a trial reported, in the form of the other side."""
    names = ("step", "tokens", "train_loss", "validation_loss", "validation_accuracy", "best_validation_accuracy")
    return [{name: line[name] for name in names} for line in result.metrics_dataframe.to_dict("records")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).resolve())
