"""The page of a campaign: what it says for every way one can end, and that it is one safe, self-contained file."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sweep_records
from page_reader import Page, check_page

from ftray.campaign import SweepDirectory
from ftray.errors import InputError
from ftray.report.sweep_drawings import field_axis
from ftray.report.sweep_render import render_sweep

HOSTILE = "<script src='https://evil.example/x.js'></script>&\"'</pre>{{ 7 * 7 }}"
Records = dict[str, Any]
Render = Callable[[Records], str]


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Write the records of a campaign, render it, and return the page."""
    folders = iter(range(100))

    def write_and_render(records: Records) -> str:
        sweep = sweep_records.write(tmp_path / str(next(folders)), records)
        assert render_sweep(sweep) == sweep.report
        return sweep.report.read_text(encoding="utf-8")

    return write_and_render


def test_a_finished_campaign_shows_every_part(render: Render) -> None:
    page = render(sweep_records.finished())
    text = check_page(page).text
    for part in (
        "Take the winner", "The winner is better than the default by 5.1 points",
        "base, 0.6% to 3.0%", "91.2%", "86.1%", "+5.1 points", "+2.4 to +7.8: told apart",
        "16 6 completed, 6 pruned, 2 diverged, 1 failed, 1 budget", "trial #1, step 120",
        "Time to decision 6 min 11 s of 6 min 42 s in all", "Accelerator-hours 0.2141",
        "ftray train JOB --set method.rank=32 --set method.alpha=64", f"trials/{sweep_records.trial_id(2)}/adapter",
        "were asked once", "They can be told apart.", "16 trials", "2 configurations were equal to others",
        "trained as the first steps of #4", "learning rate 62.0%", "out of memory: 64 of rank do not fit",
        "validation loss rose for 3 evaluations while training loss fell #13, #15",
        "front: no trial is better in one", "3 seeds: 89.7% to 91.1%", "mean 90.4%",
        "100 validation rows tell apart", "passed with warnings", "shared: LoRA on a base", "optuna: there are 10",
        "2, 8 slots each", "sweep: space:",
    ):  # fmt: skip
        assert part in text, part
    # values, differences, space, two courses, front
    assert page.count("<svg") == page.count("<figure>") == 6


def test_a_winner_that_forgot_too_much_is_not_to_be_shipped(render: Render) -> None:
    records = sweep_records.finished()
    records["sweep"]["verdict"] = {"decision": "do_not_ship", "reasons": ["Probe 'stories' rose by 1.9."]}
    assert "Do not ship: Probe 'stories' rose by 1.9." in check_page(render(records)).text
    records["sweep"]["recommended"] = "base"
    assert "Do not ship" not in check_page(render(records)).text


def test_a_default_that_won_is_not_compared_with_itself(render: Render) -> None:
    records = sweep_records.finished()
    assert "Winner minus default" in check_page(render(records)).text
    records["sweep"] |= {"winner": records["sweep"]["default"], "recommended": "default"}
    assert "Winner minus default" not in check_page(render(records)).text


def rows(page: str) -> list[str]:
    """Return the rows of the table of trials, as text."""
    table = page.split('<section id="trials">')[1].split("</section>")[0]
    bodies = re.findall(r"<tbody>(.*?)</tbody>", table, flags=re.DOTALL)
    return [Page(f"<p>{row}</p>").text for body in bodies for row in re.findall(r"<tr.*?>(.*?)</tr>", body, re.DOTALL)]


def test_trials_stand_by_their_best_value_and_say_who_they_are(render: Render) -> None:
    found = rows(render(sweep_records.finished()))
    assert len(found) == 16
    assert found[0].startswith(f"#1 winner {sweep_records.trial_id(2)} 32 2 0.00071 3 cosine 96.3% step 120")
    values = [float(re.search(r"([\d.]+)% step", row)[1]) for row in found[:-1]]  # type: ignore[index]
    assert values == sorted(values, reverse=True)
    assert "failed out of memory" in found[-1]
    assert [row.split()[0] for row in found if "default" in row.split()[:2]] == ["#6"]
    assert [row.split()[0] for row in found if "finalist" in row] == ["#2", "#3"]


def test_where_less_is_better_the_least_is_first(render: Render) -> None:
    records = sweep_records.finished()
    records["job"]["job"]["evaluate"]["task"]["metric"] = "nll"
    page = render(records)
    found = rows(page)
    assert sweep_records.trial_id(8) in found[0]
    assert "lower left is better" in page
    assert "95% intervals, all of them together, lower is better" in page


@pytest.mark.parametrize(
    ("recommended", "label", "said"),
    [("default", "Keep the default", "without its sweep section"), ("base", "Keep the base", "is the base")],
)
def test_the_winner_is_not_always_what_is_recommended(render: Render, recommended: str, label: str, said: str) -> None:
    records = sweep_records.finished()
    records["sweep"] |= {"recommended": recommended, "reasons": ["It cannot be told from the default."]}
    records["sweep"]["winner_vs_default"] |= {"low": -0.01, "distinguishable": False}
    text = Page(render(records)).text
    for part in (label, said, "It cannot be told from the default.", "not told apart", "They cannot be told apart"):
        assert part in text, part
    assert "Take the winner" not in text


def test_the_default_can_be_the_winner(render: Render) -> None:
    records = sweep_records.finished()
    sweep = records["sweep"]
    sweep |= {"winner": sweep["default"], "recommended": "default", "winner_vs_default": None}
    sweep["finalists"] = [sweep["default"], *sweep["finalists"]]
    page = render(records)
    text = check_page(page).text
    assert "default, the winner #6" in text
    assert "default, the winner, 83.1% to 89.1%" in text
    assert "Winner minus default" not in text


def test_a_campaign_that_was_killed_shows_what_there_is(render: Render) -> None:
    records = sweep_records.unfinished()
    text = check_page(page := render(records)).text
    for part in ("Not finished", "5 trials have ended. 2 more began.", "so far", "not finished", "The same command"):
        assert part in text, part
    assert len(rows(page)) == 7
    assert "68.6%" in text or "88.1%" in text  # the best so far of a trial under way
    assert "Base, default and winner" not in text
    assert "How to use it" not in text


@pytest.mark.parametrize(("status", "label"), [("failed", "The campaign failed"), ("interrupted", "Interrupted")])
def test_a_campaign_without_a_winner_says_why(render: Render, status: str, label: str) -> None:
    records = sweep_records.finished()
    nothing = {"winner": None, "finalists": [], "winner_vs_default": None, "pareto": [], "importance": {}}
    records["sweep"] |= {"status": status, "recommended": "base", **nothing, "set": [], "seeds": []}
    records["sweep"] |= {"default": None, "base": {**records["sweep"]["base"], "test": None}}
    text = check_page(render(records)).text
    assert label in text
    assert "Recommendation" not in text
    assert "16 trials" in text


def test_a_budget_that_ran_out_is_said(render: Render) -> None:
    records = sweep_records.finished()
    records["sweep"]["status"] = "budget"
    text = Page(render(records)).text
    assert "The budget ended the campaign before all trials were done." in text
    assert "Take the winner" in text


def test_one_trial_or_none_still_have_a_page(render: Render) -> None:
    records = sweep_records.unfinished()
    nothing = {"job": records["job"]}
    assert "0 trials have ended" in check_page(render(nothing)).text
    one = {"job": records["job"], "ledger": records["ledger"][:1]}
    text = check_page(page := render(one)).text
    assert "1 trial has ended" in text
    assert page.count("<svg") == 1


def test_optional_keys_may_be_missing(render: Render) -> None:
    records = sweep_records.finished()
    extras = ("set", "notes", "reasons", "seeds", "forgetting", "forgetting_unit", "slots", "workers", "trials",
              "searcher_reason", "scheduler_reason", "reused", "path", "started_at", "ended_at")  # fmt: skip
    for key in extras:
        del records["sweep"][key]
    for one in (records["sweep"]["winner"], records["sweep"]["default"], *records["sweep"]["finalists"]):
        for key in ("difference_from_default", "forgetting"):
            one.pop(key, None)
    del records["audit"]
    text = check_page(page := render(records)).text
    assert "Learned and forgotten" not in text
    assert page.count("<svg") == 4


def test_validation_rows_alone_are_said_to_be_biased(render: Render) -> None:
    records = sweep_records.finished()
    sweep = records["sweep"]
    for one in (sweep["base"], sweep["default"], sweep["winner"], *sweep["finalists"]):
        one["test"] = None
    text = Page(render(records)).text
    assert "biased upwards" in text
    assert "exact match on the validation rows 2.1%" in text


def test_two_hundred_trials_are_folded(render: Render) -> None:
    records = sweep_records.finished()
    records["ledger"] = [
        {**sweep_records.trial(number % 16), "trial_id": f"{number:012x}", "is_default": False} for number in range(200)
    ]
    page = render(records)
    assert "<b>176</b>more trials" in page
    assert len(rows(page)) == 200


def test_losses_that_are_no_numbers_leave_a_gap(render: Render) -> None:
    records = sweep_records.finished()
    for line in records["metrics"][sweep_records.trial_id(0)]:
        line["val/loss"] = None
    records["ledger"][0]["best"]["validation_loss"] = None
    check_page(render(records))


def test_whatever_a_user_wrote_is_escaped(render: Render) -> None:
    records = json.loads(json.dumps(sweep_records.finished()).replace("cosine", json.dumps(HOSTILE)[1:-1]))
    records["job"]["job"]["name"] = records["job"]["job"]["model"] = HOSTILE
    records["sweep"] |= {"reasons": [HOSTILE], "notes": [HOSTILE], "mode_reason": HOSTILE, "set": [HOSTILE]}
    records["sweep"]["winner"]["adapter"]["path"] = HOSTILE
    for trial in records["ledger"]:
        trial["reason"] = HOSTILE
        trial["config"][HOSTILE] = 1
    page = render(records)
    assert "<script" not in page
    assert html.escape(HOSTILE, quote=False).split("'")[0] in page
    assert "script" not in Page(page).tags


def test_the_same_records_give_the_same_bytes(render: Render) -> None:
    assert render(sweep_records.finished()) == render(sweep_records.finished())


def test_a_folder_without_a_job_is_no_campaign(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"job\.json") as caught:
        render_sweep(SweepDirectory(tmp_path))
    assert caught.value.kind == "not_a_run"


def test_a_field_over_more_than_a_factor_of_ten_is_logarithmic() -> None:
    wide = field_axis("learning_rate", [1e-5, 1e-4, 1e-3])
    assert wide.places == pytest.approx((0.0, 0.5, 1.0))
    narrow = field_axis("epochs", [1, 2, 5])
    assert narrow.places == pytest.approx((0.0, 0.25, 1.0))
    assert [text for _, text in narrow.ticks] == ["1", "2", "5"]


def test_names_and_switches_are_spread_evenly_and_equal_ones_set_apart() -> None:
    axis = field_axis("schedule", ["wsd", "cosine", "linear", "wsd"])
    assert [text for _, text in axis.ticks] == ["cosine", "linear", "wsd"]
    assert axis.places[1:3] == (0.0, 0.5)
    assert axis.places[0] != axis.places[3]
    assert [text for _, text in field_axis("rslora", [True, False]).ticks] == ["false", "true"]


def test_a_field_that_only_some_trials_have_crosses_where_they_do() -> None:
    assert field_axis("alpha", [16, None, 32]).places == (0.0, None, 1.0)
    assert field_axis("alpha", [16, 16]).ticks == ((0.5, "16"),)
