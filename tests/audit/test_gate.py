from __future__ import annotations

import pytest

from ftray.audit.gate import audit
from ftray.audit.overlap import decontaminate
from ftray.data.config import Source
from ftray.data.conversations import Example
from ftray.data.readers import read_source
from ftray.data.tokenization import Dropped
from ftray.errors import InputError


@pytest.fixture
def clean(make_example):
    return [make_example(f"question number {i}", "ab"[i % 2], row=i) for i in range(200)]


def by_name(report):
    return {check.name: check for check in report.checks}


def test_clean_data_passes(clean, make_example):
    test = [make_example(f"other {i}", "a", row=i, dataset="test") for i in range(50)]
    report = audit(clean, [], test, {}, accepted={}, paths={"train": "t.jsonl"})
    assert report.status == "pass"
    record = report.to_record()
    assert (record["schema"], record["status"]) == ("ftray/audit/1", "pass")
    assert [(d["name"], d["path"], d["rows"]) for d in record["datasets"]] == [
        ("train", "t.jsonl", 200),
        ("test", "", 50),
    ]
    keys = {"name", "status", "count", "rows", "share", "limit", "accepted", "examples", "fix", "facts"}
    assert all(check.keys() == keys for check in record["checks"])


def test_overlap_fails_above_the_limit_and_warns_below(clean, make_example):
    def status(num_rows):
        test = [make_example(f"other {i}", "a", row=i) for i in range(num_rows - 1)]
        test.append(make_example("Question NUMBER 7?", "b", row=num_rows - 1, dataset="test"))
        checks = by_name(audit(clean, [], test, {}, accepted={}))
        pointer = checks["overlap_normalised"].examples[0].to_record()
        assert (pointer["dataset"], pointer["row"], pointer["other_row"]) == ("test", num_rows - 1, 7)
        assert checks["overlap_exact"].status == "pass"
        return checks["overlap_normalised"].status

    assert (status(100), status(200)) == ("fail", "warn")


def test_the_worst_evaluation_set_decides(clean, make_example):
    probe = Example(messages=(), text="question number 3", dataset="stories", row=0, fields={}, columns={})
    test = [make_example(f"other {i}", "a", row=i) for i in range(1000)]
    check = by_name(audit(clean, [], test, {"stories": [probe]}, accepted={}))["overlap_exact"]
    assert (check.status, check.count, check.rows, check.share) == ("fail", 1, 1, 1.0)


def test_an_accepted_failure_warns(clean):
    report = audit([*clean], [], clean[:3], {}, accepted={"overlap_exact": "known", "overlap_normalised": "known"})
    assert (report.status, report.failed) == ("warn", ())
    assert by_name(report)["overlap_exact"].accepted == "known"
    assert audit(clean, [], clean[:3], {}, accepted={}).status == "fail"


def test_accepting_an_unknown_check_is_refused(clean):
    with pytest.raises(InputError, match="overlap_exakt") as caught:
        audit(clean, [], [], {}, accepted={"overlap_exakt": "x"})
    assert "overlap_exact" in caught.value.hint


def test_duplicates_and_repetitions_are_different_things(clean, make_example):
    checks = by_name(audit(clean * 2, [], [], {}, accepted={}))
    assert checks["duplicates_exact"].count == 0
    copies = [make_example(example.prompt_text, example.answer_text, row=200 + example.row) for example in clean[:10]]
    check = by_name(audit(clean + copies, [], [], {}, accepted={}))["duplicates_exact"]
    assert (check.status, check.count, check.rows) == ("warn", 10, 210)


def test_conflicting_answers_warn(clean, make_example):
    rows = [*clean, make_example("Question number 0!", "b", row=200), make_example("question number 1", "B.", row=201)]
    check = by_name(audit(rows, [], [], {}, accepted={}))["conflicts"]
    assert (check.status, check.count, check.examples[0].row, check.examples[0].other_row) == ("warn", 1, 200, 0)


def test_a_blank_answer_fails(clean, make_example):
    check = by_name(audit([*clean, make_example("q", " \n", row=200)], [], [], {}, accepted={}))["empty"]
    assert (check.status, check.count, check.examples[0].row) == ("fail", 1, 200)


def test_few_rows_warn(clean):
    assert by_name(audit(clean[:99], [], [], {}, accepted={}))["size"].status == "warn"
    assert by_name(audit(clean[:100], [], [], {}, accepted={}))["size"].status == "pass"


def test_an_answer_never_trained_on_warns_for_labels_only(clean, make_example):
    test = [make_example("x", "c", row=0), make_example("y", "A", row=1)]
    check = by_name(audit(clean, [], test, {}, accepted={}))["label_coverage"]
    assert (check.status, check.count, check.rows) == ("warn", 1, 2)
    free = [make_example(f"q{i}", f"answer {i}", row=i) for i in range(200)]
    assert by_name(audit(free, [], test, {}, accepted={}))["label_coverage"].status == "skipped"


def test_snips_as_shipped_overlaps_its_heldout_rows(shared):
    def read(file):
        source = Source(path=f"snips/{file}.jsonl", prompt="Which intent is this? {text}", completion="{intent}")
        return read_source(source, name=file, base=shared / "data")

    train, heldout = read("train"), read("heldout")
    checks = by_name(audit(train, [], heldout, {}, accepted={}))
    assert (checks["overlap_exact"].count, checks["overlap_normalised"].count) == (4, 18)
    assert checks["overlap_normalised"].status == "fail"
    cleaned = decontaminate(train, heldout)
    assert (len(cleaned.kept), len(cleaned.dropped)) == (13_764, 20)
    assert by_name(audit(cleaned.kept, [], heldout, {}, accepted={}))["overlap_normalised"].count == 0


def test_long_rows_that_a_weight_repeats_count_as_the_gate_counts_rows(clean):
    lost = [Dropped(dataset="train", row=7, digest=clean[7].digest, reason="overlong", tokens=9000)] * 5
    check = by_name(audit(clean * 5, [], [], {}, accepted={}, dropped={"train": lost}))["truncation"]
    assert (check.count, check.rows) == (1, 200)
