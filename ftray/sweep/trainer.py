"""One copy of the base and the trials that share it, as a process that clients talk to: an actor on a cluster.

A thread of its own computes; calls only leave orders for it and wait for what it tells. It imports no Ray: `run.py`
makes it an actor, tests call it as it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ftray.artifacts import RunDirectory, digest_of, wait_for_lock, write_json
from ftray.campaign import Config, TrialDirectory
from ftray.errors import RunError
from ftray.evaluate.metrics import estimate
from ftray.evaluate.predict import Answers
from ftray.finish import FinalTasks
from ftray.job import LoadedJob
from ftray.model.bank import Bank
from ftray.model.bank_peft import load_slot
from ftray.model.bank_route import BASE
from ftray.model.base import load_model, own_device, recompute_activations
from ftray.model.forward import layout_for
from ftray.observe import log, spans
from ftray.sampling import Precision
from ftray.storage.mirror import DRIVER, of_trial
from ftray.storage.publisher import Publisher
from ftray.sweep.computing import IDLE_SECONDS, Computing
from ftray.sweep.configurations import Configurations
from ftray.sweep.measure import fastest, measure
from ftray.sweep.prefixes import shared_steps
from ftray.sweep.slots import Rows, SharedBase
from ftray.sweep.trial import TrialSpec
from ftray.sweep.trial_files import fetch_adapter
from ftray.sweep.trial_run import Result
from ftray.sweep.tune_config import spec_of_config
from ftray.train.memory import keep_freed_memory
from ftray.work import build_tasks, peak_memory_bytes, prepare_data

ORPHAN_SECONDS = 60.0
"""How long to wait for a trainer of a killed campaign to notice that it is alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOrder:
    """What a trainer needs to know; crosses process borders."""

    loaded: LoadedJob
    precision: str
    slots: int
    """At most so many trials at a time."""
    rank: int
    """The largest of the campaign."""
    data_digests: dict[str, str]
    """Of the rows that were checked: others are refused."""
    base_record: Path | None
    """Where this trainer writes what the base is worth on the validation rows; None where another does."""
    folder: Path
    """Of the campaign's trials."""
    configurations: Configurations
    sampling_precision: Precision | None = None
    threads: int | None = None
    number: int = 0
    """Which of the campaign's trainers it is."""
    tenure: int | None = None
    """Of the command's lease, where the storage is a store: without it the trainer publishes no more."""


class SharedBaseTrainer:
    """Trains the trials that join it."""

    def __init__(self, order: TrainerOrder) -> None:
        """Load data and base. Raises RunError `data` when the rows are not those that were checked."""
        if order.threads:
            torch.set_num_threads(order.threads)
        keep_freed_memory()
        self.order = order
        job = order.loaded.job
        log.bind(job=job.name, sweep=order.folder.parent.name.rpartition("-")[2], worker=order.number)
        with spans.root("trainer.load", job=job.name, worker=order.number):
            self._load(order)

    def _load(self, order: TrainerOrder) -> None:
        job = order.loaded.job
        datasets = prepare_data(order.loaded, audits=False, sampling_precision=order.sampling_precision)
        if datasets.digests != order.data_digests:
            raise RunError(
                "the trainers read other data than was checked: a file changed in between",
                kind="data",
                given=datasets.digests,
                allowed=order.data_digests,
                hint="Keep the data files as they are while a campaign goes on; then run the command again.",
            )
        validation, self._final = build_tasks(job, datasets)
        model: Any = load_model(job.model, precision=order.precision)
        if job.train.activation_checkpointing:
            recompute_activations(model)
        self._model = model.to(own_device())
        self._rows = Rows(
            train=datasets.train,
            validation=validation,
            tokenizer=datasets.tokenization.tokenizer,
            stop_token_ids=datasets.tokenization.stop_token_ids,
            metric_digest=digest_of(job.evaluate.task.model_dump()),
        )
        self._base = self._make_base(1)
        self._computing = Computing(self._work)
        self._joining = threading.Lock()
        self._left: set[str] = set()
        self._locks: dict[str, IO[str]] = {}
        campaign = order.loaded.place.mirror(order.folder.parent)
        self._publisher = Publisher(lease=campaign.under(DRIVER, order.tenure))
        """Of the trials that are in, where the storage is a store."""

    def _make_base(self, slots: int) -> SharedBase:
        job = self.order.loaded.job
        bank = Bank(self._model, slots=slots, rank=self.order.rank, target_modules=job.method.target_modules)
        base = SharedBase(
            bank,
            self._rows,
            precision=self.order.precision,
            base_name=job.model,
            layout=layout_for(self._model),
            tensorboard="tensorboard" in job.tracking,
        )
        base.wants_base = self._base_record is not None and not self._base_record.exists()
        return base

    @property
    def _base_record(self) -> Path | None:
        record = self.order.base_record
        return None if record is None else self.order.loaded.place.here(record)

    def _remake_base(self, slots: int) -> SharedBase:
        self._base.bank.detach()
        self._base = self._make_base(slots)
        return self._base

    # Before the campaign

    def choose_slots(self, configs: Sequence[Config], *, start: int) -> tuple[int, dict[int, float]]:
        """Measure how many trials to train at a time; return that and the seconds per trial and step."""
        assert not self._computing.has_started, "slots are chosen before trials join"
        seconds = measure(
            self._remake_base, [self._spec_of(config) for config in configs], start=start, most=self.order.slots
        )
        if not seconds:
            raise RunError(
                "one trial alone does not fit into memory",
                kind="oom",
                hint="Lower train.micro_batch_size or turn on train.activation_checkpointing.",
            )
        return fastest(seconds), seconds

    def start(self, slots: int) -> None:
        """Begin with this many slots."""
        if self._computing.has_started:
            return
        if slots != self._base.bank.slots:
            self._remake_base(slots)
        self._computing.start()

    # What clients ask

    def offer(self, config: Config) -> dict[str, Any]:
        """Say what this trainer could do for a trial: whether it has it, or trains its first steps; how many it has.

        Beside the fields of the space `config` may have `seed`.
        """
        spec = self._spec_of(config)
        if self._computing.has_started:
            # One that is broken has few trials, and must not get them all for that.
            self._computing.require_alive()
        with self._computing.changed:
            runs = dict(self._base.runs)
        return {
            "trial_id": spec.trial_id,
            "has": spec.trial_id in runs,
            "leads": any(trial_id in runs for trial_id in self._shared_steps(spec)),
            "load": self._num_computing(),
        }

    def take(self, config: Config, slots: int, *, must: bool) -> bool:
        """Let a trial in, unless all slots are taken and it need not be (`must`); begins with `slots` slots."""
        spec = self._spec_of(config)
        with self._joining:
            self.start(slots)
            has_place = self._num_computing() < self._base.limit
            shared = self._shared_steps(spec)
            if not (must or has_place or shared or spec.trial_id in self._base.runs):
                return False
            folder = self._folder(spec.trial_id)
            self._left.discard(spec.trial_id)
            self._computing.order(lambda: self._let_in(spec, folder, shared))
            return True

    def _folder(self, trial_id: str) -> RunDirectory:
        return RunDirectory(self.order.loaded.place.here(self.order.folder) / trial_id)

    def _let_in(self, spec: TrialSpec, folder: RunDirectory, shared: dict[str, int]) -> None:
        if spec.trial_id not in self._locks:
            folder.root.mkdir(parents=True, exist_ok=True)
            self._locks[spec.trial_id] = wait_for_lock(folder.worker_lock, seconds=ORPHAN_SECONDS)
            mirror = self.order.loaded.place.mirror(folder.root)
            mirror.fetch(of_trial)
            self._publisher.add(mirror.shelf(of_trial))
        self._base.join(spec, folder, shared=shared)

    def _spec_of(self, config: Config) -> TrialSpec:
        return spec_of_config(self.order.configurations, config)

    def _shared_steps(self, spec: TrialSpec) -> dict[str, int]:
        """Return the first steps that a trial has in common with those that are here, where it is worth it."""
        found = {run.trial_id: shared_steps(run.spec, spec) for run in list(self._base.runs.values())}
        return {trial_id: steps for trial_id, steps in found.items() if steps >= spec.plan.evaluate_every}

    def _num_computing(self) -> int:
        runs = list(self._base.runs.values())
        return sum(not run.is_over and run.following is None for run in runs)

    def next_result(self, trial_id: str, after: int, timeout: float) -> Result | None:
        """Return what a trial told after its first `after` results, as soon as it has; None after `timeout` seconds.

        Asking says that those before have been dealt with: the trial may go on. {} for a trial that is not here: this
        process has taken the place of one that died. Raises RunError for one that has left, and for whatever ended the
        computing.
        """
        deadline = time.monotonic() + timeout
        with self._computing.changed:
            while True:
                if trial_id in self._left:
                    raise RunError(f"trial {trial_id} has left this trainer", kind="unknown")
                if not self._computing.has_started:
                    return {}
                self._computing.require_alive()
                run = self._base.runs.get(trial_id)
                if run is None and not self._computing.has_orders:
                    return {}
                if run is not None:
                    if after > run.acknowledged:
                        run.acknowledged = after
                        self._computing.changed.notify_all()
                    if len(run.results) > after:
                        return run.results[after]
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._computing.changed.wait(left)

    def leave(self, trial_id: str) -> None:
        """Let a trial go, now; return when it has."""
        self._left.add(trial_id)
        if self._computing.has_started:
            self._computing.order(lambda: self._let_go(trial_id))

    def _let_go(self, trial_id: str) -> None:
        self._base.leave(trial_id)
        lock = self._locks.pop(trial_id, None)
        if lock is not None:
            self._publisher.drop(self._folder(trial_id).root)
            lock.close()

    def publish(self, trial_id: str) -> None:
        """Publish now what a trial has written, where the storage is a store. Raises RunError when it refuses."""
        self._publisher.flush(self._folder(trial_id).root)

    def state(self) -> dict[str, Any]:
        """Return what the campaign records of this trainer."""
        return {
            "notes": list(self._base.notes),
            "busy_seconds": self._computing.busy_seconds,
            "steps": self._base.steps_made,
            "peak_memory_bytes": peak_memory_bytes(),
            "slots": self._base.bank.slots,
            "limit": self._base.limit,
            "in_use": sum(run.slot is not None for run in list(self._base.runs.values())),
        }

    # After the campaign

    def answer(
        self, adapters: Mapping[str, Path], which: Sequence[str], slots: int, *, with_base: bool
    ) -> dict[str, Answers]:
        """Return what adapters, and the base as "", answer to tasks: of `validation`, `held_out` and `general`.

        Trials that are still in leave: a campaign asks when none trains any more.
        """
        with self._joining:
            self.start(slots)
        tasks = [task for kind in which for task in self._tasks(kind)]
        answers: dict[str, Answers] = {}
        done = threading.Event()

        def ask() -> None:
            try:
                self._ask(dict(adapters), tasks, answers, with_base=with_base)
            finally:
                done.set()

        self._computing.order(ask, wait=False)
        while not done.wait(IDLE_SECONDS):
            self._computing.require_alive()
        self._computing.require_alive()
        return answers

    def _ask(
        self, adapters: dict[str, Path], tasks: list[Any], answers: dict[str, Answers], *, with_base: bool
    ) -> None:
        base, names = self._base, list(adapters)
        adapters = {name: self._adapter(folder) for name, folder in adapters.items()}
        for trial_id in list(base.runs):
            self._let_go(trial_id)
        first = 0
        while first < len(names) or with_base:
            some = names[first : first + base.bank.slots]
            slots = {name: slot for slot, name in enumerate(some, start=1)}
            for name, slot in slots.items():
                load_slot(base.bank, slot, adapters[name])
            asked = ({"": BASE} if with_base else {}) | slots
            for name, found in zip(asked, base.answer(tasks, list(asked.values())), strict=True):
                answers[name] = found
            for slot in slots.values():
                base.bank.leave(slot)
            first += len(some)
            with_base = False

    def _adapter(self, folder: Path) -> Path:
        """Return an adapter's folder on this machine; the campaign's may be another."""
        place = self.order.loaded.place
        here = place.here(folder)
        if place.url is not None:
            fetch_adapter(place, TrialDirectory(here.parent))
        return here

    def _tasks(self, kind: str) -> list[Any]:
        final: FinalTasks = self._final
        task, *general = [task for task in final.tasks if task.lm_eval is None]
        if kind == "general":
            return general
        if kind == "validation":
            return [self._rows.validation]
        assert kind == "held_out", f"no tasks are called {kind}"
        return [task]

    # What the thread does

    def _work(self) -> bool:
        is_busy = self._base.work()
        self._write_base()
        return is_busy

    def _write_base(self) -> None:
        """Write what the base is worth on the validation rows, once it has been asked."""
        record, answers, place = self._base_record, self._base.base_answers, self.order.loaded.place
        if record is None or answers is None or record.exists():
            return
        value = estimate(self._base.metric, answers).to_record()
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, {"schema": "ftray/base/1", "validation": value, "n": len(answers)})
        place.mirror(record.parent).publish(record.name)

    def end(self) -> None:
        """Stop computing; what is in a checkpoint stays."""
        self._computing.end()
        for trial_id in list(self._base.runs):
            self._let_go(trial_id)
