"""A trainer as an actor. Whoever holds its handle loads this class: so it imports nothing of what a trainer needs.

A client would otherwise weigh three times as much and start three times as slowly, for torch that it never calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftray.observe import log
from ftray.space import Value

if TYPE_CHECKING:
    from ftray.sweep.trainer import TrainerOrder
    from ftray.train.secrecy import Secrets


class TrainerActor:
    """`trainer.SharedBaseTrainer`, imported where it runs."""

    def __init__(self, order: TrainerOrder, secrets: Secrets) -> None:
        secrets.set()
        log.in_worker()
        from ftray.sweep.trainer import SharedBaseTrainer

        self._trainer = SharedBaseTrainer(order)

    def choose_slots(self, configs: Sequence[Mapping[str, Value]], *, start: int) -> tuple[int, dict[int, float]]:
        return self._trainer.choose_slots([dict(config) for config in configs], start=start)

    def offer(self, config: Mapping[str, Value]) -> dict[str, Any]:
        return self._trainer.offer(dict(config))

    def take(self, config: Mapping[str, Value], slots: int, *, must: bool) -> bool:
        return self._trainer.take(dict(config), slots, must=must)

    def next_result(self, trial_id: str, after: int, timeout: float) -> dict[str, Any] | None:
        return self._trainer.next_result(trial_id, after, timeout)

    def leave(self, trial_id: str) -> None:
        self._trainer.leave(trial_id)

    def publish(self, trial_id: str) -> None:
        self._trainer.publish(trial_id)

    def end(self) -> None:
        self._trainer.end()

    def state(self) -> dict[str, Any]:
        return self._trainer.state()

    def answer(
        self, adapters: Mapping[str, Path], which: Sequence[str], slots: int, *, with_base: bool
    ) -> dict[str, Any]:
        return self._trainer.answer(adapters, which, slots, with_base=with_base)
