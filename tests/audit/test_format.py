from __future__ import annotations

import dataclasses
import json

import pytest

from ftray.audit.format import FormatDrift
from ftray.data.answer_format import AnswerFormat
from ftray.data.config import Source
from ftray.data.conversations import Message
from ftray.data.readers import read_source


def drift(*datasets, declared=None):
    finder = FormatDrift(declared)
    for name, rows in datasets:
        finder.see(name, rows)
    return finder.checks()[0]


@pytest.fixture
def as_json(make_example):
    return [make_example(f"q {i}", json.dumps({"id": i, "of": ["a", "b"]}), row=i) for i in range(200)]


def test_an_answer_that_drifts_into_prose_fails_a_declared_format(as_json, make_example):
    bad = [
        make_example("q", "Sure, here you are", row=200),
        make_example("q", '{"id": 1', row=201),
        make_example("q", '{"id": 1} I hope this helps!', row=202),
    ]
    test = [make_example("q", '{"id": 1, and so on', row=0, dataset="test")]
    check = drift(("test", test), ("train", [*as_json, *bad]), declared=AnswerFormat(kind="json"))
    assert (check.status, check.count, check.rows, check.limit) == ("fail", 4, 204, 0.0)
    assert check.facts["kinds"] == {"drifts": 2, "truncated": 1, "other": 1, "valid": 200}
    assert [(p.dataset, p.row) for p in check.examples] == [("test", 0), ("train", 202), ("train", 201), ("train", 200)]
    places = {(one["dataset"], one["row"]): one["valid_characters"] for one in check.facts["worst"]}
    assert places == {("test", 0): 10, ("train", 202): 10, ("train", 201): 8, ("train", 200): 0}
    assert check.facts["declared"] is True
    assert "2 begin in the format and go on with something else" in check.fix


def test_json_is_inferred_and_shown(as_json, make_example):
    assert drift(("train", as_json)).status == "pass"
    assert drift(("train", as_json)).facts["declared"] is False
    prose = [make_example("q", f"No idea, {i}.", row=200 + i) for i in range(20)]
    check = drift(("train", [*as_json, *prose]))
    assert (check.status, check.count) == ("warn", 20)
    assert "inferred from the training answers" in check.fix
    drifts = [make_example("q", '{"a": 1} and more', row=300 + i) for i in range(5)]
    assert drift(("train", [*as_json, *drifts])).status == "fail"
    assert drift(("train", [*as_json, drifts[0]])).status == "warn"


def test_evaluation_answers_are_held_to_what_training_shows(as_json, make_example):
    test = [make_example("q", "{} then prose", row=5, dataset="test"), make_example("q", "[]", row=6, dataset="test")]
    check = drift(("test", test), ("train", as_json), ("stories", test))
    assert [(p.dataset, p.row) for p in check.examples] == [("test", 5)]
    assert check.rows == 202


def test_training_rows_of_several_files_show_the_format(as_json, make_example):
    def of(name, rows):
        return [dataclasses.replace(row, dataset=name) for row in rows]

    def prose(num_rows):
        return [make_example("q", f"No idea, {i}.", row=200 + i) for i in range(num_rows)]

    check = drift(("train", of("a", as_json)), ("train", of("b", prose(5))))
    assert (check.status, check.count, check.facts["datasets"]) == ("warn", 5, {"b": 5})
    # Test answers that are no JSON say nothing of what training shows, wherever the training rows stand.
    finder = FormatDrift()
    for name in ("a", "b"):
        finder.see("train", of(name, as_json))
    assert finder._kept.training.total() == 400


def test_labels_are_inferred_and_what_follows_them_is_found(make_example):
    rows = [make_example(f"q {i}", ("positive", "Negative")[i % 2], row=i) for i in range(200)]
    long = "positive, because " + "the food was good " * 30
    test = [make_example("q", long, row=3, dataset="test"), make_example("q", "POSITIVE", row=4, dataset="test")]
    check = drift(("test", test), ("train", rows))
    assert (check.status, check.count, check.rows) == ("warn", 1, 202)
    assert check.facts["kinds"]["drifts"] == 1
    assert [(p.dataset, p.row) for p in check.examples] == [("test", 3)]
    many = [make_example("q", "perhaps so", row=200), make_example("q", "maybe", row=201)]
    # Rows that are no label at all belong to another task.
    assert drift(("train", [*rows, *many])).status == "pass"


def test_repeated_answers_are_counted_as_often_as_they_stand(make_example):
    rows = [make_example(f"q {i}", "yes" if i % 4 else "no", row=i) for i in range(400)]
    odd = [make_example("q", "yes, of course", row=400 + i) for i in range(9)]
    test = [make_example("q", "never", row=1, dataset="test")]
    check = drift(("test", test), ("train", [*rows, *odd]))
    assert (check.status, check.count, check.rows) == ("pass", 0, 410)
    assert check.facts["inferred_from_rows"] == 409
    check = drift(
        ("test", [*test, *[make_example("q", "no, never", row=i, dataset="test") for i in range(9)]]), ("train", rows)
    )
    assert (check.count, check.rows, check.facts["kinds"]["valid"]) == (9, 410, 400)
    assert [pointer.row for pointer in check.examples] == [0, 1, 2, 3, 4]


def test_free_text_tool_calls_and_few_answers_have_no_format(make_example):
    free = [make_example(f"q {i}", f"The answer is {i}, I think.", row=i) for i in range(100)]
    assert drift(("train", free)).status == "skipped"
    assert drift(("train", free[:5])).status == "skipped"
    turn = make_example("q", "").messages[0]
    call = Message(role="assistant", content="", tool_calls=({"function": {"name": "f", "arguments": {}}},))
    calls = [type(free[0])(messages=(turn, call), dataset="train", row=i, fields={}, columns={}) for i in range(50)]
    assert drift(("train", calls), declared=AnswerFormat(kind="json")).rows == 0
    assert drift(("train", calls)).status == "skipped"


def test_real_files(shared):
    snips = Source(path=str(shared / "data/snips/train.jsonl"), prompt="{text}", completion="{intent}")
    check = drift(("train", read_source(snips, name="train", base=shared)))
    assert (check.status, check.facts["kind"], check.rows) == ("pass", "labels", 13_784)
    for file in ("alpaca_en_demo.json", "dolly_151.jsonl"):
        rows = read_source(Source(path=str(shared / "data/formats" / file)), name="train", base=shared)
        assert drift(("train", rows)).status == "skipped"
