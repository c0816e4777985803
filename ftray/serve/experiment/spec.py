"""What an experiment is: its arms, what is measured, and when it ends by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field, model_validator

from ftray.config import Config

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{1,63}$")]
MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Status = Literal["running", "stopped", "promoted"]
Share = Annotated[float, Field(gt=0, lt=1)]
MEASURED = ("latency_seconds", "completion_tokens")
"""Metrics of a unit's first answer that the endpoint measures itself; the others come by feedback."""


class Arm(Config):
    """One side of an experiment."""

    name: Slug
    """How the report calls it."""
    model: Annotated[str, Field(min_length=1, max_length=256)]
    """A model as a request names it; what it stands for is fixed when the experiment begins."""
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Its share of the units, in relation to the other arms' weights."""


class Guardrail(Config):
    """What must not get worse, whatever the outcome says."""

    metric: MetricName
    """latency_seconds or completion_tokens, which are measured, or one that comes by feedback; any number."""
    direction: Literal["lower", "higher"]
    """Which way is better."""
    limit: float
    """An arm whose whole interval is beyond it has tripped the guardrail."""
    action: Literal["stop", "rollback"] = "stop"
    """stop ends the experiment; rollback also turns the alias of `promote` back, where it points at that arm."""


class Promote(Config):
    """What happens to a winner."""

    alias: Slug
    """Points at the winner as soon as there is one."""


class ExperimentSpec(Config):
    """An experiment as it is asked for: POST /v1/experiments."""

    name: Slug
    """Requests name it as exp:<name>."""
    arms: Annotated[list[Arm], Field(min_length=2, max_length=16)]
    """Two or more; the base is an arm like any other."""
    control: Slug
    """The arm that the others are compared with."""
    include: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the units that take part; the others get the control's answers and are not counted."""
    metric: MetricName = "outcome"
    """The outcome that decides: yes or no, or a number from 0 to 1, the higher the better."""
    alpha: Share = 0.05
    """Chance of a winner that is none, over all arms and all looks."""
    margin: Share = 0.02
    """A difference that is not worth having."""
    minimum_propensity: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """No arm may have a smaller share: what is rarely seen says nothing."""
    guardrails: Annotated[list[Guardrail], Field(max_length=16)] = []
    """Metrics that end the experiment."""
    shadow: Annotated[list[Arm], Field(max_length=4)] = []
    """Models that answer the same requests, unseen; their answers are recorded, not returned."""
    promote: Promote | None = None
    """Null: people promote."""

    @model_validator(mode="after")
    def _arms_fit(self) -> Self:
        names = [arm.name for arm in (*self.arms, *self.shadow)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two arms are called {twice[0]!r}")
        if self.control not in [arm.name for arm in self.arms]:
            raise ValueError(f"control is {self.control!r}, which is none of the arms")
        if self.metric in MEASURED:
            raise ValueError(f"{self.metric!r} is measured, and no number from 0 to 1: make it a guardrail")
        require_propensities({arm.name: arm.weight for arm in self.arms}, self.minimum_propensity)
        return self


def propensities(weights: dict[str, float]) -> dict[str, float]:
    """Return the chance of each arm."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def require_propensities(weights: dict[str, float], minimum: float) -> None:
    """Raise ValueError for an arm whose share is too small."""
    for name, share in propensities(weights).items():
        if share < minimum - 1e-12:
            raise ValueError(
                f"the arm {name!r} would get {share:.3g} of the units, and minimum_propensity is {minimum:g}: give it "
                "more weight, or take part with fewer units (include)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment as it stands. Plain data: it crosses process borders."""

    spec: ExperimentSpec
    digests: dict[str, str | None]
    """What each arm and shadow stood for when it began; None is the base."""
    weights: dict[str, float]
    """As they are now: those of the spec, or changed since."""
    status: Status
    reason: str
    salt: str
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """What a unit was shown first, and is shown from then on."""

    experiment: str
    unit: str
    arm: str
    propensity: float
    is_new: bool


Recorded = Literal["recorded", "duplicate"]


class UnknownResponse(Exception):
    """No such response, experiment or unit: 404."""


class Contradiction(Exception):
    """The same idempotency key with another value, or the same name with another content: 409."""


class OutOfRange(Exception):
    """A value that the metric cannot have: 422."""


class Outcomes(Protocol):
    """The store of exposures and outcomes. What a call has returned is on the disk; calls may come from any thread."""

    def create(self, spec: ExperimentSpec, digests: dict[str, str | None]) -> Experiment:
        """Begin an experiment. The same again is the same one; raises Contradiction for another of that name."""

    def experiment(self, name: str) -> Experiment:
        """Return an experiment, or raise UnknownResponse."""

    def experiments(self) -> list[Experiment]:
        """Return all of them, the oldest first."""

    def reweigh(self, name: str, weights: dict[str, float]) -> Experiment:
        """Change the weights for units that come from now on. Raises OutOfRange, Contradiction when it has ended."""

    def stop(self, name: str, *, reason: str, status: Status = "stopped") -> Experiment:
        """End an experiment; outcomes are still taken, units no longer exposed. Ending twice is once."""

    def expose(self, name: str, *, unit: str, arm: str, propensity: float, response_id: str) -> Exposure:
        """Note a response, and at a unit's first one its arm; return the arm that it has for good."""

    def feedback(
        self, *, key: str, metric: str, value: float, response_id: str | None, experiment: str | None, unit: str | None
    ) -> Recorded:
        """Take an outcome, of a response or of a unit. A unit's first one counts, later ones are stored."""

    def prefer(self, *, key: str, experiment: str, unit: str, chosen: str, rejected: str, is_tie: bool) -> Recorded:
        """Take a choice between two responses."""

    def measure(self, response_id: str, values: dict[str, float]) -> None:
        """Take what the endpoint measured of a response (`MEASURED`); a unit's first one counts."""

    def keep(self, response_id: str, *, arm: str, prompt: str, answer: str, until: float) -> None:
        """Store a prompt and its answer until a time (seconds since the epoch)."""

    def purge(self, now: float) -> int:
        """Delete the prompts and answers whose time is over; return how many."""

    def report(self, name: str) -> dict[str, object]:
        """Return the `experiment report` of CONTRACT, from running sums: its cost does not grow with the units."""

    def history(self, name: str) -> list[dict[str, Any]]:
        """Return how the report's numbers stood each time the outcomes had grown by a few percent, the oldest first."""

    def recompute(self, name: str) -> dict[str, object]:
        """Return the report as the raw events give it; it equals `report`. Its cost grows with the units."""

    def close(self) -> None:
        """Write what is waiting and close."""
