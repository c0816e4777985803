"""How far a text is JSON, against Python's own parser."""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.data.json_prefix import scan_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
documents = st.builds(
    json.dumps,
    st.lists(values) | st.dictionaries(st.text(), values),
    ensure_ascii=st.booleans(),
    indent=st.none() | st.integers(0, 2),
)
jsonish = st.text(alphabet='{}[],:"\\ \n0123456789.eE+-truefalsnu/x\x01é', max_size=30)


def is_json(text: str) -> bool:
    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        return isinstance(json.loads(text, parse_constant=refuse), dict | list)
    except ValueError:
        return False


@given(documents, st.data())
def test_every_beginning_of_a_document_is_one(text: str, data: st.DataObject) -> None:
    assert scan_json(text).complete == len(text)
    length = data.draw(st.integers(0, len(text) - 1))
    found = scan_json(text[:length])
    assert (found.length, found.complete) == (length, None)


@given(jsonish | st.text(max_size=20) | documents.map(lambda text: text[:-1]))
def test_it_takes_what_pythons_parser_takes(text: str) -> None:
    found = scan_json(text)
    assert (found.length == len(text) and found.complete is not None) == is_json(text)


@given(documents, st.data())
def test_a_damaged_document_is_valid_up_to_the_damage_at_least(text: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:place] + data.draw(st.sampled_from('{}[],:"\\x0 \x01')) + text[place + 1 :]
    found = scan_json(damaged)
    assert found.length >= place
    # What is called a beginning is one: the same characters again give the same, and one more does not go on.
    assert scan_json(damaged[: found.length]).length == found.length
    assert found.length == len(damaged) or scan_json(damaged[: found.length + 1]).length == found.length


@pytest.mark.parametrize(
    ("text", "length", "complete"),
    [
        ("", 0, None),
        ("  ", 2, None),
        ("42", 0, None),
        ('"text"', 0, None),
        ("[1,]", 3, None),
        ("[01]", 2, None),
        ("[-]", 2, None),
        ("[1.]", 3, None),
        ("[1e+]", 4, None),
        ("[1.5e3]", 7, 7),
        ("[trux]", 4, None),
        ("[nullx]", 5, None),
        ('{"a" 1}', 5, None),
        ('{"a": 1,}', 8, None),
        ('["\\q"]', 3, None),
        ('["\\u12G4"]', 6, None),
        ('["\\ud800"]', 10, 10),
        ('["a\nb"]', 3, None),
        ("[NaN]", 1, None),
        ("{} and so on", 3, 2),
        (' {"a": [1, {}]} \n', 17, 15),
        ("[1}", 2, None),
    ],
)
def test_a_text_is_json_up_to_here(text: str, length: int, complete: int | None) -> None:
    found = scan_json(text)
    assert (found.length, found.complete) == (length, complete)


@pytest.mark.parametrize("piece", ["[", '"\\u0041', "1", ' {"a":', '["a\\n",', '"' + "x" * 50, "[0.1e5,"])
def test_time_is_linear(piece: str) -> None:
    def seconds(repetitions: int) -> Any:
        text = "[" + piece * repetitions
        started = perf_counter()
        scan_json(text)
        return perf_counter() - started

    assert min(seconds(40_000) for _ in range(3)) < 40 * min(seconds(4_000) for _ in range(3)) + 0.01
