from __future__ import annotations

import json

import pytest

from ftray.data.config import Source
from ftray.data.readers import read_source, source_digest, source_files
from ftray.errors import InputError


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="train.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


def refused(kind, base, **source):
    with pytest.raises(InputError) as caught:
        read_source(Source(**{"path": "train.jsonl", **source}), name="train", base=base)
    assert caught.value.kind == kind
    return caught.value


def test_columns_through_templates(write):
    base = write({"text": "play jazz", "intent": "music", "n": 3})
    source = Source(path="train.jsonl", prompt="What? {text} ({n})", completion="{intent}", system="Of {n}.")
    (example,) = read_source(source, name="d", base=base)
    assert [(turn.role, turn.content) for turn in example.messages] == [
        ("system", "Of 3."),
        ("user", "What? play jazz (3)"),
        ("assistant", "music"),
    ]
    assert example.fields == {"text": "play jazz", "n": "3"}
    assert (example.dataset, example.row, example.columns["intent"]) == ("d", 0, "music")


def test_without_a_template_the_field_is_what_the_user_said(write):
    base = write({"instruction": "a", "input": "", "output": "b"})
    (example,) = read_source(Source(path="train.jsonl"), name="d", base=base)
    assert example.fields == {"prompt": "a"}


def test_a_tree_is_an_example_at_its_root(write):
    keys = ("message_id", "parent_id", "role", "text")
    base = write(
        *(dict(zip(keys, m, strict=True)) for m in [("1", None, "prompter", "a"), ("2", "1", "assistant", "b")])
    )
    (example,) = read_source(Source(path="train.jsonl", system="s"), name="d", base=base)
    assert [turn.content for turn in example.messages] == ["s", "a", "b"]
    assert example.row == 0


def test_limit_takes_the_same_rows_whatever_their_order(write):
    rows = [{"prompt": f"q{i}", "completion": str(i // 50)} for i in range(100)]
    source = Source(path="train.jsonl", limit=20)
    first = read_source(source, name="d", base=write(*rows))
    other = read_source(source, name="d", base=write(*reversed(rows)))
    assert len(first) == 20
    assert {e.digest for e in first} == {e.digest for e in other}
    assert [e.row for e in first] == sorted(e.row for e in first)
    # A file sorted by answer stays balanced.
    assert {e.answer_text for e in first} == {"0", "1"}


@pytest.mark.parametrize(("weight", "expected"), [(2.0, 200), (0.5, 50), (1.25, 125), (0.001, 1)])
def test_weight_repeats_or_keeps_rows_by_content(write, weight, expected):
    rows = [{"prompt": f"q{i}", "completion": "a"} for i in range(100)]
    source = Source(path="train.jsonl", weight=weight)
    examples = read_source(source, name="d", base=write(*rows))
    again = read_source(source, name="d", base=write(*reversed(rows)))
    assert len(examples) == expected
    assert sorted(e.digest for e in examples) == sorted(e.digest for e in again)


def test_a_missing_file_names_the_nearest(write):
    error = refused("missing_file", write({"text": "a"}), path="tran.jsonl")
    assert "train.jsonl" in error.hint
    assert "no folder" in refused("missing_file", write({"text": "a"}), path="gone/train.jsonl").message


def test_an_unreachable_dataset_name(write):
    refused("missing_dataset", write(), path="no-such-org/no-such-dataset")


def test_an_empty_file(write):
    refused("empty_dataset", write())


def test_a_missing_column_lists_those_there_are(write):
    error = refused("missing_column", write({"txt": "a", "label": "b"}), prompt="{text}", completion="{label}")
    assert error.allowed == ["txt", "label"]
    assert "txt" in error.hint
    assert error.line == 1
    refused("missing_column", write({"instruction": "a"}), format="alpaca")


def test_one_template_without_the_other(write):
    base = write({"text": "a"})
    assert refused("bad_template", base, prompt="{text}").path == "completion"
    refused("bad_template", base, format="columns")
    refused("bad_template", base, format="alpaca", prompt="{text}", completion="{text}")


@pytest.mark.parametrize("source", [{}, {"format": "sharegpt"}])
def test_preference_pairs_are_refused(write, source):
    assert (
        "preference"
        in refused("preference_data", write({"prompt": "a", "chosen": "b", "rejected": "c"}), **source).message
    )


@pytest.mark.parametrize(
    ("row", "source"),
    [
        ({"prompt": "a", "completion": 3}, {}),
        ({"messages": [{"role": "user", "content": "a"}]}, {}),
        ({"messages": [{"role": "assistant", "content": "a"}]}, {}),
        ({"messages": ["a"]}, {}),
        ({"text": None}, {"prompt": "{text}", "completion": "x"}),
        ({"text": "a"}, {"system": "s"}),
        ({"messages": [{"role": r, "content": "a"} for r in ("system", "user", "assistant")]}, {"system": "s"}),
    ],
)
def test_a_bad_row_names_its_line(write, row, source):
    assert refused("bad_row", write(row), **source).line == 1


def test_the_digest_of_a_source_is_of_its_bytes(write):
    source = Source(path="train.jsonl")
    first = source_digest(source, write({"text": "a"}))
    base = write({"text": "b"})
    assert source_digest(source, base) != first
    assert source_files(source, base) == [base / "train.jsonl"]
    assert source_files(Source(path="org/name"), base) == []


@pytest.mark.parametrize(
    ("file", "rows", "roles"),
    [
        ("alpaca_en_demo.json", 999, {"user", "assistant"}),
        ("identity.json", 91, {"user", "assistant"}),
        ("glaive_toolcall_en_demo.json", 300, {"user", "assistant", "tool"}),
        ("sharegpt_dummy_conversation.json", 500, {"user", "assistant"}),
        ("dolly_151.jsonl", 151, {"user", "assistant"}),
        ("c4_demo.jsonl", 300, set()),
    ],
)
def test_published_files_read_as_they_are(shared, file, rows, roles):
    examples = read_source(Source(path=f"formats/{file}"), name="d", base=shared / "data")
    assert len(examples) == rows
    assert {turn.role for example in examples for turn in example.messages} == roles


def test_the_stories(shared):
    names = ("tinystories_valid_30k.txt", "tinystories_sample_cs336.txt")
    sources = [Source(path=f"text/{name}") for name in names]
    assert [len(read_source(source, name="d", base=shared / "data")) for source in sources] == [19, 5]


def test_published_preferences_are_refused(shared):
    refused("preference_data", shared / "data", path="formats/dpo_en_demo.json")
