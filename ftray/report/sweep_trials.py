"""The trials of a campaign as its page lists them: the best first, each with the number it has on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftray.campaign import Config
from ftray.report import wording
from ftray.report.plots import LEVELS
from ftray.report.sweep_records import SweepRecords
from ftray.report.wording import Tone

UNDER_WAY = "not finished"
TONES: dict[str, Tone] = {
    "completed": "good",
    "pruned": "neutral",
    "diverged": "bad",
    "failed": "bad",
    "budget": "warn",
    UNDER_WAY: "warn",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial."""

    number: int
    """Its place by the best value, from 1: what the page calls it."""
    trial_id: str
    config: Config
    state: str
    reason: str
    value: float | None
    """The best value on the validation rows so far."""
    loss: float | None
    """Validation loss there, nats per label."""
    step: int | None
    epochs: float | None
    tokens: int | None
    seconds: float | None
    prefix_of: str | None
    """The longer trial that trained its steps, as the page calls it."""
    is_default: bool
    is_winner: bool
    is_finalist: bool

    @property
    def tone(self) -> Tone:
        """The colour of its state."""
        return TONES[self.state]


def list_trials(records: SweepRecords) -> list[TrialRow]:
    """Return the candidates, the best first; those without a value last."""
    sign = -1 if records.higher_is_better else 1

    def order(row: dict[str, Any]) -> tuple[float, float, str]:
        value = math.inf if row["value"] is None else sign * row["value"]
        return value, math.inf if row["loss"] is None else row["loss"], row["trial_id"]

    found = sorted([*_ended(records), *_started(records)], key=order)
    roles = {role: records.ids(role) for role in ("default", "winner", "finalists")}
    places = {row["trial_id"]: f"#{number}" for number, row in enumerate(found, start=1)}
    return [
        TrialRow(
            **{**row, "prefix_of": places.get(row["prefix_of"], row["prefix_of"])},
            number=number,
            is_default=row["trial_id"] in roles["default"],
            is_winner=row["trial_id"] in roles["winner"],
            is_finalist=row["trial_id"] in roles["finalists"],
        )
        for number, row in enumerate(found, start=1)
    ]


def _ended(records: SweepRecords) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": trial.trial_id,
            "config": trial.config,
            "state": trial.state,
            "reason": trial.reason,
            "value": _finite(trial.best.validation_accuracy) if trial.best else None,
            "loss": _finite(trial.best.validation_loss) if trial.best else None,
            "step": trial.best.step if trial.best else None,
            "epochs": trial.epochs,
            "tokens": trial.tokens,
            "seconds": trial.seconds,
            "prefix_of": trial.prefix_of,
        }
        for trial in records.searched
    ]


def _started(records: SweepRecords) -> list[dict[str, Any]]:
    rows = []
    for trial_id, config in records.started.items():
        lines = records.lines[trial_id]
        pick = max if records.higher_is_better else min
        valued = [line for line in lines if line.get("val/accuracy") is not None]
        best = pick(valued, key=lambda line: float(line["val/accuracy"])) if valued else {}
        last = lines[-1] if lines else {}
        rows.append({
            "trial_id": trial_id, "config": config, "state": UNDER_WAY, "reason": "", "value": best.get("val/accuracy"),
            "loss": best.get("val/loss"), "step": best.get("step"), "epochs": last.get("epoch"),
            "tokens": last.get("train/tokens"), "seconds": None, "prefix_of": None,
        })  # fmt: skip
    return rows


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def fields(rows: Sequence[TrialRow]) -> list[str]:
    """Return the fields that were searched, in the order of the trials' configurations."""
    return list(dict.fromkeys(name for row in rows for name in row.config))


def levels(rows: Sequence[TrialRow]) -> dict[str, str]:
    """Return each trial's colour: which sixth of the trials with a value it is in."""
    valued = [row for row in rows if row.value is not None]
    return {
        row.trial_id: LEVELS[len(LEVELS) - 1 - len(LEVELS) * place // len(valued)] for place, row in enumerate(valued)
    }


def described(config: Mapping[str, Any]) -> str:
    """Write a configuration in a line."""
    return ", ".join(f"{wording.words(name)} {wording.setting(value)}" for name, value in config.items())
