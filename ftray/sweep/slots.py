"""Many trials on one base: the trainings of a campaign that share this process's copy of it, a slot for each.

Trials join and leave between steps. What a trial computes does not depend on its neighbours: they share forward passes
and nothing else. It knows neither Ray nor Tune; `trainer.SharedBaseTrainer` runs it on a cluster.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftray.artifacts import RunDirectory
from ftray.data.conversations import REPLAY
from ftray.data.tokenization import TokenizedExample
from ftray.errors import RunError, is_out_of_memory
from ftray.evaluate.config import Metric
from ftray.evaluate.graders import needs_generation
from ftray.evaluate.loss import mean_losses
from ftray.evaluate.metrics import aggregate, estimate
from ftray.evaluate.predict import Answers, Asked, RowPrediction, predict_slots
from ftray.evaluate.scored import Scored, score_slots
from ftray.evaluate.tasks import Task
from ftray.model.bank import Bank
from ftray.model.bank_route import BASE
from ftray.sweep.gradients import Gradients, RowSum, Step, first_line, slot_of
from ftray.sweep.prefixes import shared_steps
from ftray.sweep.slot_state import copy_checkpoints, prune, restore_state, save_state
from ftray.sweep.trial import TrialSpec
from ftray.sweep.trial_run import StepOutcome, TrialRun
from ftray.train.bank_engine import BankEngine, SlotState
from ftray.train.checkpoint import newest_whole
from ftray.train.loss_spike import RowLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What trials train on and are scored on."""

    train: list[TokenizedExample]
    validation: Task
    tokenizer: Any
    stop_token_ids: Sequence[int]
    metric_digest: str


class SharedBase:
    """Trains up to `slots` trials at a time on one copy of the base; further ones wait."""

    def __init__(
        self, bank: Bank, rows: Rows, *, precision: str, base_name: str, layout: Any, tensorboard: bool = False
    ) -> None:
        self.engine = BankEngine(bank, precision=precision)
        self.rows = rows
        self.base_name = base_name
        self.layout = layout
        self.tensorboard = tensorboard
        self.runs: dict[str, TrialRun] = {}
        self._waiting: list[TrialRun] = []
        self._parked: dict[str, SlotState] = {}
        self.notes: list[str] = []
        self.gradients = Gradients(self.engine, layout=layout, notes=self.notes, park=self._park)
        self.steps_made = 0
        """Steps of trials that were computed; one that several have in common counts once."""
        self.base_answers: list[RowPrediction] | None = None
        self.wants_base = False
        """Whether the base is asked beside the next evaluation, into `base_answers`."""

    @property
    def bank(self) -> Bank:
        return self.engine.bank

    @property
    def limit(self) -> int:
        """Trials that train at the same time; out of memory halves it."""
        return self.gradients.limit

    @property
    def metric(self) -> Metric:
        return self.rows.validation.metric

    # In and out

    def join(self, spec: TrialSpec, folder: RunDirectory, *, shared: dict[str, int] | None = None) -> TrialRun:
        """Let a trial in; it goes on from its newest checkpoint. One that is in already stays as it is.

        `shared`: the first steps that it has in common with other trials, by their id.
        """
        known = self.runs.get(spec.trial_id)
        if known is not None:
            return known
        run = TrialRun(
            spec,
            folder,
            self.rows.train,
            metric=self.metric,
            metric_digest=self.rows.metric_digest,
            tensorboard=self.tensorboard,
        )
        self.runs[spec.trial_id] = run
        checkpoint, notes = newest_whole(folder.checkpoints, run_id=spec.trial_id)
        self.notes += notes
        leader = None if checkpoint else self._leader(run, shared or {})
        if leader is not None:
            # First: what is told of a trial is there to be kept.
            copy_checkpoints(leader.folder.checkpoints, folder.checkpoints, leader.trial_id, trial_id=spec.trial_id)
            run.follow(leader)
            return run
        run.resume(
            checkpoint.progress() if checkpoint else None,
            note=f"resumed at step {checkpoint.step}" if checkpoint else "started",
        )
        if not run.is_over:
            self._waiting.append(run)
        return run

    def leave(self, trial_id: str) -> None:
        """Let a trial go, finished or not; those that followed it go on by themselves."""
        run = self.runs.pop(trial_id, None)
        if run is None:
            return
        self._separate(run, self._followers(run))
        if run in self._waiting:
            self._waiting.remove(run)
        self._vacate(run)
        self._parked.pop(trial_id, None)
        run.close()

    def _vacate(self, run: TrialRun) -> None:
        if run.slot is not None:
            self.engine.leave(run.slot)
            run.slot = None

    def place_waiting(self) -> None:
        """Put waiting trials into free slots."""
        taken = {run.slot for run in self.runs.values() if run.slot is not None}
        free = [slot for slot in range(1, self.bank.slots + 1) if slot not in taken]
        while self._waiting and free and len(taken) < self.limit:
            run, slot = self._waiting.pop(0), free.pop(0)
            if self._fits(run, slot):
                taken.add(slot)
                run.slot = slot

    def _fits(self, run: TrialRun, slot: int) -> bool:
        """Fill a slot; without the memory for it the trial waits for the others, or fails where there are none."""
        parked = self._parked.get(run.trial_id)
        try:
            self._fill(run, slot)
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        if parked is not None:
            self._parked[run.trial_id] = parked
        placed = len(self._placed())
        if placed:
            self.gradients.limit = placed
            self.notes.append(f"out of memory when trial {placed + 1} was to begin: {placed} at a time from now on")
            self._waiting.insert(0, run)
        else:
            run.fail(f"out of memory before its first step: {reason}")
        return False

    def _fill(self, run: TrialRun, slot: int) -> None:
        """Put a trial's numbers into a slot: those it was parked with, of its newest checkpoint, or fresh ones."""
        spec = run.spec
        parked = self._parked.pop(run.trial_id, None)
        if parked is not None:
            self.engine.restore(slot, parked)
            return
        checkpoint, _ = newest_whole(run.folder.checkpoints, run_id=run.trial_id)
        if checkpoint is not None:
            restore_state(self.engine, slot, checkpoint, weight_decay=spec.plan.weight_decay)
            return
        assert not run.progress.step, "a trial that has trained has its numbers somewhere"
        self.engine.join(slot, spec.job.method, seed=spec.seed, weight_decay=spec.plan.weight_decay)

    def _park(self, run: TrialRun) -> None:
        """Take a trial out of its slot for a while."""
        assert run.slot is not None
        self._parked[run.trial_id] = self.engine.state(run.slot)
        self._vacate(run)
        self._waiting.insert(0, run)

    # Trials that are the beginning of others

    def _leader(self, run: TrialRun, shared: dict[str, int]) -> TrialRun | None:
        """Return a trial whose steps, those to come included, `run` has in common with it."""
        # The one that has most in common first.
        for trial_id, steps in sorted(shared.items(), key=lambda item: -item[1]):
            leader = self.runs.get(trial_id)
            if leader is None or leader.following is not None or leader.is_over:
                continue
            if leader.progress.step < steps and self._asks_alike(leader, run):
                run.shared_steps = steps
                return leader
        return None

    @staticmethod
    def _asks_alike(leader: TrialRun, run: TrialRun) -> bool:
        """Whether what the leader has told so far is what `run` would have told."""
        one, other = leader.training.plan, run.training.plan
        return one.evaluate_every == other.evaluate_every and one.checkpoint_every == other.checkpoint_every

    def _followers(self, run: TrialRun) -> list[TrialRun]:
        return [one for one in self.runs.values() if one.following is run and not one.is_over]

    def _longer(self, run: TrialRun) -> str | None:
        """Return a trial of which `run`, the whole of it, is the beginning: each step is done once for both."""
        if run.following is not None:
            return run.following.trial_id
        total = run.spec.plan.total_steps
        longer = [
            one for one in self._followers(run) if one.shared_steps >= total and one.spec.plan.total_steps > total
        ]
        return max(longer, key=lambda one: one.spec.plan.total_steps).trial_id if longer else None

    def _separate(self, leader: TrialRun, followers: list[TrialRun]) -> None:
        """Let followers go on without their leader from where it is: the longest by itself, the others with it."""
        leading: list[TrialRun] = []
        for run in sorted(followers, key=lambda one: one.spec.plan.total_steps, reverse=True):
            run.following = None
            common = {one.trial_id: shared_steps(one.spec, run.spec) for one in leading}
            next_leader = self._leader(run, common)
            if next_leader is not None:
                run.following = next_leader
                continue
            leading.append(run)
            if leader.slot is not None and leader.progress.step:
                self._parked[run.trial_id] = self.engine.state(leader.slot)
            elif leader.trial_id in self._parked:
                self._parked[run.trial_id] = self._parked[leader.trial_id]
            self._waiting.append(run)

    # Work

    def work(self) -> bool:
        """Do what there is to do next: evaluations that are due, else one step of every trial that can make one.

        Return False when every trial waits for its client or is over.
        """
        for run in self._placed():
            if run.is_over:
                self._separate(run, self._followers(run))
                self._vacate(run)
        self.place_waiting()
        due = [run for run in self._placed() if self._due(run) and not any(one.is_blocked for one in self._group(run))]
        if due:
            self._evaluate(due)
            return True
        ready = [run for run in self._placed() if not self._due(run) and not run.is_over]
        if ready:
            self.step(ready)
            return True
        return False

    def _placed(self) -> list[TrialRun]:
        return sorted((run for run in self.runs.values() if run.slot is not None), key=lambda run: run.slot or 0)

    def _group(self, run: TrialRun) -> list[TrialRun]:
        return [run, *self._followers(run)]

    def _due(self, run: TrialRun) -> bool:
        return any(one.is_due for one in self._group(run))

    def step(self, runs: list[TrialRun]) -> None:
        """Make one optimizer step of each of these trials, which are in slots."""
        began = time.perf_counter()
        for run in runs:
            self._separate(run, [one for one in self._followers(run) if one.progress.step >= one.shared_steps])
        steps = [self.gradients.prepared(run) for run in runs]
        losses = self.gradients.accumulate(steps)
        steps = [step for step in steps if not step.run.failure]
        finite = [step for step in steps if self.gradients.are_finite(step, losses)]
        if not finite:
            return
        norms = self.engine.step(
            {slot_of(step.run): step.inputs.learning_rate for step in finite},
            max_grad_norm={slot_of(step.run): step.run.spec.plan.max_grad_norm for step in finite},
        )
        self.steps_made += len(finite)
        seconds = time.perf_counter() - began
        for step in finite:
            self._advance(step, losses[step.run.trial_id], norms[slot_of(step.run)], seconds=seconds)

    def _advance(self, step: Step, rows: list[RowSum], norm: float, *, seconds: float) -> None:
        run, inputs = step.run, step.inputs
        if not math.isfinite(norm):
            run.fail(f"the gradient norm of step {inputs.step + 1} is not a finite number", nonfinite=True)
            return
        of_task = [row for row in rows if row.dataset != REPLAY]
        outcome = StepOutcome(
            inputs=inputs,
            rows=[RowLoss(dataset=row.dataset, row=row.row, loss=row.total / row.labels) for row in rows if row.labels],
            loss=sum(row.total for row in rows) / inputs.num_labels,
            task_loss=sum(row.total for row in of_task) / inputs.num_task_labels if inputs.num_task_labels else None,
            grad_norm=norm,
            seconds=seconds,
        )
        for one in self._group(run):
            try:
                one.advance(outcome)
            except RunError as error:
                one.fail(error.message)

    # Evaluations

    def _evaluate(self, runs: list[TrialRun]) -> None:
        """Score these trials on the validation rows; one that cannot be scored fails alone."""
        try:
            self._evaluate_together(runs)
            return
        except (RunError, RuntimeError, MemoryError) as error:
            reason, is_nonfinite = first_line(error), isinstance(error, RunError) and error.kind == "nonfinite"
        # Not in the handler, for memory's sake: see `Gradients.accumulate`.
        if len(runs) == 1:
            for one in self._group(runs[0]):
                one.fail(reason, nonfinite=is_nonfinite)
            return
        middle = len(runs) // 2
        self._evaluate(runs[:middle])
        self._evaluate(runs[middle:])

    def _evaluate_together(self, runs: list[TrialRun]) -> None:
        began = time.perf_counter()
        slots = [slot_of(run) for run in runs]
        asks_base = self.wants_base and self.base_answers is None
        scored = self._scored([*([BASE] if asks_base else []), *slots])
        if asks_base:
            self.base_answers = scored.pop(0).rows
        seconds = time.perf_counter() - began
        for run, found in zip(runs, scored, strict=True):
            value = estimate(self.metric, found.rows)
            for one in [one for one in self._group(run) if one.is_due]:
                one.evaluated(value=value, loss=found.loss, seconds=seconds, prefix_of=self._longer(one))
                self._save(one, slot_of(run))
                one.tell()

    def _scored(self, slots: list[int]) -> list[Scored]:
        """Return each slot's answers to the validation rows, and its loss on them."""
        task = self.rows.validation
        if needs_generation(task.metric):
            return score_slots(task, self._asked, self.bank, slots)
        rows = [answers[task.name] for answers in self.answer([task], slots)]
        if all(row.nll is not None for found in rows for row in found):
            losses = [aggregate(Metric(metric="nll"), found) for found in rows]
        else:
            losses = mean_losses([row.example for row in task.rows], self.bank, slots, layout=self.layout)
        return [Scored(rows=found, loss=loss) for found, loss in zip(rows, losses, strict=True)]

    def _save(self, run: TrialRun, slot: int) -> None:
        save_state(self.engine, slot, run.progress, run.folder.checkpoints, trial_id=run.trial_id, base=self.base_name)
        kept = {run.best.step if run.best else None, run.progress.step}
        prune(run.folder.checkpoints, trial_id=run.trial_id, kept=kept)

    def answer(self, tasks: Sequence[Task], slots: Sequence[int]) -> list[Answers]:
        """Return what each slot answers to every task; slot 0 is the base."""
        return predict_slots(tasks, self._asked, self.bank, slots)

    @property
    def _asked(self) -> Asked:
        return Asked(
            model=self.bank.model,
            tokenizer=self.rows.tokenizer,
            stop_token_ids=self.rows.stop_token_ids,
            layout=self.layout,
        )
