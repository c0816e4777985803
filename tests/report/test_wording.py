"""Numbers in words a reader wants."""

from __future__ import annotations

import shlex

import pytest

from ftray.report import wording

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


def test_a_command_can_be_copied_into_a_shell() -> None:
    sets = ["data.replay={sample_base: 300, fraction: 0.25}", "train.epochs=1.5"]
    line = " ".join(wording.command(sets))
    assert shlex.split(line) == ["ftray", "train", "JOB", "--set", sets[0], "--set", sets[1]]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.value(0.9, "exact_match"), "90.0%"),
        (wording.value(0.71717, "bits_per_byte"), "0.7172"),
        (wording.value(None, "nll"), DASH),
        (wording.change(-0.051, "package:grade"), f"{MINUS}5.1 points"),
        (wording.change(0.9317, "nll"), "+0.932"),
        (wording.change_interval({"low": -0.01, "high": 0.02}, "bleu"), f"{MINUS}1.0 to +2.0"),
        (wording.interval({"low": None, "high": None}, "nll"), "no interval"),
        (wording.p_value(0.0004), "p < 0.001"),
        (wording.p_value(0.0412), "p = 0.041"),
        (wording.duration(4.26), "4.3 s"),
        (wording.duration(161.6), "2 min 42 s"),
        (wording.duration(11100), "3 h 05 min"),
        (wording.size(2605392), "2.5 MiB"),
        (wording.size(3 * 2**30), "3.0 GiB"),
        (wording.count(12345), "12,345"),
        (wording.moment("2026-01-02T03:04:05.678Z"), "2026-01-02 03:04:05 UTC"),
        (wording.words("lm_eval:acc_norm"), "lm-eval acc norm"),
        (wording.excerpt("x" * 10), "x" * 10),
        (wording.excerpt("x" * 10, 4), "xxxx … (6 more characters)"),
        (wording.metric("macro_f1"), "macro F1"),
        (wording.metric("exact_match"), "exact match"),
        (wording.title("ROUGE-L"), "ROUGE-L"),
        (wording.title("exact match"), "Exact match"),
        (wording.task_name({"role": "task", "metric": "rouge_l", "name": "task"}), "ROUGE-L"),
        (
            wording.task_name({"role": "format", "metric": "format_valid", "name": "format"}),
            "answers in the declared format",
        ),
        (
            wording.task_name({"role": "instruction", "metric": "instructions", "name": "talk"}),
            "talk: all instructions followed",
        ),
        (wording.excerpt("x" * 1700), "x" * 700 + " … (1,000 more characters)"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected
