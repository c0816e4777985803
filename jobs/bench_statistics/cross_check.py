"""Our e-values beside those of confseq, the package of the method's authors. Writes cross_check.json.

PYTHONPATH=confseq-0.0.11/src python jobs/bench_statistics/cross_check.py

confseq's wheel needs a compiler and Boost; its betting module is plain Python and runs from the unpacked source package
(https://github.com/gostevehoward/confseq), with matplotlib and multiprocess.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ftray.serve.experiment.statistics.betting import STAKES
from ftray.serve.experiment.statistics.comparison import Centre, Comparison

HERE = Path(__file__).resolve().parent
VERSION = "0.0.11"
SEED = 20240229
EVENTS = 3000
CASES = ((0.5, 0.6, 0.5), (0.95, 0.98, 0.5), (0.7, 0.7, 0.1))
"""Rate of the control, of the challenger, and the challenger's share."""


def main() -> None:
    np.float_ = np.float64  # NumPy 2 has no such name, which confseq writes in its annotations
    from confseq.betting import diversified_betting_mart

    random = np.random.default_rng(SEED)
    rows = [compare(diversified_betting_mart, case, random) for case in CASES]
    worst = max(row["largest_relative_difference"] for row in rows)
    record = {"confseq": VERSION, "events": EVENTS, "largest_relative_difference": worst, "cases": rows}
    (HERE / "cross_check.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"largest relative difference of an e-value: {worst:.1e}")


def compare(
    diversified_betting_mart: Any, case: tuple[float, float, float], random: np.random.Generator
) -> dict[str, Any]:
    """Return how far the e-values of one experiment are apart, over all its events."""
    control_rate, challenger_rate, share = case
    comparison, centre = Comparison(), Centre()
    ours, fractions = [], []
    for _ in range(EVENTS):
        is_challenger = bool(random.random() < share)
        outcome = float(random.random() < (challenger_rate if is_challenger else control_rate))
        bound = max(centre.value, 1 - centre.value) / min(share, 1 - share)
        weight = 1 / share if is_challenger else -1 / (1 - share)
        fractions.append((outcome - centre.value) * weight / bound)
        comparison.add(outcome, centre=centre.value, is_challenger=is_challenger, challenger=share, control=1 - share)
        centre.add(outcome)
        ours.append(comparison.bet.log_e)
    # Theirs bets on x in [0, 1] with mean 1/2: 1 + 2 stake (x - 1/2) with x = (1 + fraction) / 2 is 1 + stake fraction.
    bettors = [lambda x, m, stake=stake: np.full(len(x), 2 * stake) for stake in STAKES]
    theirs = diversified_betting_mart(
        (1 + np.array(fractions)) / 2, 0.5, lambdas_fns_positive=bettors, convex_comb=True, trunc_scale=1.0
    )
    difference = np.abs(np.exp(np.array(ours) - np.log(theirs)) - 1)
    return {
        "control_rate": control_rate,
        "challenger_rate": challenger_rate,
        "challenger_share": share,
        "last_log10_e_value": ours[-1] / math.log(10),
        "largest_relative_difference": float(difference.max()),
    }


if __name__ == "__main__":
    main()
