"""What to take after a campaign: the winner, the default configuration or the base, in a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ftray.report import wording
from ftray.sweep.comparison import SIGNIFICANCE, Candidate, Comparison, Difference

Recommended = Literal["winner", "default", "base"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """What to take, and why."""

    recommended: Recommended
    reason: str


def recommend(comparison: Comparison, *, metric: str) -> Recommendation:
    """Return what to take; `metric` is the name that decides how numbers are written.

    `base` unless the winner or the default is better than the base by more than noise. Then `winner` if it can be told
    from the default (and is better than it), or there is no default; else `default`.
    """
    words = _Words(comparison=comparison, metric=metric)
    winner, default = comparison.winner, comparison.default
    is_default = default is not None and winner.trial_id == default.trial_id
    told_apart = comparison.winner_vs_default is not None and comparison.winner_vs_default.distinguishable
    beaten_by = [one for one in (winner, default) if one is not None and one.against_base.distinguishable]
    if not beaten_by:
        return Recommendation(recommended="base", reason=words.base())
    if is_default:
        return Recommendation(recommended="default", reason=words.default_won())
    if default is None:
        return Recommendation(recommended="winner", reason=words.winner_alone())
    if told_apart:
        return Recommendation(recommended="winner", reason=words.winner(default))
    return Recommendation(recommended="default", reason=words.not_told_apart(default, default in beaten_by))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """The sentences, with the numbers they need."""

    comparison: Comparison
    metric: str

    def base(self) -> str:
        """Say that nothing is shown to be better than the base."""
        winner, default = self.comparison.winner, self.comparison.default
        if default is None:
            neither = f"the winner's {self._value(winner)} is not"
        elif default.trial_id == winner.trial_id:
            neither = f"the default configuration, which won with {self._value(winner)}, is not"
        else:
            neither = f"neither the winner's {self._value(winner)} nor the default's {self._value(default)} is"
        return (
            f"On {self._rows()} {neither} better than the base's {self._base()} by more than noise "
            f"(the winner's difference {self._difference(winner.against_base)}): keep the base."
        )

    def default_won(self) -> str:
        """Say that the search found nothing better than the default, which is better than the base."""
        winner = self.comparison.winner
        return (
            "No configuration is better on the validation rows than the default. Its "
            f"{self._value(winner)} beats the base's {self._base()} on {self._rows()} "
            f"(difference {self._difference(winner.against_base)}): take the default."
        )

    def winner_alone(self) -> str:
        """Say that the winner is better than the base, and that there is no default to compare it with."""
        winner = self.comparison.winner
        return (
            f"The winner's {self._value(winner)} beats the base's {self._base()} on {self._rows()} "
            f"(difference {self._difference(winner.against_base)}), and the default configuration has no value: "
            "take the winner."
        )

    def winner(self, default: Candidate) -> str:
        """Say that the winner is better than the default and the base."""
        winner = self.comparison.winner
        return (
            f"The winner's {self._value(winner)} beats the default's {self._value(default)} on {self._rows()} "
            f"(difference {self._to_default()}), and the base's {self._base()}: take the winner."
        )

    def not_told_apart(self, default: Candidate, default_beats_base: bool) -> str:
        """Say that the winner is not shown to be better than the default, and that training helped."""
        winner, against = self.comparison.winner, self.comparison.winner_vs_default
        assert against is not None
        is_worse = not against.better and against.adjusted_p_value <= SIGNIFICANCE
        told = "is worse than" if is_worse else "cannot be told from"
        who = "the default" if default_beats_base else "the winner"
        return (
            f"The winner's {self._value(winner)} {told} the default's {self._value(default)} on {self._rows()} "
            f"(difference {self._to_default()}); {who} beats the base's {self._base()}: take the default."
        )

    def _value(self, candidate: Candidate) -> str:
        return wording.value(candidate.value.value, self.metric)

    def _base(self) -> str:
        return wording.value(self.comparison.base.value, self.metric)

    def _rows(self) -> str:
        return f"{wording.count(self.comparison.num_rows)} {self.comparison.split} rows"

    def _to_default(self) -> str:
        assert self.comparison.winner_vs_default is not None
        return self._difference(self.comparison.winner_vs_default)

    def _difference(self, difference: Difference) -> str:
        estimate = difference.estimate.to_record()
        ends = wording.change_interval(estimate, self.metric)
        p_value = wording.p_value(difference.adjusted_p_value)
        return f"{wording.change(estimate['value'], self.metric)}, {ends}, {p_value}"
