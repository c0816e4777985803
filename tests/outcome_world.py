"""Experiments for the tests of the store: a spec, and traffic that goes through the store's own doors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ftray.serve.experiment.assignment import assign
from ftray.serve.experiment.spec import Arm, Experiment, ExperimentSpec, Exposure, Guardrail, Outcomes
from ftray.serve.outcomes.store import Store, open_outcomes

BASE_AND_TUNED = {"base": None, "tuned": "ab" * 32}


def spec(name: str = "greeting", arms: tuple[str, ...] = ("base", "tuned"), **changes: object) -> ExperimentSpec:
    """Return an experiment; the first arm is the control."""
    given = {"name": name, "arms": [Arm(name=arm, model=f"tiny:{arm}") for arm in arms], "control": arms[0], **changes}
    return ExperimentSpec.model_validate(given)


def guardrails() -> list[Guardrail]:
    return [
        Guardrail(metric="latency_seconds", direction="lower", limit=2.0),
        Guardrail(metric="politeness", direction="higher", limit=1.0, action="rollback"),
    ]


def digests(one: ExperimentSpec) -> dict[str, str | None]:
    """Return what the arms stand for: the first is the base."""
    names = [arm.name for arm in (*one.arms, *one.shadow)]
    return {name: None if index == 0 else f"{index:064x}" for index, name in enumerate(names)}


@contextmanager
def opened(url: str, folder: Path) -> Iterator[Store]:
    store = open_outcomes(url, folder)
    try:
        yield store
    finally:
        store.close()


def show(store: Outcomes, experiment: Experiment, unit: str, response_id: str | None = None) -> Exposure:
    """Show the unit an answer, as the API does."""
    found = assign(experiment, unit)
    assert found.is_included
    return store.expose(
        experiment.spec.name,
        unit=unit,
        arm=found.arm,
        propensity=found.propensity,
        response_id=response_id or f"response-{unit}",
    )


def answer(
    store: Outcomes, key: str, value: float, *, unit: str, metric: str = "outcome", name: str = "greeting"
) -> str:
    """Send feedback for a unit."""
    return store.feedback(key=key, metric=metric, value=value, response_id=None, experiment=name, unit=unit)


def run_traffic(
    store: Outcomes, experiment: Experiment, units: range, *, rates: Mapping[str, float], seed: int = 0
) -> None:
    """Show answers to units, measure them and send outcomes back: some twice, some not at all, some of raters."""
    dice, name = random.Random(seed), experiment.spec.name
    metrics = {guardrail.metric for guardrail in experiment.spec.guardrails}
    for number in units:
        unit = f"user-{number}"
        arm = show(store, experiment, unit).arm
        store.measure(f"response-{unit}", {"latency_seconds": dice.random(), "completion_tokens": dice.randrange(9)})
        if dice.random() < 0.9:
            answer(store, f"first-{number}", float(dice.random() < rates[arm]), unit=unit, name=name)
        if dice.random() < 0.2:
            answer(store, f"second-{number}", dice.random(), unit=unit, name=name)
        if "politeness" in metrics:
            answer(store, f"polite-{number}", 1.0 + dice.random(), unit=unit, metric="politeness", name=name)
        if number > units.start and dice.random() < 0.3:
            other = f"user-{dice.randrange(units.start, number)}"
            if show(store, experiment, other, f"again-{number}").arm != arm:
                store.prefer(
                    key=f"vote-{number}", experiment=name, unit=f"rater-{dice.randrange(20)}",
                    chosen=f"response-{unit}", rejected=f"again-{number}", is_tie=dice.random() < 0.2,
                )  # fmt: skip
