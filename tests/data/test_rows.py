from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftray.data.rows import is_hub_name, read_hub_rows, read_rows
from ftray.errors import InputError

TABLE = st.lists(
    st.fixed_dictionaries(
        {"a": st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), "b": st.text('xyz ,"\n')}
    ),
    min_size=1,
    max_size=5,
)


def columns(file):
    return [row.columns for row in read_rows(file)]


@given(TABLE)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_every_file_format_gives_back_what_was_written(tmp_path, table):
    (tmp_path / "t.json").write_text(json.dumps(table))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in table))
    lines = [",".join('"' + row[key].replace('"', '""') + '"' for key in ("a", "b")) for row in table]
    (tmp_path / "t.csv").write_text("\n".join(["a,b", *lines]), newline="")
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    assert columns(tmp_path / "t.json") == columns(tmp_path / "t.jsonl") == table
    assert columns(tmp_path / "t.csv") == columns(tmp_path / "t.parquet") == table


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text('\ufeff{"a": 1}\n\n{"a": 2}\n')
    assert [(row.index, row.line) for row in read_rows(file)] == [(0, 1), (1, 3)]


def test_json_lines_under_a_json_name(tmp_path):
    (tmp_path / "t.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert columns(tmp_path / "t.json") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("\none\nmore\n \ntwo\n", ["one\nmore", "two"]),
        ("\none\n\nmore\n<|endoftext|>\ntwo<|endoftext|>\n", ["one\n\nmore", "two"]),
        ("\n\none\n", ["one"]),
        ("", []),
    ],
)
def test_text_is_split_at_its_own_kind_of_border(tmp_path, text, expected):
    (tmp_path / "t.txt").write_text(text)
    assert [row["text"] for row in columns(tmp_path / "t.txt")] == expected


@pytest.mark.parametrize(
    ("name", "content", "kind", "line"),
    [
        ("t.jsonl", b'{"a": 1}\n{"a": \n', "not_json", 2),
        ("t.jsonl", b'{"a": 1}\n[1]\n', "not_json", 2),
        ("t.json", b'[{"a": 1},\n{"a": ', "not_json", 2),
        ("t.json", b"[1]", "not_json", None),
        ("t.csv", b"a,b\n1,2\n1\n", "bad_row", 3),
        ("t.csv", b"a,b\n1,2,3\n", "bad_row", 2),
        ("t.parquet", b"no", "bad_row", None),
        ("t.jsonl", b'{"a": "\xff"}', "bad_encoding", None),
        ("t.tsv", b"a", "unknown_suffix", None),
    ],
)
def test_what_cannot_be_read_names_file_and_line(tmp_path, name, content, kind, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_rows(tmp_path / name)
    assert (caught.value.kind, caught.value.line, caught.value.file) == (kind, line, str(tmp_path / name))


def test_hub_names():
    assert all(map(is_hub_name, ["org/name", "org/name-1.5:test", "org/name:main:train"]))
    assert not any(map(is_hub_name, ["name", "data/train.jsonl", "./a/b", "/a/b", "a/b/c", "../a"]))


def test_a_dataset_that_cannot_be_reached_is_an_input_error():
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        read_hub_rows("no-such-org/no-such-dataset:test")
    assert caught.value.kind == "missing_dataset"
