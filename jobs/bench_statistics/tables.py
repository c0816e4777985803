"""The README's tables, from results.json alone."""

from __future__ import annotations

from typing import Any

from bench_report import Grid

from ftray.evaluate.intervals import wilson

CLAIMS = ("betting", "unforgetting", "peeking", "once")


def tables(results: dict[str, Any]) -> list[Grid]:
    runs = results["runs"]

    def share(count: int, of: int = runs) -> str:
        estimate = wilson(count, of)
        return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"

    return [
        Grid(
            title="No arm is better: experiments that claim a winner",
            header=(
                "traffic", "rate", "counted by", "ours, after every outcome", "centred on the mean of all outcomes",
                "z-test, 250 looks", "z-test, once",
            ),
            rows=[
                (one["name"], _rate(one), one["unit"], *(share(one[claim]) for claim in CLAIMS))
                for one in results["nothing_better"]
            ],
        ),
        Grid(
            title="One arm is better: units until it is the winner",
            header=(
                "rates", "traffic", "decided within 10,000 outcomes", "wrong way round",
                "median units of the challenger", "median outcomes",
                "the same, centred on the mean of all", "90 % decided after outcomes",
                "z-test planned for one look, per arm",
            ),
            rows=[
                (
                    f"{one['rates'][0]:.2f} → {one['rates'][1]:.2f}",
                    one["name"],
                    share(one["decided"]),
                    str(one["wrong"]),
                    _number(one["median_challenger_units"]),
                    _number(one["median_outcomes"]),
                    _number(one["median_outcomes_unforgetting"]),
                    _number(one["ninety_percent_outcomes"]),
                    _number(one["z_once_units_per_arm"]),
                )
                for one in results["one_better"]
            ],
        ),
        Grid(
            title="95 % confidence sequences: experiments in which the interval ever misses the truth",
            header=("of", "rates", "ever misses"),
            rows=[
                (
                    one["name"] if one["rates"] is None else f"difference, {one['name']}",
                    "" if one["rates"] is None else " and ".join(f"{rate:.2f}" for rate in one["rates"]),
                    share(one["missed"]),
                )
                for one in results["intervals"]
            ],
        ),
        Grid(
            title="Sample ratio, looked at after every unit",
            header=("traffic", "experiments", "ours: alarm", "median units to the alarm", "χ² at p < 0.001, 250 looks"),
            rows=[
                (
                    one["name"],
                    _number(one["runs"]),
                    f"{one['alarms'] / one['runs']:.2%}",
                    _number(one["median_units"]),
                    f"{one['chi_square_peeking'] / one['runs']:.2%}",
                )
                for one in results["sample_ratio"]
            ],
        ),
        Grid(
            title="Pairwise preferences, one vote in five a tie",
            header=("wins without ties", "e reaches 20", "median raters"),
            rows=[
                (f"{one['share']:.0%}", share(one["shown"]), _number(one["median_raters"]))
                for one in results["preferences"]
            ],
        ),
    ]  # fmt: skip


def _rate(one: dict[str, Any]) -> str:
    rate = one["rates"][0]
    return f"{rate:.2f} to {rate + one['drift']:.2f}" if one["drift"] else f"{rate:.2f}"


def _number(number: int | None) -> str:
    return "\N{EN DASH}" if number is None else f"{number:,}"
