"""The gradients of one optimizer step of several trials, whatever happens to one of them or to the memory.

Trials share forward passes and nothing else: one that cannot be computed fails alone, and where memory runs out fewer
are computed at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ftray.data.collate import Layout, collate
from ftray.errors import is_out_of_memory
from ftray.sweep.forwards import LOGITS_CPU, LOGITS_GPU, Limits, Part, share_forwards
from ftray.sweep.trial_run import TrialRun
from ftray.train.bank_engine import BankEngine
from ftray.train.batches import share_out
from ftray.train.loop import SEEDS_PER_STEP
from ftray.train.plan import FORWARD_TOKENS_CPU, FORWARD_TOKENS_GPU
from ftray.train.state import StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSum:
    """One row's losses in a step."""

    dataset: str
    row: int
    total: float  # nats over its labels
    labels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One trial's part in a step of all."""

    run: TrialRun
    inputs: StepInputs
    parts: list[Part]


class Gradients:
    """Adds up the gradients of the trials' steps in an engine."""

    def __init__(
        self, engine: BankEngine, *, layout: Layout, notes: list[str], park: Callable[[TrialRun], None]
    ) -> None:
        """`notes`: where what was lowered is told. `park` takes a trial out of its slot for a while."""
        bank = engine.bank
        self.engine = engine
        self.layout = layout
        self.notes = notes
        self.park = park
        self.limit = bank.slots
        """Trials that train at the same time; out of memory halves it."""
        is_gpu = bank.device.type == "cuda"
        self._tokens = FORWARD_TOKENS_GPU if is_gpu else FORWARD_TOKENS_CPU
        vocabulary: Any = bank.model.config
        self._labels = max(1, (LOGITS_GPU if is_gpu else LOGITS_CPU) // int(vocabulary.vocab_size))
        self._micro_batch: dict[str, int] = {}

    def prepared(self, run: TrialRun) -> Step:
        """Return a trial's next step: its rows, in micro-batches as large as memory has allowed so far."""
        inputs = run.training.upcoming()
        sharing = run.training.plan.sharing(1)
        (batches,) = share_out(inputs.examples, sharing)
        most = self._micro_batch.get(run.trial_id)
        if most is not None:
            batches = [batch[first : first + most] for batch in batches for first in range(0, len(batch), most)]
        parts = [Part(slot=slot_of(run), index=index, examples=batch) for index, batch in enumerate(batches)]
        return Step(run=run, inputs=inputs, parts=parts)

    def are_finite(self, step: Step, losses: dict[str, list[RowSum]]) -> bool:
        """Return whether a trial's losses are numbers; where they are not, the trial fails and its step is undone."""
        rows = losses[step.run.trial_id]
        bad = [row for row in rows if not math.isfinite(row.total)]
        if bad:
            names = ", ".join(f"{row.dataset} row {row.row}" for row in bad[:8])
            step.run.fail(
                f"the loss of step {step.inputs.step + 1} is not a finite number. Examples: {names}", nonfinite=True
            )
            self.engine.forget_gradients([slot_of(step.run)])
        return not bad

    def accumulate(self, steps: list[Step]) -> dict[str, list[RowSum]]:
        """Compute the gradients of these steps; return the losses of each trial's rows.

        Memory that runs out lowers what is computed together. Where the shared pass fails otherwise, each trial is
        computed by itself: the one at fault fails, and the others go on.
        """
        try:
            return self._together(steps)
        except (RuntimeError, MemoryError, IndexError, ValueError) as error:
            is_oom, reason = is_out_of_memory(error), first_line(error)
        # Not in the handler: the error's traceback keeps the failed pass's tensors in memory until the handler ends.
        self._start_over(steps)
        if is_oom:
            return self._with_less(steps)
        if len(steps) == 1:
            steps[0].run.fail(f"step {steps[0].inputs.step + 1} cannot be computed: {reason}")
            return {steps[0].run.trial_id: []}
        return {trial_id: rows for step in steps for trial_id, rows in self.accumulate([step]).items()}

    def _with_less(self, steps: list[Step]) -> dict[str, list[RowSum]]:
        """Go on after memory has run out: fewer trials at a time, then smaller micro-batches; the last one fails."""
        if len(steps) > 1:
            self.limit = max(1, len(steps) // 2)
            self.notes.append(f"out of memory with {len(steps)} trials at a time: {self.limit} from now on")
            kept, rest = steps[: self.limit], steps[self.limit :]
            for step in rest:
                self.park(step.run)
            steps[:] = kept
            return self.accumulate(steps)
        (step,) = steps
        largest = max(len(part.examples) for part in step.parts)
        if largest == 1:
            step.run.fail("out of memory with a single example at a time: shorten data.max_length")
            return {step.run.trial_id: []}
        self._micro_batch[step.run.trial_id] = largest // 2
        self.notes.append(f"out of memory with {largest} examples of one trial at a time: {largest // 2} from now on")
        steps[0] = self.prepared(step.run)
        return self.accumulate(steps)

    def _start_over(self, steps: list[Step]) -> None:
        self.engine.forget_gradients([slot_of(step.run) for step in steps])

    def _together(self, steps: list[Step]) -> dict[str, list[RowSum]]:
        by_slot = {slot_of(step.run): step for step in steps}
        rows: dict[str, list[RowSum]] = {step.run.trial_id: [] for step in steps}
        limits = Limits(slots=self.limit, tokens=self._tokens, labels=self._labels)
        for forward in share_forwards([part for step in steps for part in step.parts], limits):
            examples = [example for part in forward for example in part.examples]
            owners = [part.slot for part in forward for _ in part.examples]
            losses = self.engine.accumulate_examples(
                collate(examples, self.layout),
                owners,
                normalisers={part.slot: by_slot[part.slot].inputs.num_labels for part in forward},
                dropout_seeds={
                    part.slot: by_slot[part.slot].inputs.seed * SEEDS_PER_STEP + part.index for part in forward
                },
                label_smoothing={part.slot: by_slot[part.slot].run.spec.plan.label_smoothing for part in forward},
            )
            for example, owner, total in zip(examples, owners, losses, strict=True):
                rows[by_slot[owner].run.trial_id].append(
                    RowSum(
                        dataset=example.dataset,
                        row=example.row,
                        total=total,
                        labels=int(example.is_label[1:].sum()),
                    )
                )
        return rows


def slot_of(run: TrialRun) -> int:
    """Return the slot that a trial is in."""
    assert run.slot is not None, "only trials in a slot compute"
    return run.slot


def first_line(error: BaseException) -> str:
    """Return what an error says first."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
