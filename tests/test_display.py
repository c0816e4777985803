from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from ftray.display import Course, LiveView, open_display
from ftray.summary import duration, shown


def step(number: int, **values: float) -> dict[str, Any]:
    numbers = {
        "train/loss": 0.5,
        "train/learning_rate": 1e-4,
        "train/grad_norm": 1.25,
        "train/tokens_per_second": 1234.5,
    }
    return {"step": number, "epoch": 0.1, "kind": "step", **numbers, **values}


def evaluation(number: int) -> dict[str, Any]:
    return {"step": number, "epoch": 0.1, "kind": "evaluation", "val/loss": 0.25, "val/accuracy": 0.875}


def event(number: int, text: str) -> dict[str, Any]:
    return {"step": number, "epoch": 0.0, "kind": "event", "event": text}


def test_the_bases_value_is_told_once_and_kept() -> None:
    course = Course("exact_match", total=100)
    course.take({**evaluation(10), "val/base_accuracy": 0.25}, now=0.0)
    course.take(evaluation(20), now=1.0)
    assert course.validated() == "validation loss 0.2500, exact_match 87.5% (base 25.0%)"


def test_the_time_left_counts_from_where_this_attempt_began() -> None:
    course = Course("exact_match", total=100)
    course.take(event(40, "resumed at step 40"), now=1000.0)
    assert course.seconds_left(1001.0) is None
    course.take(step(50), now=1020.0)
    assert course.seconds_left(1020.0) == pytest.approx(100.0)


def test_off_a_terminal_every_line_is_one_plain_line() -> None:
    file = io.StringIO()
    with open_display(quiet=False, metric="exact_match", console=Console(file=file, width=40)) as display:
        display(event(0, "started"))
        display(step(10))
        display(evaluation(10))
    started, logged, validated = file.getvalue().splitlines()
    assert started == "step 0  started"
    assert "loss 0.5  learning rate 1.00e-04  gradient norm 1.25  tokens/s 1,23" in logged
    assert validated == "step 10  validation loss 0.2500, exact_match 87.5%"


def test_quiet_is_silent() -> None:
    file = io.StringIO()
    with open_display(quiet=True, console=Console(file=file, force_terminal=True)) as display:
        display.say("something")
        display(step(1))
        display.advance(1, 2)
    assert file.getvalue() == ""


def test_on_a_terminal_the_numbers_stay_below_the_bar() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    view = LiveView(console, "exact_match")
    view(event(0, "started"))
    view(step(10))
    view(evaluation(10))
    console.print(view.render())
    text = file.getvalue()
    for said in ("started", "loss 0.5", "1.00e-04", "gradient norm 1.25", "tokens/s 1,23", "87.5%"):
        assert said in text


def test_other_long_work_has_a_bar() -> None:
    file = io.StringIO()
    with open_display(quiet=False, console=Console(file=file)) as display:
        for done in range(1, 101):
            display.advance(done, 100, "loss 3.1")
    assert file.getvalue().splitlines()[0] == "10/100  loss 3.1"
    assert len(file.getvalue().splitlines()) == 10


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (12.4, "12 s"), (119.6, "2 min 00 s"), (4000, "1 h 06 min")]
)
def test_duration(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_shares_are_per_cent_and_likelihoods_are_not() -> None:
    assert shown("exact_match", 0.5) == "50.0%"
    assert shown("bits_per_byte", 0.71234) == "0.7123"
    assert shown("exact_match", None) == "-"
