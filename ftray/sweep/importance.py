"""How much each field of the space mattered in a campaign, by functional ANOVA."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftray.campaign import Config, TrialResult
from ftray.space import Value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FEWEST_TRIALS = 4
"""With fewer the trees of the analysis have nothing to split."""
LOG_SPAN = 10
"""Positive numbers that span more than this factor are looked at by order of magnitude."""
SEED = 20240229


def importance(results: Sequence[TrialResult], *, higher_is_better: bool) -> dict[str, float]:
    """Return each varied field's share of the variance in validation accuracy, the largest first; they sum to 1.

    Functional ANOVA on a forest of regression trees (Hutter, Hoos and Leyton-Brown 2014, ICML), by Optuna, seeded.
    Counts every trial of the search with a finite value, those that a longer one trained along too. The value of a
    stopped trial is from fewer steps, so the shares also say what a field did to the first steps. A field that never
    varied, or that not every trial has, is left out. Empty with fewer than 4 trials, or where every value is equal.
    A few dozen trials give a hint and no measurement.
    """
    measured = [
        (result.config, result.best.validation_accuracy)
        for result in results
        if result.role == "search" and result.best is not None and math.isfinite(result.best.validation_accuracy)
    ]
    accuracies = [accuracy for _, accuracy in measured]
    columns = _columns([config for config, _ in measured])
    if len(measured) < FEWEST_TRIALS or len(set(accuracies)) == 1 or not columns:
        return {}
    shares = _fanova(columns, accuracies, higher_is_better)
    return dict(sorted(shares.items(), key=lambda share: (-share[1], share[0])))


@dataclass(frozen=True, slots=True)
class _Column:
    """One field's values in all trials, and what Optuna calls their range."""

    values: Sequence[Value]
    distribution: BaseDistribution


def _fanova(columns: Mapping[str, _Column], accuracies: Sequence[float], higher_is_better: bool) -> dict[str, float]:
    # Importing Optuna takes a while, and it logs every study as a message for people.
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    distributions = {name: column.distribution for name, column in columns.items()}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize" if higher_is_better else "minimize")
        # Shares do not depend on the scale, but squares of exploded perplexities would overflow.
        largest = max(map(abs, accuracies))
        for position, accuracy in enumerate(accuracies):
            params = {name: column.values[position] for name, column in columns.items()}
            study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=accuracy / largest))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=SEED))
    finally:
        optuna.logging.set_verbosity(verbosity)
    # Trees that never split say nothing of any field: Optuna gives zeros for it.
    return {name: float(share) for name, share in shares.items()} if any(shares.values()) else {}


def _columns(configs: Sequence[Config]) -> dict[str, _Column]:
    """Return the fields that every trial has and that vary."""
    names = [name for name in configs[0] if all(name in config for config in configs)] if configs else []
    columns = {name: _column([config[name] for config in configs]) for name in names}
    return {name: column for name, column in columns.items() if not column.distribution.single()}


def _column(values: Sequence[Value]) -> _Column:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        # As text: True and 1 are two categories.
        texts = [str(value) for value in values]
        return _Column(values=texts, distribution=CategoricalDistribution(sorted(set(texts))))
    low, high = min(numbers), max(numbers)
    log = low > 0 and high / low > LOG_SPAN
    if all(isinstance(number, int) for number in numbers):
        return _Column(values=numbers, distribution=IntDistribution(int(low), int(high), log=log))
    return _Column(values=numbers, distribution=FloatDistribution(low, high, log=log))
