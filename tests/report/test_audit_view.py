"""What the gate found as the page shows it: findings first, and facts that a reader can use."""

from __future__ import annotations

from typing import Any

import run_records
from hypothesis import given
from hypothesis import strategies as st

from ftray.artifacts import RunDirectory
from ftray.audit.report import CHECKS
from ftray.report.audit_view import AuditView, audit_view, label_bars
from ftray.report.records import read_records

Json = dict[str, Any]


def seen(*checks: Json, status: str = "warn") -> AuditView:
    run = run_records.records(checks=checks)
    assert run.audit is not None
    run.audit["status"] = status
    view = audit_view(run.audit)
    assert view is not None
    return view


def test_findings_stand_apart_failures_first() -> None:
    view = seen(
        run_records.check("size", "pass", count=0),
        run_records.check("outliers", "warn", count=2),
        run_records.check("label_noise", "skipped", count=0),
        run_records.check("overlap_exact", "fail", count=5, fix="Remove them."),
        status="fail",
    )
    assert [row.name for row in view.findings] == ["overlap_exact", "outliers"]
    assert [row.name for row in view.others] == ["size", "label_noise"]
    assert view.others_title == "1 check passed, 1 skipped"
    assert (view.status, view.tone) == ("failed the gate", "bad")
    first = view.findings[0]
    assert (first.found, first.share, first.limit) == ("5 of 100", "5.0%", "0.5%")
    assert (first.advice, first.examples) == ("Remove them.", "test row 7 and train row 3")


def test_an_accepted_check_gives_its_reason_and_an_unknown_one_its_name() -> None:
    row = seen(run_records.check("brand_new", "fail", count=1, accepted="two annotators")).findings[0]
    assert (row.title, row.advice) == ("brand new", "Accepted: two annotators")


def test_counts_are_split_where_there_is_something_to_split() -> None:
    found = {"test": {"count": 1, "rows": 140}, "validation": {"count": 0, "rows": 84}}
    overlap = run_records.check("overlap_near", "warn", count=1, facts={"found": found})
    private = run_records.check("personal_data", "warn", count=3, facts={"kinds": {"email": 2, "phone": 1}})
    clean = run_records.check("overlap_exact", "pass", count=0, facts={"found": found})
    view = seen(overlap, private, clean)
    assert [row.split for row in view.findings] == ["test 1 of 140, validation 0 of 84", "email 2, phone 1"]
    assert view.others[0].split == ""


def test_answers_that_leave_their_format_say_where() -> None:
    facts = {
        "format": "one JSON object or array",
        "kinds": {"drifts": 378, "truncated": 0, "other": 0, "valid": 1266},
        "worst": [{"dataset": "train", "row": row, "kind": "drifts", "valid_characters": 11} for row in range(10)],
    }
    kinds, worst = seen(run_records.check("format_drift", "fail", count=378, facts=facts)).findings[0].tables
    assert kinds.note == "one JSON object or array"
    assert kinds.rows == (
        ("begin in the format and go on with something else", "378"),
        ("are valid to their end", "1,266"),
    )
    assert worst.rows[0] == ("train row 0", "drifts", "11")
    assert len(worst.rows) == 6


def test_doubtful_labels_stand_beside_what_they_may_be() -> None:
    suspects = [{"row": 70, "given": "play music", "suggested": "rate book", "probability": 0.9281}]
    (table,) = seen(run_records.check("label_noise", "warn", count=1, facts={"worst": suspects})).findings[0].tables
    assert table.rows == (("train row 70", "play music", "rate book", "92.8%"),)
    surprising = {"worst": [{"row": 3, "bits_per_byte": 4.5}], "median_bits_per_byte": 0.75}
    (table,) = seen(run_records.check("label_noise", "warn", count=1, facts=surprising)).findings[0].tables
    assert table.rows == (("train row 3", "4.5"),)
    assert table.note == "the median is 0.75"


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 10**6)))
def test_bars_are_the_commonest_labels_by_share(counts: dict[str, int]) -> None:
    bars = label_bars(counts)
    assert [bar.count for bar in bars] == sorted(counts.values(), reverse=True)[:10]
    assert all(0 < bar.width <= 1 for bar in bars)
    assert sum(bar.share for bar in bars) <= 1 + 1e-9
    assert not bars or bars[0].width == 1


def test_labels_and_lengths_describe_the_data() -> None:
    labels = {f"label {index}": 20 - index for index in range(12)}
    words = {"prompts": {"p5": 5, "p25": 7, "p50": 8, "p75": 11, "p95": 1500}, "answers": None}
    diversity = {"words": words, "distinct_2": {"prompts": 0.651, "answers": None}, "sampled_rows": 420}
    view = seen(
        run_records.check("label_balance", "pass", count=0, facts={"labels": labels, "entropy": 0.98}),
        run_records.check("diversity", "pass", count=0, facts=diversity),
    )
    assert len(view.labels) == 10
    assert view.labels_note == "the 10 commonest of 12; evenness 0.98 (1 is an even split)"
    assert view.lengths is not None
    assert view.lengths.rows == (("prompts", "5", "7", "8", "11", "1,500", "65.1%"),)


def test_records_of_older_versions_have_no_facts() -> None:
    check = run_records.check("label_balance", "pass", count=0)
    del check["facts"]
    view = seen(check, status="pass")
    assert (view.labels, view.labels_note, view.lengths) == ((), "", None)
    assert audit_view(None) is None


def test_a_real_run_shows_every_check_once(real_run: RunDirectory) -> None:
    view = audit_view(read_records(real_run).audit)
    assert view is not None
    assert sorted(row.name for row in (*view.findings, *view.others)) == sorted(CHECKS)
    drift = next(row for row in view.findings if row.name == "format_drift")
    assert drift.advice.startswith("Accepted: ")
    assert [row[0] for row in drift.tables[1].rows] == ["train row 7", "train row 31"]
    assert view.lengths is not None
