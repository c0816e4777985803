"""The mode `shared`: trainers as Ray actors, one for each GPU or CPU, each with the base once and slots for trials."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ftray.artifacts import RunDirectory
from ftray.campaign import Config, SweepDirectory
from ftray.errors import RunError, is_out_of_memory
from ftray.evaluate.predict import Answers
from ftray.space import SweepConfig
from ftray.sweep.actor import TrainerActor
from ftray.sweep.client import PATIENCE_SECONDS, RETRY_SECONDS, SharedTrial
from ftray.sweep.mode import BASE
from ftray.sweep.place import most_slots, num_trainers
from ftray.sweep.slot_state import export_adapter
from ftray.sweep.trainer import TrainerOrder
from ftray.sweep.trial_files import fetch_trial
from ftray.train.checkpoint import folder_name
from ftray.train.cluster import cluster_nodes
from ftray.train.launch import own_secrets, worker_environment

log = logging.getLogger(__name__)

START_CPU = 2
START_GPU = 4
"""Slots that are measured first: fewer are never the fastest."""
SPARE_CALLS = 8
"""Calls a trainer answers at a time beside those of its clients, each of which waits in one."""
END_SECONDS = 20.0
"""How long trainers have to put what they have written."""
THIN = {"node:__internal_head__": 0.001}
"""What a trial's client holds: a place on the head node and no CPU."""


class SharedBases:
    """The trainers of a campaign."""

    def __init__(
        self,
        order: TrainerOrder,
        sweep: SweepConfig,
        directory: SweepDirectory,
        *,
        num_trials: int,
        base: int,
        first: Sequence[Config],
        family: int = 1,
        learns: bool = True,
    ) -> None:
        """Start them and choose the slots with the `first` configurations of the campaign.

        `base`: its bytes. `family`: so many trials may be the beginning of one another; only one of them computes.
        `learns`: whether trials that have ended decide about others.
        """
        nodes = cluster_nodes()
        gpus = any(float(node.get("GPU", 0)) for node in nodes)
        self.directory = directory
        self._place = order.loaded.place
        self.workers = num_trainers(sweep.workers, nodes, base=base, num_trials=num_trials)
        wanted = most_slots(sweep.slots, num_trials=num_trials, workers=self.workers, learns=learns)
        order = replace(order, slots=wanted, threads=None if gpus else 1)
        self.trainers = [
            _actor(replace(order, number=index, base_record=None if index else order.base_record), has_gpu=gpus)
            for index in range(self.workers)
        ]
        self._leaving: list[Any] = []
        _wait_until_loaded(self.trainers)
        self.measured: dict[int, float] = {}
        self.slots: int | None = wanted
        chosen = wanted
        if sweep.slots == "auto":
            start = START_GPU if gpus else START_CPU
            chosen, self.measured = _asked(
                {0: partial(self.trainers[0].choose_slots.remote, list(first), start=start)}
            )[0]
        self.slots = chosen
        self.concurrency = min(num_trials, self.workers * chosen * family)

    def trainable(self) -> Any:
        """Return the thin client of the trainers."""
        bound = tune.with_parameters(SharedTrial, trainers=self.trainers, slots=self.slots)
        return tune.with_resources(bound, THIN)

    def callbacks(self) -> list[Any]:
        """Return none."""
        return []

    def release(self, trial_id: str) -> None:
        """Free a trial's slot, wherever it is."""
        self._leaving += [trainer.leave.remote(trial_id) for trainer in self.trainers]

    def settle(self) -> None:
        """Wait until no trainer has any of the trials that were released."""
        if self._leaving:
            # How it ended is not asked: a trainer that has died has let all of them go, too.
            ray.wait(self._leaving, num_returns=len(self._leaving))
        self._leaving = []

    def recall(self, trial_id: str) -> None:
        """Fetch a trial's records: its trainer may be on another machine."""
        if self._place.url is not None:
            fetch_trial(self._place, self.directory.trial(trial_id))

    def export(self, trial_id: str, best_step: int) -> Path:
        """Copy the adapter of a trial's best checkpoint, and publish it: its line in the ledger comes after it."""
        trial = RunDirectory(self.directory.trial(trial_id).root)
        mirror = self._place.mirror(trial.root)
        if mirror.is_remote:
            _asked({index: partial(one.publish.remote, trial_id) for index, one in enumerate(self.trainers)})
            mirror.fetch(lambda name: name.startswith(f"checkpoints/{folder_name(best_step)}/"))
        folder = export_adapter(trial, best_step)
        mirror.publish(folder.name)
        return folder

    def answer(self, folders: Mapping[str, Path], which: Sequence[str], *, with_base: bool) -> dict[str, Answers]:
        """Let all trainers answer at a time, the adapters shared out among them."""
        names = list(folders)
        shares = [names[index :: self.workers] for index in range(self.workers)]
        asked = {}
        for index, (trainer, share) in enumerate(zip(self.trainers, shares, strict=True)):
            asks_base = with_base and index == self.workers - 1
            if share or asks_base:
                some = {name: folders[name] for name in share}
                asked[index] = partial(trainer.answer.remote, some, list(which), self.slots, with_base=asks_base)
        answers: dict[str, Answers] = {}
        for found in _asked(asked).values():
            answers |= found
        assert set(answers) == {*folders, *([BASE] if with_base else [])}, "everybody asked has answered"
        return answers

    def describe(self) -> dict[str, Any]:
        """Return the trainers' notes, their peak memory and what was measured."""
        asked = _asked({index: trainer.state.remote for index, trainer in enumerate(self.trainers)})
        states = [asked[index] for index in range(self.workers)]
        return {
            "notes": list(itertools.chain.from_iterable(state["notes"] for state in states)),
            "trainers": [
                {key: state[key] for key in ("busy_seconds", "steps", "peak_memory_bytes", "limit")} for state in states
            ],
            "seconds_per_trial_step": {str(count): seconds for count, seconds in self.measured.items()},
        }

    def close(self) -> None:
        """End the trainers; of a store, first let them put what only their machines have."""
        try:
            if self._place.url is not None:
                ray.get([one.end.remote() for one in self.trainers], timeout=END_SECONDS)
        except (ray.exceptions.RayError, TimeoutError) as error:
            log.warning("what trainers wrote last may not be in the store: %s", error)
        finally:
            for trainer in self.trainers:
                ray.kill(trainer)


def _wait_until_loaded(trainers: Sequence[Any]) -> None:
    """Wait until all trainers have their data and base. Raises RunError for what one of them failed with."""
    try:
        ray.get([trainer.state.remote() for trainer in trainers])
    except ray.exceptions.RayActorError as error:
        lines = [line.strip() for line in str(error).splitlines() if "Error" in line and "RayActorError" not in line]
        raise RunError(
            f"a trainer could not start: {lines[-1] if lines else error}",
            kind="oom" if is_out_of_memory(str(error)) else "unknown",
            hint="Fewer trainers need less memory: sweep.workers. The same command starts them again.",
        ) from error


def _asked(calls: Mapping[int, Callable[[], Any]]) -> dict[int, Any]:
    """Return what trainers answer to these calls, by their number; one that dies is started again, and asked again.

    Raises RunError `node` for one that does not come back.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    answers: dict[int, Any] = {}
    while len(answers) < len(calls):
        waiting = {index: call() for index, call in calls.items() if index not in answers}
        for index, answer in waiting.items():
            try:
                answers[index] = ray.get(answer)
            except ray.exceptions.RayActorError as error:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"trainer {index} died and did not come back: {error}",
                        kind="node",
                        hint="Too little memory is the usual reason. The same command goes on from here.",
                    ) from error
                time.sleep(RETRY_SECONDS)
    return answers


def _actor(order: TrainerOrder, *, has_gpu: bool) -> Any:
    """Return a trainer as an actor: one that dies is started again, and its trials join it anew."""
    options: dict[str, Any] = {
        "num_cpus": 1,
        "num_gpus": 1 if has_gpu else 0,
        "max_restarts": -1,
        "max_concurrency": 2 * order.slots * 3 + SPARE_CALLS,
        "runtime_env": {"env_vars": worker_environment(has_gpu=has_gpu)},
    }
    return ray.remote(TrainerActor).options(**options).remote(order, own_secrets())
