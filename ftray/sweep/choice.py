"""Which trial wins: pure functions of the ledger. The validation rows choose here; the test rows never do.

What the winner is worth, beside the default configuration and the base, is asked in `sweep/comparison.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ftray.campaign import TrialResult

Criterion = Callable[[TrialResult], float | None]
"""What a trial is ranked by, the lower the better; None where it cannot be said of this trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The winner, and who is asked the test rows."""

    winner: TrialResult | None
    """None where no trial has a value."""
    default: TrialResult | None
    """The default configuration, if it has a value; it can be the winner and one of the finalists."""
    finalists: tuple[TrialResult, ...]
    """The best by validation, the winner first."""
    num_candidates: int
    """Trials with a value, which the validation rows chose among."""
    reason: str
    """How the winner won."""


def rank(
    results: Sequence[TrialResult], *, higher_is_better: bool, forgetting: Mapping[str, float] | None = None
) -> list[TrialResult]:
    """Return the trials of the search that have a value, best first.

    By the best validation accuracy, then its lower validation loss, then the smaller rank, then less forgetting (by
    trial_id), then the trial_id: a total order, whatever order the trials ended in. A number that is not finite loses
    against every other. A criterion that some of the trials tied so far cannot be judged by is passed over for these.
    How a trial ended is no criterion: what a stopped one is worth is its kept checkpoint.
    """
    candidates = sorted((result for result in results if _has_value(result)), key=lambda result: result.trial_id)
    criteria = _criteria(higher_is_better=higher_is_better, forgetting=forgetting or {})
    return _ranked(candidates, list(criteria.values()))


def choose(
    results: Sequence[TrialResult],
    *,
    higher_is_better: bool,
    finalists: int,
    forgetting: Mapping[str, float] | None = None,
) -> Choice:
    """Return the winner by validation and the finalists, with the reason; `finalists` is how many at most."""
    ranked = rank(results, higher_is_better=higher_is_better, forgetting=forgetting)
    finite = [result for result in ranked if math.isfinite(_accuracy(result))]
    if not finite:
        reason = "No trial has a validation accuracy: none reached an evaluation with a finite value."
        return Choice(winner=None, default=None, finalists=(), num_candidates=0, reason=reason)
    return Choice(
        winner=finite[0],
        default=next((result for result in finite if result.is_default), None),
        finalists=tuple(finite[:finalists]),
        num_candidates=len(finite),
        reason=_how_it_won(finite, _criteria(higher_is_better=higher_is_better, forgetting=forgetting or {})),
    )


def pareto(
    results: Sequence[TrialResult], forgetting: Mapping[str, float] | None, *, higher_is_better: bool
) -> list[str]:
    """Return the ids of the trials that no other beats at accuracy and at forgetting, the best accuracy first.

    A trial is beaten by one at least as good at both and better at one. Without any finite measure of forgetting these
    are the trials of the best accuracy; with some, trials without one have no place on the front.
    """
    measured = {trial_id: harm for trial_id, harm in (forgetting or {}).items() if math.isfinite(harm)}
    ranked = rank(results, higher_is_better=higher_is_better, forgetting=measured)
    finite = [result for result in ranked if math.isfinite(_accuracy(result))]
    if not any(result.trial_id in measured for result in finite):
        return [result.trial_id for result in finite if _accuracy(result) == _accuracy(finite[0])]
    front: list[str] = []
    least = math.inf
    # From the best accuracy down, a trial is on the front if it forgets less than all that are better than it.
    placed = [result for result in finite if result.trial_id in measured]
    for _, tied in groupby(placed, key=_accuracy):
        harms = {result.trial_id: measured[result.trial_id] for result in tied}
        if (smallest := min(harms.values())) < least:
            front += [trial_id for trial_id, harm in harms.items() if harm == smallest]
            least = smallest
    return front


def _criteria(*, higher_is_better: bool, forgetting: Mapping[str, float]) -> dict[str, Criterion]:
    """Return what trials are ranked by, in order, each with the words that name it."""

    def by_accuracy(result: TrialResult) -> float:
        accuracy = _accuracy(result)
        return _losing_if_not_finite(-accuracy if higher_is_better else accuracy)

    def by_loss(result: TrialResult) -> float:
        assert result.best is not None
        return _losing_if_not_finite(result.best.validation_loss)

    def by_rank(result: TrialResult) -> float | None:
        rank_of_adapter = result.config.get("rank")
        return rank_of_adapter if isinstance(rank_of_adapter, int | float) else None

    def by_forgetting(result: TrialResult) -> float | None:
        harm = forgetting.get(result.trial_id)
        return None if harm is None else _losing_if_not_finite(harm)

    return {
        "best validation accuracy": by_accuracy,
        "lower validation loss": by_loss,
        "smaller rank": by_rank,
        "less forgetting": by_forgetting,
    }


def _ranked(tied: list[TrialResult], criteria: Sequence[Criterion]) -> list[TrialResult]:
    """Order trials that are tied so far by the criteria that are left; those tied to the end keep their order."""
    if len(tied) < 2 or not criteria:
        return tied
    criterion, *rest = criteria
    keys: dict[str, float] = {}
    for result in tied:
        if (key := criterion(result)) is None:
            return _ranked(tied, rest)
        keys[result.trial_id] = key
    ordered = sorted(tied, key=lambda result: keys[result.trial_id])
    groups = groupby(ordered, key=lambda result: keys[result.trial_id])
    return [result for _, group in groups for result in _ranked(list(group), rest)]


def _how_it_won(ranked: Sequence[TrialResult], criteria: Mapping[str, Criterion]) -> str:
    """Say what put the winner first; ties go by what comes next, among those that are still tied."""
    winner = ranked[0]
    who = f"Trial {winner.trial_id}{' (the default configuration)' if winner.is_default else ''}"
    if len(ranked) == 1:
        return f"{who} is the only one with a validation accuracy."
    passed: list[str] = []
    tied = list(ranked)
    for name, criterion in criteria.items():
        keys = [criterion(result) for result in tied]
        if None in keys:
            continue
        left = [result for result, key in zip(tied, keys, strict=True) if key == keys[0]]
        if len(left) == 1:
            if not passed:
                return f"{who} has the {name} of {len(ranked)} trials."
            return f"{who} wins by {name} among {len(tied)} trials with equal {' and '.join(passed)}."
        passed.append(_without_its_direction(name))
        tied = left
    return f"{who} is first by its id alone among {len(tied)} trials: nothing measured tells them apart."


def _without_its_direction(name: str) -> str:
    return name.split(" ", 1)[1]


def _has_value(result: TrialResult) -> bool:
    return result.role == "search" and result.best is not None


def _accuracy(result: TrialResult) -> float:
    assert result.best is not None
    return result.best.validation_accuracy


def _losing_if_not_finite(number: float) -> float:
    return number if math.isfinite(number) else math.inf
