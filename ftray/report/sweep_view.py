"""What the page of a campaign says first and in tables: the recommendation, its numbers, the finalists, the stops.

Pure functions of the records; drawings are `sweep_drawings.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ftray.report import wording
from ftray.report.page import Headline, Tile
from ftray.report.sweep_records import SweepRecords
from ftray.report.sweep_trials import TONES, UNDER_WAY, TrialRow, described
from ftray.report.wording import Tone

RECOMMENDED: dict[str, tuple[str, Tone]] = {
    "winner": ("Take the winner", "good"),
    "default": ("Keep the default", "warn"),
    "base": ("Keep the base", "bad"),
}
MEANINGS = {
    "completed": "came to its own end",
    "pruned": "stopped for falling behind, or for not getting on",
    "diverged": "validation loss ran away, or was no number",
    "failed": "an error ended it",
    "budget": "the campaign's budget was used up",
    UNDER_WAY: "began and has not ended",
}
VERDICTS: dict[str, tuple[str, Tone]] = {
    "ship": ("Ship", "good"),
    "do_not_ship": ("Do not ship", "bad"),
    "inconclusive": ("Inconclusive", "warn"),
}
MOST_REASONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The base, the default, the winner or another finalist, as text."""

    who: str
    trial: str
    config: str
    validation: Mapping[str, Any] | None
    test: Mapping[str, Any] | None
    difference: Mapping[str, Any] | None
    forgetting: float | None
    is_winner: bool = False

    def on(self, split: str) -> Mapping[str, Any] | None:
        """Return its estimate on a split."""
        return self.test if split == "test" else self.validation


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """One way in which trials ended, with the distinct reasons."""

    state: str
    tone: Tone
    meaning: str
    count: int
    reasons: tuple[tuple[str, str], ...]
    """A reason, and the trials that have it."""
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """The winner trained again with other seeds."""

    rows: tuple[tuple[str, str, str], ...]
    """Seed, validation, test."""
    spread: str


def headline(records: SweepRecords) -> Headline:
    """Return the recommendation, or what happened where there is none."""
    sweep = records.sweep
    if sweep is None:
        ended, going = len(records.searched), len(records.started)
        reason = f"There is no result: the campaign is still going on, or its process was killed. {_ended(ended)}"
        more = f"{going} more began. " if going else ""
        reasons = (reason, f"{more}The same command goes on where it was: trials that ended are not run again.")
        return Headline(eyebrow="Outcome", label="Not finished", tone="neutral", reasons=reasons)
    given = tuple(records.extra("reasons", []))
    if sweep["status"] == "interrupted":
        reasons = ("The campaign was stopped by hand. The same command goes on where it was.", *given)
        return Headline(eyebrow="Outcome", label="Interrupted", tone="warn", reasons=reasons)
    if sweep["status"] == "failed":
        reasons = given or ("No trial has a value, so there is nothing to choose from.",)
        return Headline(eyebrow="Outcome", label="The campaign failed", tone="bad", reasons=reasons)
    label, tone = RECOMMENDED[sweep["recommended"]]
    ended_by = ("The budget ended the campaign before all trials were done.",) if sweep["status"] == "budget" else ()
    return Headline(eyebrow="Recommendation", label=label, tone=tone, reasons=(*given, *ended_by))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictNotice:
    """Whether what is recommended can be used."""

    label: str
    tone: Tone
    reasons: tuple[str, ...]


def verdict_notice(records: SweepRecords) -> VerdictNotice | None:
    """Return the verdict on the recommended trial, which may have forgotten too much; None where the base is kept."""
    sweep, verdict = records.sweep, records.extra("verdict", None)
    if sweep is None or verdict is None or verdict["decision"] not in VERDICTS or sweep["recommended"] == "base":
        return None
    label, tone = VERDICTS[verdict["decision"]]
    return VerdictNotice(label=f"{label}:", tone=tone, reasons=tuple(verdict["reasons"]))


def _ended(count: int) -> str:
    return f"{count} trial{' has' if count == 1 else 's have'} ended."


def split_of(sides: Sequence[Side]) -> str:
    """Return where base, default and winner are compared: on test rows where there are any."""
    return "test" if any(side.test for side in sides) else "validation"


def sides(records: SweepRecords, rows: Sequence[TrialRow]) -> list[Side]:
    """Return the base, the default, the winner and the other finalists; none before the campaign has ended."""
    sweep = records.sweep
    if sweep is None:
        return []
    numbers = {row.trial_id: f"#{row.number}" for row in rows}
    found = [Side(who="base", trial="", config="the model as it came", difference=None, forgetting=None,
                  validation=sweep["base"]["validation"], test=sweep["base"]["test"])]  # fmt: skip
    default, winner = sweep["default"], sweep["winner"]
    is_same = default and winner and default["trial_id"] == winner["trial_id"]
    if default:
        who = "default, the winner" if is_same else "default"
        found.append(_side(default, who, numbers, is_winner=bool(is_same)))
    if winner and not is_same:
        found.append(_side(winner, "winner", numbers, is_winner=True))
    shown = {one["trial_id"] for one in (default, winner) if one}
    others = [one for one in sweep["finalists"] if one["trial_id"] not in shown]
    return [*found, *(_side(one, "finalist", numbers) for one in others)]


def _side(one: Mapping[str, Any], who: str, numbers: Mapping[str, str], *, is_winner: bool = False) -> Side:
    return Side(
        who=who,
        trial=numbers.get(one["trial_id"], one["trial_id"]),
        config=described(one["config"]),
        validation=one["validation"],
        test=one["test"],
        difference=one.get("difference_from_default"),
        forgetting=one.get("forgetting"),
        is_winner=is_winner,
    )


def tiles(records: SweepRecords, rows: Sequence[TrialRow]) -> list[Tile]:
    """Return the numbers of the campaign; what costs is said twice, by the clock and in hours of trainers."""
    states = Counter(row.state for row in rows)
    by_state = ", ".join(f"{states[state]} {state}" for state in TONES if states[state])
    requested = (records.sweep or {}).get("counts", {}).get("requested")
    of_all = f" of {requested}" if requested and requested != len(rows) else ""
    found = [Tile(what="Trials", number=f"{len(rows)}{of_all}", note=by_state)]
    best = next((row for row in rows if row.value is not None), None)
    if best is not None:
        found.append(
            Tile(
                what="Best on validation rows" if records.sweep else "Best on validation rows so far",
                number=wording.value(best.value, records.metric),
                note=f"trial #{best.number}, step {best.step}",
            )
        )
    if records.sweep is not None:
        seconds = records.sweep["seconds"]
        whole = wording.duration(seconds["wall"])
        found += [
            Tile(what="Time to decision", number=wording.duration(seconds["to_decision"]), note=f"of {whole} in all"),
            Tile(
                what="Accelerator-hours",
                number=wording.plain(records.sweep["accelerator_hours"]),
                note="of all trainers together",
            ),
        ]
    return found


def winner_vs_default(records: SweepRecords) -> Mapping[str, Any] | None:
    """Return the comparison of two trials; None where the winner is the default, of which there is nothing to say."""
    sweep = records.sweep
    if sweep is None or not (sweep["winner"] and sweep["default"]):
        return None
    is_same = sweep["winner"]["trial_id"] == sweep["default"]["trial_id"]
    found: Mapping[str, Any] | None = None if is_same else sweep["winner_vs_default"]
    return found


def difference_tile(records: SweepRecords) -> Tile | None:
    """Return how far the winner is from the default; None where it is the default."""
    found = winner_vs_default(records)
    if found is None:
        return None
    told = "told apart" if found["distinguishable"] else "not told apart"
    interval = wording.change_interval(found, records.metric)
    return Tile(
        what="Winner minus default",
        number=wording.change(found["difference"], records.metric),
        note=f"{interval}: {told}",
    )


def stops(rows: Sequence[TrialRow]) -> list[Stop]:
    """Return how trials ended, by state."""
    found = []
    for state, tone in TONES.items():
        ended = [row for row in rows if row.state == state]
        if not ended:
            continue
        reasons: dict[str, list[str]] = {}
        for row in ended:
            reasons.setdefault(row.reason, []).append(f"#{row.number}")
        listed = tuple((reason, ", ".join(trials)) for reason, trials in reasons.items() if reason)
        found.append(
            Stop(
                state=state,
                tone=tone,
                meaning=MEANINGS[state],
                count=len(ended),
                reasons=listed[:MOST_REASONS],
                more=len(listed[MOST_REASONS:]),
            )
        )
    return found


def seeds_view(records: SweepRecords) -> Seeds | None:
    """Return the winner's other seeds; from the ledger where the campaign has not ended. None with one seed."""
    again = [
        {"seed": trial.seed, "validation": trial.best.validation_accuracy, "test": None}
        for trial in records.trials
        if trial.role == "seed" and trial.best is not None
    ]
    found = records.extra("seeds", []) or again
    if not found or (records.sweep is not None and len(found) < 2):
        return None
    metric, values = records.metric, [one["validation"] for one in found if one["validation"] is not None]
    spread = ""
    if len(values) > 1:
        low, high = (wording.value(end, metric) for end in (min(values), max(values)))
        deviation = wording.change(stdev(values), metric).lstrip("+")
        mean = wording.value(fmean(values), metric)
        spread = f"{len(values)} seeds: {low} to {high} on the validation rows, mean {mean}, deviation {deviation}."
    rows = tuple(
        (str(one["seed"]), wording.value(one["validation"], metric), wording.value(one["test"], metric))
        for one in found
    )
    return Seeds(rows=rows, spread=spread)
