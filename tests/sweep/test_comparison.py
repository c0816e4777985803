"""Finalists beside the default and the base: the numbers, what they account for, and what is recommended."""

from __future__ import annotations

import numpy as np
import pytest
from sweep_trials import graded, right_but, scored, trial

from ftray.evaluate.config import Metric
from ftray.evaluate.intervals import mcnemar, newcombe, wilson
from ftray.evaluate.predict import RowPrediction
from ftray.sweep.choice import Choice, choose
from ftray.sweep.comparison import Comparison, Scores, Split, compare_finalists, scores_of
from ftray.sweep.recommendation import recommend

ROWS = 700


def chosen(accuracies: dict[str, float], *, default: str | None = "d", finalists: int = 3) -> Choice:
    trials = [trial(name, accuracy, is_default=name == default) for name, accuracy in accuracies.items()]
    return choose(trials, higher_is_better=True, finalists=finalists)


def compared(scores: dict[str, Scores], base: Scores, *, split: Split = "test", more_trials: int = 0) -> Comparison:
    """Return the comparison of trials in the order of validation; d is the default."""
    accuracies = {name: 0.9 - 0.01 * place for place, name in enumerate(scores)}
    others = {f"o{number}": 0.1 for number in range(more_trials)}
    default = "d" if "d" in scores else None
    choice = chosen({**accuracies, **others}, default=default, finalists=len(scores))
    return compare_finalists(choice, scores, base, higher_is_better=True, split=split)


BASE = right_but(ROWS, range(600))
DEFAULT = right_but(ROWS, range(40))
LIKE_IT = right_but(ROWS, range(10, 45))
BETTER = right_but(ROWS, range(5))


def test_the_numbers_are_those_of_the_formulas_at_the_level_of_all_comparisons() -> None:
    comparison = compared({"w": BETTER, "x": LIKE_IT, "d": DEFAULT}, BASE)
    assert list(comparison.candidates) == ["w", "x", "d"]
    winner, default = comparison.winner, comparison.default
    assert default is not None
    assert winner.value == wilson(695, ROWS, level=1 - 0.05 / 4)
    assert comparison.base == wilson(100, ROWS, level=1 - 0.05 / 4)
    against = winner.against_default
    assert against is not None
    assert against.estimate == newcombe(660, 0, 35, 5, level=1 - 0.05 / 2)
    assert against.adjusted_p_value == 2 * mcnemar(0, 35)
    assert winner.against_base.comparisons == 3
    assert default.against_default is None
    assert comparison.winner_vs_default is against
    assert against.distinguishable
    assert "2 comparisons" in comparison.reason
    other = comparison.candidates["x"].against_default
    assert other is not None
    assert not other.distinguishable
    assert other.adjusted_p_value == 2 * mcnemar(5, 10)


def test_without_a_test_split_every_trial_counts() -> None:
    scores = {"w": right_but(ROWS, range(23)), "d": right_but(ROWS, range(33))}
    on_test = compared(scores, BASE, more_trials=30)
    on_validation = compared(scores, BASE, split="validation", more_trials=30)
    few, many = on_test.winner_vs_default, on_validation.winner_vs_default
    assert few is not None
    assert many is not None
    assert (few.comparisons, many.comparisons) == (1, 31)
    assert few.distinguishable
    assert not many.distinguishable
    assert many.p_value == few.p_value
    assert many.estimate.low < few.estimate.low
    assert on_validation.winner.against_base.comparisons == 32
    assert "among 32 trials" in on_validation.reason
    assert "no test split" in on_validation.reason


def test_a_default_outside_the_finalists_is_asked_as_well() -> None:
    choice = chosen({"w": 0.9, "x": 0.8, "d": 0.7}, finalists=1)
    comparison = compare_finalists(choice, {"w": BETTER, "d": DEFAULT}, BASE, higher_is_better=True, split="test")
    assert list(comparison.candidates) == ["w", "d"]
    assert comparison.winner_vs_default is not None
    assert comparison.winner_vs_default.comparisons == 1


def test_scores_are_resampled_and_lower_can_be_better() -> None:
    random = np.random.default_rng(0)
    of_base = random.gamma(2.0, size=300)
    of_default = 0.8 * of_base + random.normal(0, 0.05, size=300)
    choice = choose(
        [trial("w", 0.5), trial("x", 0.6), trial("d", 0.7, is_default=True)], higher_is_better=False, finalists=3
    )
    scores = {
        "w": scored(of_default - 0.05 + random.normal(0, 0.05, size=300)),
        "x": scored(of_default + random.normal(0, 0.05, size=300)),
        "d": scored(of_default),
    }
    comparison = compare_finalists(choice, scores, scored(of_base), higher_is_better=False, split="test")
    winner, other = (comparison.candidates[name].against_default for name in ("w", "x"))
    assert winner is not None
    assert other is not None
    assert winner.estimate.low < -0.05 < winner.estimate.high < 0
    # The normal interval of a mean difference with a standard deviation of 0.05, two at once.
    assert winner.estimate.high - winner.estimate.low == pytest.approx(2 * 2.24 * 0.05 / np.sqrt(300), rel=0.15)
    assert winner.distinguishable
    assert not other.distinguishable
    assert recommend(comparison, metric="bits_per_byte").recommended == "winner"


def test_graded_answers_become_scores() -> None:
    rows = [
        RowPrediction(
            task="task", row=row, prompt="", expected="yes", prediction=given, score=float(given == "yes"),
            correct=given == "yes", nll=None, num_labels=1, num_bytes=3,
        )
        for row, given in enumerate(["yes", "no", "yes", "yes"])
    ]  # fmt: skip
    share = scores_of(Metric(metric="exact_match"), rows)
    assert share.correct is not None
    assert share.correct.tolist() == [True, False, True, True]
    assert share.statistics.value == 0.75
    assert scores_of(Metric(metric="macro_f1"), rows).correct is None


@pytest.mark.parametrize(
    ("scores", "base", "recommended", "sentence"),
    [
        (
            {"w": BETTER, "d": DEFAULT},
            BASE,
            "winner",
            "The winner's 99.3% beats the default's 94.3% on 700 test rows (difference +5.0 points, +3.5 to +6.9, "
            "p < 0.001), and the base's 14.3%: take the winner.",
        ),
        (
            {"w": LIKE_IT, "d": DEFAULT},
            BASE,
            "default",
            "The winner's 95.0% cannot be told from the default's 94.3% on 700 test rows (difference +0.7 points, "
            "−0.5 to +2.0, p = 0.3); the default beats the base's 14.3%: take the default.",  # noqa: RUF001
        ),
        ({"w": DEFAULT, "d": BETTER}, BASE, "default", "94.3% is worse than the default's 99.3%"),
        ({"d": DEFAULT, "w": LIKE_IT}, BASE, "default", "No configuration is better on the validation rows"),
        ({"w": BETTER}, BASE, "winner", "the default configuration has no value: take the winner."),
        ({"w": LIKE_IT, "d": DEFAULT}, DEFAULT, "base", "neither the winner's 95.0% nor the default's 94.3% is better"),
        ({"w": DEFAULT, "d": BASE}, BETTER, "base", "keep the base."),
        ({"d": DEFAULT, "w": BASE}, LIKE_IT, "base", "the default configuration, which won with 94.3%, is not better"),
        ({"w": DEFAULT}, LIKE_IT, "base", "the winner's 94.3% is not better than the base's 95.0%"),
    ],
)
def test_what_is_recommended_and_the_sentence(
    scores: dict[str, Scores], base: Scores, recommended: str, sentence: str
) -> None:
    recommendation = recommend(compared(scores, base), metric="exact_match")
    assert recommendation.recommended == recommended
    assert sentence in recommendation.reason


def test_a_default_that_won_is_compared_with_nothing() -> None:
    comparison = compared({"d": BETTER, "w": DEFAULT}, BASE)
    assert comparison.winner_vs_default is not None
    record = comparison.winner_vs_default.to_record()
    assert record == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0, "distinguishable": False}
    assert "default configuration itself" in comparison.reason
    without = compared({"w": DEFAULT}, BASE)
    assert without.winner_vs_default is None
    assert "no value to compare" in without.reason


def test_trials_that_answer_alike_are_not_told_apart() -> None:
    comparison = compared({"w": graded([True, False] * 20), "d": graded([True, False] * 20)}, graded([False] * 40))
    against = comparison.winner_vs_default
    assert against is not None
    assert (against.estimate.value, against.adjusted_p_value, against.better) == (0.0, 1.0, False)
    assert against.estimate.low < 0 < against.estimate.high


@pytest.mark.parametrize("share", [True, False], ids=["right or wrong", "scores"])
def test_noise_is_claimed_to_be_better_in_at_most_five_of_a_hundred_campaigns(share: bool) -> None:
    random = np.random.default_rng(1)
    claims = uncorrected = 0
    campaigns, num_rows = (400, 200) if share else (40, 50)
    for _ in range(campaigns):
        rows = random.normal(size=num_rows) + 0.5 * random.normal(size=(9, num_rows))
        everyone = [graded((row > 0).tolist()) if share else scored(row) for row in rows]
        scores = {f"t{place}": one for place, one in enumerate(everyone[1:])} | {"d": everyone[0]}
        values = {name: one.statistics.value for name, one in scores.items()}
        choice = chosen(values, finalists=1)
        comparison = compare_finalists(choice, scores, everyone[0], higher_is_better=True, split="validation")
        against = comparison.winner_vs_default
        assert against is not None
        claims += against.distinguishable
        uncorrected += against.better and against.p_value <= 0.05
    assert claims <= 0.05 * campaigns
    assert uncorrected > 0.1 * campaigns


def test_the_record_is_plain_json() -> None:
    record = compared({"w": BETTER, "d": DEFAULT}, BASE).to_record()
    assert set(record["winner_vs_default"]) == {"difference", "low", "high", "p_value", "distinguishable"}
    assert [one["trial_id"] for one in record["candidates"]] == ["w", "d"]
    assert record["candidates"][1]["against_default"] is None
    assert (record["split"], record["num_rows"]) == ("test", ROWS)
