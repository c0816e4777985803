"""The cases of the `sweep` section: what a campaign of the job does, of the parts that it is made of, without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from leaf_case import Case, prepared
from ray.tune.search import Searcher
from sweep_trials import trial

from ftray.campaign import TrialResult
from ftray.job import LoadedJob
from ftray.space import SweepConfig
from ftray.sweep.choice import choose
from ftray.sweep.conclude import _train_seeds
from ftray.sweep.place import most_slots, num_trainers
from ftray.sweep.prepare import Campaign, plan_campaign, sweep_id_of
from ftray.sweep.schedulers import make_scheduler
from ftray.sweep.search import make_searcher
from ftray.sweep.spent import Spent
from ftray.sweep.stoppers import budget_stopper

CPUS = [{"CPU": 4.0, "memory": 2.0**36}]
HOURS_SPENT, TRAINER_HOURS_SPENT = 1.5, 2.6
SPACE = '{"rank": [4, 8], "learning_rate": [1e-4, 2e-4, 4e-4]}'
GIVEN = ('sweep={"trials": 4}', f"sweep.space={SPACE}")


def planned(loaded: LoadedJob) -> Campaign:
    return plan_campaign(loaded, prepared(loaded), sweep_id=sweep_id_of(loaded))


def settings(loaded: LoadedJob) -> SweepConfig:
    assert loaded.job.sweep is not None
    return loaded.job.sweep


def suggested(loaded: LoadedJob, folder: Path) -> Any:
    """Return the trials that the campaign's searcher asks for, in order, when nothing is told of any."""
    campaign = planned(loaded)
    configurations = campaign.configurations
    first = [configurations.default(), *(configurations.grid() if campaign.searcher == "grid" else [])]
    searcher = make_searcher(
        campaign.searcher, campaign.space, points=[spec.config for spec in first], trials=campaign.num_trials,
        seed=loaded.job.seed, mode="max", key_of=configurations.key,
    )  # fmt: skip
    asked: list[Any] = []
    while (suggestion := searcher.suggest(f"tune-{len(asked)}")) != Searcher.FINISHED:
        asked.append(suggestion)
    return asked


def stopped(loaded: LoadedJob, folder: Path) -> Any:
    """Return which trials the campaign's scheduler stops, when each is worse than the one before it."""
    campaign = planned(loaded)
    default = campaign.configurations.default().trial_id
    rule = make_scheduler(
        campaign.scheduler, max_tokens=1000, grace_tokens=100, mode="max", default_trial_id=default
    )  # fmt: skip
    for number in range(8):
        runner = SimpleNamespace(trial_id=f"tune-{number}")
        rule.on_trial_add(None, runner)
        result = {
            "trial": f"trial-{number}", "trial_id": runner.trial_id, "tokens": 100, "step": 4, "warmup_steps": 0,
            "best_validation_accuracy": 0.9 - 0.1 * number,
        }  # fmt: skip
        rule.on_trial_result(None, runner, result)
    return sorted(rule.reasons)


def mode(loaded: LoadedJob, folder: Path) -> Any:
    return planned(loaded).mode


def trials_on_a_base(loaded: LoadedJob, folder: Path) -> Any:
    return most_slots(settings(loaded).slots, num_trials=16, workers=2, learns=True)


def trainers_started(loaded: LoadedJob, folder: Path) -> Any:
    return num_trainers(settings(loaded).workers, CPUS, base=0, num_trials=16)


def finalists(loaded: LoadedJob, folder: Path) -> Any:
    results = [trial(f"trial-{number}", 0.5 + 0.1 * number) for number in range(5)]
    chosen = choose(results, higher_is_better=True, finalists=settings(loaded).finalists)
    return [result.trial_id for result in chosen.finalists]


def note_on_rows(loaded: LoadedJob, folder: Path) -> Any:
    return [note for note in planned(loaded).notes if "validation rows can show" in note]


def has_ended(loaded: LoadedJob, folder: Path) -> Any:
    """Return whether a campaign that has taken hours already is at its end."""
    now = [0.0]
    spent = Spent(folder / "spent.json", began=0.0, clock=lambda: now[0])
    now[0] += 3600 * (HOURS_SPENT - TRAINER_HOURS_SPENT / 2)
    spent.start_trainers(2)
    now[0] += 3600 * TRAINER_HOURS_SPENT / 2
    stopper = budget_stopper(settings(loaded).budget, spent)
    return stopper is not None and stopper.stop_all()


def seeds_trained(loaded: LoadedJob, folder: Path) -> Any:
    """Return the seeds with which the winner is trained again."""
    asked: list[int] = []

    def again(config: dict[str, Any], seeds: Any) -> list[TrialResult]:
        asked.extend(seeds)
        return []

    winner = choose([trial("winner", 0.9)], higher_is_better=True, finalists=1)
    _train_seeds(planned(loaded), winner, again, lambda text: None)
    return asked


SWEEP_CASES = {
    "sweep": Case(values=(None, {"space": {"rank": [4, 8]}}), effect=suggested),
    "sweep.space": Case(values=({"rank": [4, 8]}, {"rank": [4, 2]}), effect=suggested),
    "sweep.trials": Case(values=(3, 4), effect=suggested, given=(*GIVEN, "sweep.searcher=random")),
    "sweep.searcher": Case(values=("random", "grid"), effect=suggested, given=(f"sweep.space={SPACE}",)),
    "sweep.scheduler": Case(values=(None, "asha"), effect=stopped, given=GIVEN),
    "sweep.mode": Case(values=("auto", "trainers"), effect=mode, given=(*GIVEN, "compute.workers=1")),
    "sweep.slots": Case(values=("auto", 3), effect=trials_on_a_base, given=GIVEN),
    "sweep.workers": Case(values=("auto", 1), effect=trainers_started, given=GIVEN),
    "sweep.finalists": Case(values=(3, 2), effect=finalists, given=GIVEN),
    "sweep.resolution": Case(values=(None, 0.01), effect=note_on_rows, given=GIVEN),
    "sweep.budget": Case(values=(None, {"hours": 1.0}), effect=has_ended, given=GIVEN),
    "sweep.budget.hours": Case(values=(1.0, 2.0), effect=has_ended, given=GIVEN),
    "sweep.budget.accelerator_hours": Case(values=(2.0, 3.0), effect=has_ended, given=GIVEN),
    "sweep.seeds": Case(values=(1, 3), effect=seeds_trained, given=GIVEN),
}
