from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftray.audit.files import Files, audit_files, require_writable_rows, write_clean
from ftray.audit.gate import Expectations, audit
from ftray.data.config import Source
from ftray.data.readers import read_source
from ftray.errors import InputError


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    train = [{"prompt": f"question {row} of many {row * 7919}", "completion": "ab"[row % 2]} for row in range(4300)]
    train[40] = train[4100]
    train[50] = {"prompt": train[3]["prompt"], "completion": "c"}
    train[60]["completion"] = " "
    train[70]["prompt"] = "held out 5 and 155"
    write_rows(tmp_path / "train.jsonl", train)
    test = [{"prompt": f"held out {row} and {row * 31}", "completion": "a"} for row in range(300)]
    write_rows(tmp_path / "test.jsonl", test)
    return tmp_path


def files_of(folder: Path, train: str = "train.jsonl") -> Files:
    return Files(train={"train": Source(path=train)}, evaluation={"test": Source(path="test.jsonl")}, base=folder)


def test_a_stream_is_audited_as_rows_in_memory_are(folder):
    files = files_of(folder)
    seen = []
    streamed = audit_files(files, expectations=Expectations(), seen=seen.append).report.to_record()
    train, test = (
        read_source(source, name=name, base=folder)
        for name, source in (("train", files.train["train"]), ("test", files.evaluation["test"]))
    )
    paths = {"train": "train.jsonl", "test": "test.jsonl"}
    assert streamed == audit(train, [], test, {}, accepted={}, paths=paths).to_record()
    assert seen == [2000, 4000, 4300]


def test_clean_rows_are_written_as_they_stand(folder):
    files = files_of(folder)
    audited = audit_files(files, expectations=Expectations())
    output = folder / "clean.jsonl"
    counts = write_clean(files, audited, output)
    assert counts == {
        "written": 4295,
        "stands in an evaluation set": 1,
        "empty": 1,
        "repeats an earlier row": 1,
        "contradicts other rows": 2,
    }
    before = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    gone = {3, 50, 60, 70, 4100}
    kept = [row for index, row in enumerate(before) if index not in gone]
    assert [json.loads(line) for line in output.read_text().splitlines()] == kept
    again = audit_files(files_of(folder, "clean.jsonl"), expectations=Expectations()).faulty
    assert again == {}


def test_an_unwritable_place_leaves_nothing(folder):
    files = files_of(folder)
    audited = audit_files(files, expectations=Expectations())
    with pytest.raises(InputError) as caught:
        write_clean(files, audited, folder / "missing" / "clean.jsonl")
    assert caught.value.kind == "unwritable"


def test_the_data_is_never_overwritten(folder):
    with pytest.raises(InputError, match="would overwrite") as caught:
        require_writable_rows(files_of(folder), folder / "train.jsonl")
    assert "train-clean" in caught.value.hint


def test_a_broken_line_is_named(folder):
    with (folder / "train.jsonl").open("a") as lines:
        lines.write('{"prompt": "cut')
    with pytest.raises(InputError) as caught:
        audit_files(files_of(folder), expectations=Expectations())
    assert caught.value.line == 4301
