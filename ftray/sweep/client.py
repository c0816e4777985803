"""A trial as Ray Tune sees it: a thin client of the shared base that trains it. It holds no CPU and imports no torch.

Each evaluation of the trial is one `step` of the client, and asking for the next says that Tune lets the trial go on.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import tune

from ftray.errors import RunError
from ftray.sweep.trial import RESULT_KEY

WAIT_SECONDS = 20.0
"""How long one call waits for an evaluation; then it asks again."""
RETRY_SECONDS = 0.5
PATIENCE_SECONDS = 600.0
"""How long a trainer may take to come back after it died."""


class SharedTrial(tune.Trainable):
    """One trial that trains in a slot somewhere else."""

    def setup(self, config: dict[str, Any], *, trainers: list[Any], slots: int) -> None:  # type: ignore[override]
        """Take the handles of the campaign's trainers."""
        self._trainers = trainers
        self._slots = slots
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on as another trial: the process is used again."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._wanted = config
        self._heard = 0
        self._trainer: Any = None
        self._trial_id = ""
        self._failure = ""

    def step(self) -> dict[str, Any]:
        """Return the trial's next evaluation. Raises RunError for a trial that has failed, after it has said so."""
        if self._failure:
            raise RunError(self._failure, kind="unknown")
        result = self._next()
        self._heard += 1
        self._failure = result["failure"]
        # Tune has a `trial_id` of its own, and puts it over this one.
        return {**result, RESULT_KEY: result["trial_id"], "done": result["finished"] and not self._failure}

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if self._trainer is None:
                    self._join()
                result = ray.get(self._trainer.next_result.remote(self._trial_id, self._heard, WAIT_SECONDS))
            except ray.exceptions.RayActorError as error:
                # Ray starts it again; the trial goes on from its last checkpoint, here or in another trainer.
                self._trainer = None
                if time.monotonic() > deadline:
                    raise RunError(f"the trainer did not come back: {error}", kind="node") from error
                time.sleep(RETRY_SECONDS)
                continue
            if result == {}:
                # It was started again between two calls.
                self._trainer = None
            elif result is not None:
                found: dict[str, Any] = result
                return found

    def _join(self) -> None:
        """Find a trainer: the one that has this trial, one that is doing the same steps, or one with a free slot."""
        offers = self._offers()
        best_first = sorted(offers, key=lambda index: (offers[index], index))
        for index in best_first:
            if ray.get(self._trainers[index].take.remote(self._wanted, self._slots, must=False)):
                self._trainer = self._trainers[index]
                return
        # All are full: it waits where the fewest do.
        self._trainer = self._trainers[best_first[0]]
        ray.get(self._trainer.take.remote(self._wanted, self._slots, must=True))

    def _offers(self) -> dict[int, tuple[bool, bool, int]]:
        """Return each living trainer's rank for this trial, the lower the better."""
        asked = {index: trainer.offer.remote(self._wanted) for index, trainer in enumerate(self._trainers)}
        offers = {}
        lost: Exception | None = None
        for index, answer in asked.items():
            try:
                offer = ray.get(answer)
            except (ray.exceptions.RayActorError, RunError) as error:
                # Dead, or alive and unable to compute: the others may have room.
                lost = error
                continue
            self._trial_id = offer["trial_id"]
            offers[index] = (not offer["has"], not offer["leads"], offer["load"])
        if not offers:
            assert lost is not None, "a campaign has trainers"
            raise lost
        return offers

    def cleanup(self) -> None:
        """Leave the slot to the campaign: it knows whether this trial has ended or only its client."""

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Save nothing: the trainer keeps the trial's state, and tells it again to a new client."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing."""
