"""The page of an experiment: every verdict, loads nothing, escapes everything, and draws its courses."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest
from outcome_world import digests, guardrails, opened, run_traffic, spec
from page_reader import Page, check_page

from ftray.report.experiment_plots import EARLY, Band, height
from ftray.report.experiment_render import COLOURS, VERDICTS, arm_classes, course, render_experiment

HOSTILE = "<script>alert('x')</script>"
RATES = {"base": 0.3, "tuned": 0.8, "other": 0.5}
Pages = tuple[dict[str, Any], list[dict[str, Any]]]


def collected(folder: Path, units: int, *, stop: bool = False, **changes: Any) -> Pages:
    """Return report and history of an experiment in a real store."""
    with opened("sqlite", folder) as store:
        asked = spec(**changes)
        experiment = store.create(asked, digests(asked))
        run_traffic(store, experiment, range(units), rates=RATES)
        if stop:
            store.stop("greeting", reason="by hand")
        return store.report("greeting"), store.history("greeting")


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    arms = ("base", "tuned", "other")
    return collected(tmp_path_factory.mktemp("decided"), 250, arms=arms, guardrails=guardrails())


def test_it_says_what_was_found(decided: Pages) -> None:
    report, history = decided
    parsed = check_page(page := render_experiment(report, history))
    assert report["verdict"] == "winner"
    assert "Winner: tuned" in parsed.text
    assert html.unescape(report["reason"]) in parsed.text
    for arm in report["arms"]:
        assert f"{arm['estimate']:.1%}" in parsed.text
    assert "as it should be" in parsed.text
    assert "latency seconds" in parsed.text
    assert "Preferred to base" in parsed.text
    assert "completion tokens" in parsed.text
    assert page.count("<svg") == 3
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 760px" in page


def test_the_same_records_give_the_same_bytes(decided: Pages) -> None:
    assert render_experiment(*decided) == render_experiment(*decided)


@pytest.mark.parametrize("verdict", sorted(VERDICTS))
def test_every_verdict_has_its_words(decided: Pages, verdict: str) -> None:
    report, history = decided
    changed = {**report, "verdict": verdict, "winner": "tuned" if verdict == "winner" else None, "reason": "So it is."}
    parsed = check_page(render_experiment(changed, history))
    assert VERDICTS[verdict][0] in parsed.text
    assert "So it is." in parsed.text


def test_an_experiment_that_has_just_begun_has_no_plots(tmp_path: Path) -> None:
    page = render_experiment(*collected(tmp_path, 0))
    text = check_page(page).text
    assert "Still collecting" in text
    assert "No outcomes yet" in text
    assert "<svg" not in page
    assert "NaN" not in text
    assert "None" not in text


def test_a_single_outcome_is_no_course(tmp_path: Path) -> None:
    page = render_experiment(*collected(tmp_path, 1))
    check_page(page)
    assert "<svg" not in page


def test_the_end_and_what_came_after_it_are_said(tmp_path: Path) -> None:
    report, history = collected(tmp_path, 20, stop=True)
    text = check_page(render_experiment({**report, "late": 1}, history)).text
    assert "It has ended: by hand" in text
    assert "1 outcome came after the end" in text


def test_a_blocked_ratio_and_a_tripped_guardrail_stand_out(decided: Pages) -> None:
    report, history = decided
    ratio = {**report["sample_ratio"], "blocked": True, "e_value": 54321.0}
    tripped = [{**one, "tripped": True} for one in report["guardrails"]]
    text = check_page(render_experiment({**report, "sample_ratio": ratio, "guardrails": tripped}, history)).text
    assert "Sample ratio blocked" in text
    assert "5.432e+04" in text
    assert text.count("tripped") == len(tripped)


def test_whatever_a_user_wrote_is_escaped(decided: Pages) -> None:
    report, history = decided
    arms = [{**arm, "model": HOSTILE} for arm in report["arms"]]
    shadow = [{"name": "shade", "model": HOSTILE, "digest": None}]
    changed = {**report, "arms": arms, "shadow": shadow, "status_reason": HOSTILE, "status": "stopped"}
    page = render_experiment(changed, history)
    assert "<script" not in page
    assert "script" not in Page(page).tags
    assert page.count("&lt;script&gt;") >= len(arms) + 2


def test_sixteen_arms_have_colours(tmp_path: Path) -> None:
    names = tuple(f"arm{index:02d}" for index in range(16))
    with opened("sqlite", tmp_path) as store:
        asked = spec(arms=names)
        run_traffic(store, store.create(asked, digests(asked)), range(60), rates=dict.fromkeys(names, 0.5))
        report, history = store.report("greeting"), store.history("greeting")
    check_page(render_experiment(report, history))
    classes = arm_classes(report)
    assert classes["arm00"] == "arm0"
    assert set(classes.values()) == {f"arm{index}" for index in range(len(COLOURS))}


def test_the_course_ends_with_the_present(decided: Pages) -> None:
    report, history = decided
    points = course(report, history)
    assert points[-1]["outcomes"] == report["looks"]
    counts = [point["outcomes"] for point in points]
    assert counts == sorted(set(counts))
    assert course(report, []) == points[-1:]


def test_the_first_intervals_do_not_flatten_the_others() -> None:
    last = 1000
    early = int(EARLY * last) - 1
    band = Band(at=(1, early, last), values=(0.0, 0.0, 0.1), lows=(-1.0, -0.9, 0.05), highs=(1.0, 0.9, 0.15), colour="")
    low, high = height([band], [0.0], (-1, 1))
    assert -0.02 < low < 0
    assert 0.15 < high < 0.17
