"""Betting, confidence sequences, sample ratio and preferences: against exact fractions, closed forms and simulation."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln

from ftray.serve.experiment.statistics.betting import STAKES, Bet, log_mean
from ftray.serve.experiment.statistics.comparison import MEMORY, Centre, Comparison
from ftray.serve.experiment.statistics.preferences import Preferences, bradley_terry, resample_weights
from ftray.serve.experiment.statistics.sample_ratio import ALARM, PRIOR_WEIGHT, SampleRatio
from ftray.serve.experiment.statistics.sequences import TIGHTEST, Moments, half_width

FRACTIONS = st.lists(st.integers(min_value=-8, max_value=8).map(lambda eighths: eighths / 8), max_size=30)


def exact_e_value(fractions: list[float]) -> Fraction:
    """Return the e-value in exact arithmetic: the mean of the bettors' products."""
    total = Fraction(0)
    for stake in STAKES:
        for sign in (1, -1):
            wealth = Fraction(1)
            for fraction in fractions:
                wealth *= 1 + sign * Fraction(stake) * Fraction(fraction)
            total += wealth
    return total / (2 * len(STAKES))


@settings(deadline=None)
@given(FRACTIONS)
def test_the_e_value_is_the_exact_one(fractions: list[float]) -> None:
    bet, largest = Bet(), Fraction(1)
    for count, fraction in enumerate(fractions, start=1):
        bet.add(fraction)
        largest = max(largest, exact_e_value(fractions[:count]))
    assert bet.e_value == pytest.approx(float(exact_e_value(fractions)), rel=1e-12)
    assert bet.p_value == pytest.approx(float(1 / largest), rel=1e-12)


def test_the_e_value_is_a_fair_game() -> None:
    """Over all eight sequences of three fair coins, the mean e-value is exactly 1."""
    sequences = [[(-1.0) ** (number >> bit & 1) for bit in range(3)] for number in range(8)]
    assert sum(map(exact_e_value, sequences), Fraction(0)) / 8 == 1


def test_the_side_is_the_one_that_wins() -> None:
    for side in (1, -1):
        bet = Bet()
        for _ in range(20):
            bet.add(side * 0.5)
        assert bet.side == side
        assert bet.largest == bet.log_e > math.log(20)


def test_no_number_of_observations_breaks_it() -> None:
    bet = Bet()
    for _ in range(20_000):
        bet.add(1.0)
    for _ in range(5):
        bet.add(-1.0)
    assert math.isfinite(bet.log_e)
    assert json.loads(json.dumps(bet.e_value, allow_nan=False)) > 1e300
    assert bet.p_value == 0.0


def test_the_mean_of_logarithms_does_not_overflow() -> None:
    assert log_mean([1000.0, 1000.0]) == pytest.approx(1000.0)
    assert log_mean([-1000.0, 0.0]) == pytest.approx(-math.log(2))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(min_value=0, max_value=1), st.sampled_from(["a", "b", "c"]), st.sampled_from([0, 1, 2])),
        max_size=200,
    )
)
def test_a_comparison_stays_within_its_bounds(events: list[tuple[float, str, int]]) -> None:
    shares = [{"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.05, "c": 0.05}, {"a": 0.2, "b": 0.3, "c": 0.5}]
    comparison, centre, psi = Comparison(), Centre(), []
    for outcome, arm, version in events:
        chances = shares[version]
        if arm not in chances:
            continue
        if arm == "c":
            comparison.skip()
            psi.append(0.0)
        else:
            before = centre.value
            comparison.add(
                outcome, centre=before, is_challenger=arm == "b", challenger=chances["b"], control=chances["a"]
            )
            psi.append((outcome - before) * (1 / chances["b"] if arm == "b" else -1 / chances["a"]))
        centre.add(outcome)
    assert 0 <= centre.value <= 1
    if psi:
        difference = comparison.difference(0.05)
        assert difference is not None
        assert difference.estimate == pytest.approx(np.mean(psi), abs=1e-9)
        assert comparison.effect.squares == pytest.approx(np.var(psi) * len(psi), abs=1e-6)


def test_the_centre_is_the_running_mean_and_then_forgets() -> None:
    random = np.random.default_rng(0)
    outcomes = random.random(3 * MEMORY)
    centre, values = Centre(), []
    for outcome in outcomes:
        values.append(centre.value)
        centre.add(float(outcome))
    assert values[0] == 0.5
    assert values[MEMORY] == pytest.approx((0.5 + outcomes[:MEMORY].sum()) / (1 + MEMORY))
    kept = 1 - 1 / (MEMORY + 1)
    weights = np.array([kept**age for age in range(2 * MEMORY)])[::-1] / (MEMORY + 1)
    assert centre.value == pytest.approx(values[MEMORY] * kept ** (2 * MEMORY) + (weights * outcomes[MEMORY:]).sum())


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("n", [1, 50, 1000, 100_000])
def test_the_sequence_is_where_the_mixture_martingale_reaches_one_over_alpha(n: int, alpha: float) -> None:
    rho2 = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / TIGHTEST
    sigma = 1.7
    total = n * half_width(n, sigma, alpha) / sigma
    martingale = math.exp(rho2 * total**2 / (2 * (n * rho2 + 1))) / math.sqrt(n * rho2 + 1)
    assert martingale == pytest.approx(1 / alpha, rel=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(min_value=-1e3, max_value=1e3), min_size=1, max_size=50))
def test_moments_are_those_of_the_values(values: list[float]) -> None:
    moments = Moments()
    for value in values:
        moments.add(value)
    assert moments.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert moments.squares == pytest.approx(np.var(values) * len(values), abs=1e-3, rel=1e-6)
    assert Moments.from_record(json.loads(json.dumps(moments.to_record()))) == moments


def test_right_answers_in_a_row_prove_little() -> None:
    """After a hundred right answers of each arm, a challenger that is right in 98 % is still possible."""
    comparison, centre = Comparison(), Centre()
    for index in range(200):
        comparison.add(1.0, centre=centre.value, is_challenger=index % 2 == 0, challenger=0.5, control=0.5)
        centre.add(1.0)
    difference = comparison.difference(0.05)
    assert difference is not None
    assert difference.low < -0.02
    assert difference.high > 0.02


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=60))
def test_with_fixed_shares_the_sample_ratio_is_the_dirichlet_multinomial(arms: list[str]) -> None:
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    ratio = SampleRatio()
    for arm in arms:
        ratio.add(arm, shares)
    counts = np.array([arms.count(arm) for arm in shares])
    prior = PRIOR_WEIGHT * np.array(list(shares.values()))
    marginal = (
        gammaln(prior.sum()) - gammaln(prior.sum() + counts.sum()) + (gammaln(prior + counts) - gammaln(prior)).sum()
    )
    expected = marginal - (counts * np.log(list(shares.values()))).sum()
    assert ratio.log_e == pytest.approx(expected, abs=1e-8)
    assert ratio.largest >= max(0.0, ratio.log_e)


def test_the_sample_ratio_is_a_fair_game_under_any_shares() -> None:
    """Whatever was seen, the mean factor of the next unit is exactly 1."""
    ratio = SampleRatio()
    for index in range(30):
        ratio.add("ab"[index % 5 == 0], {"a": 0.95, "b": 0.05} if index < 10 else {"a": 0.5, "b": 0.5})
    for shares in ({"a": 0.2, "b": 0.8}, {"a": 0.5, "b": 0.5}):
        mean = 0.0
        for arm, share in shares.items():
            after = SampleRatio.from_record(json.loads(json.dumps(ratio.to_record())))
            after.add(arm, shares)
            mean += share * math.exp(after.log_e - ratio.log_e)
        assert mean == pytest.approx(1.0, rel=1e-12)


def test_an_arm_that_loses_its_units_is_noticed_and_stays_so() -> None:
    random = np.random.default_rng(1)
    ratio, shares = SampleRatio(), {"a": 0.5, "b": 0.5}
    while not ratio.is_blocked:
        ratio.add("a" if random.random() < 0.6 else "b", shares)
        assert sum(ratio.seen.values()) < 3000
    assert ratio.e_value > ALARM
    for _ in range(sum(ratio.seen.values())):
        ratio.add("ab"[ratio.seen["b"] < ratio.seen["a"]], shares)
    assert ratio.e_value < ALARM
    assert ratio.is_blocked


def test_ties_say_nothing_and_wins_do() -> None:
    ties, wins = Preferences(arms=2), Preferences(arms=2)
    for rater in range(40):
        ties.add(rater=str(rater), chosen=1, rejected=0, is_tie=True)
        wins.add(rater=str(rater), chosen=1, rejected=0, is_tie=False)
    assert (ties.n, ties.wins, ties.e_value) == (40, [20.0, 20.0], 1.0)
    assert wins.wins == [0.0, 40.0]
    assert wins.e_value > 20
    assert wins.strengths(0) is None


def test_three_arms_are_ranked_and_the_bootstrap_is_by_rater() -> None:
    random = np.random.default_rng(2)
    strengths = np.array([1.0, 2.0, 4.0])
    votes = Preferences(arms=3)
    for rater in range(600):
        first, second = random.choice(3, size=2, replace=False)
        won = random.random() < strengths[first] / (strengths[first] + strengths[second])
        chosen, rejected = (first, second) if won else (second, first)
        votes.add(rater=str(rater), chosen=int(chosen), rejected=int(rejected), is_tie=False)
    found = votes.strengths(0)
    assert found is not None
    assert found[0].estimate == found[0].low == found[0].high == 0.5
    for one, truth in zip(found[1:], (2 / 3, 4 / 5), strict=True):
        assert one.low < truth < one.high
        assert one.high - one.low < 0.2
    assert votes.e_value > 20
    assert Preferences.from_record(json.loads(json.dumps(votes.to_record()))) == votes


def test_a_rater_of_many_votes_counts_as_one_rater() -> None:
    weights = resample_weights("somebody")
    assert weights == resample_weights("somebody") != resample_weights("somebody else")
    drawn = np.array([resample_weights(str(rater)) for rater in range(500)])
    assert drawn.mean() == pytest.approx(1.0, abs=0.02)
    assert drawn.var() == pytest.approx(1.0, abs=0.04)


def test_bradley_terry_finds_the_strengths_of_perfect_counts() -> None:
    strengths = np.array([0.1, 0.2, 0.3, 0.4])
    wins = 1e6 * strengths[:, None] / (strengths[:, None] + strengths[None, :]) * (1 - np.eye(4))
    assert bradley_terry(wins[None])[0] == pytest.approx(strengths, abs=1e-4)
    never_won = np.zeros((1, 2, 2))
    never_won[0, 0, 1] = 10
    assert np.all(bradley_terry(never_won) > 0.01)
