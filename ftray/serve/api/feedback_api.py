"""POST /v1/feedback and /v1/preferences: what came of an answer. Both may be sent again with the same key."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ftray.config import Config
from ftray.serve.api.openai_schema import UNIT_PATTERN, Unit
from ftray.serve.api.watch import Watch
from ftray.serve.experiment.spec import MetricName, Recorded, Slug
from ftray.serve.outcomes.async_outcomes import AsyncOutcomes

ResponseId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,256}$")]
IdempotencyKey = Annotated[str, Field(pattern=UNIT_PATTERN)]


class FeedbackRequest(Config):
    """An outcome of a response, or of a unit."""

    response_id: ResponseId | None = None
    """The answer's id."""
    experiment: Slug | None = None
    """With `unit`, instead of response_id."""
    unit: Unit | None = None
    """With `experiment`, instead of response_id."""
    metric: MetricName = "outcome"
    """What was observed."""
    value: float | bool
    """The experiment's own metric: true, false or 0 to 1; a guardrail's: any number."""
    idempotency_key: IdempotencyKey
    """The same key again changes nothing."""

    @model_validator(mode="after")
    def _of_one_thing(self) -> Self:
        pair = (self.experiment, self.unit)
        if (pair == (None, None)) != (self.response_id is not None) or (None in pair and pair != (None, None)):
            raise ValueError("give either response_id, or experiment and unit")
        return self


class PreferenceRequest(Config):
    """A choice between two responses that one unit was shown."""

    experiment: Slug
    """Which experiment."""
    unit: Unit
    """Who chose."""
    chosen: ResponseId
    """The better answer's id; with `tie`, either of them."""
    rejected: ResponseId
    """The other one's."""
    tie: bool = False
    """Neither is better."""
    idempotency_key: IdempotencyKey
    """The same key again changes nothing."""


class Taken(Config):
    """What became of it."""

    status: Literal["recorded", "duplicate"]
    """recorded: it is on the disk. duplicate: it was already."""


class FeedbackApi:
    """The routes that take outcomes."""

    def __init__(self, outcomes: AsyncOutcomes, watch: Watch) -> None:
        self._outcomes, self._watch = outcomes, watch

    async def feedback(self, wanted: FeedbackRequest) -> Taken:
        """Take an outcome. A unit's first one of a metric counts; later ones are stored."""
        recorded = await self._outcomes.feedback(
            key=wanted.idempotency_key,
            metric=wanted.metric,
            value=float(wanted.value),
            response_id=wanted.response_id,
            experiment=wanted.experiment,
            unit=wanted.unit,
        )
        return self._taken(recorded)

    async def prefer(self, wanted: PreferenceRequest) -> Taken:
        """Take a choice between two answers."""
        recorded = await self._outcomes.prefer(
            key=wanted.idempotency_key,
            experiment=wanted.experiment,
            unit=wanted.unit,
            chosen=wanted.chosen,
            rejected=wanted.rejected,
            is_tie=wanted.tie,
        )
        return self._taken(recorded)

    def _taken(self, recorded: Recorded) -> Taken:
        if recorded == "recorded":
            self._watch.poke()
        return Taken(status=recorded)
