"""How far answers keep to a format, and how many are copied from training."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from ftray.data.answer_format import AnswerFormat, FormatConfig
from ftray.data.tokenization import Tokenization
from ftray.errors import InputError
from ftray.evaluate.compare import compare
from ftray.evaluate.config import EvaluateConfig, Metric
from ftray.evaluate.expected_format import ExpectedFormat, Kept, expected_format, keep_to
from ftray.evaluate.outputs import (
    FORMAT_TASK,
    format_predictions,
    format_task,
    inspect_outputs,
    memorised_share,
    prefix_validity,
)  # fmt: skip
from ftray.evaluate.predict import Asked, RowPrediction, predict_task
from ftray.evaluate.tasks import build_task

JSON = AnswerFormat(kind="json")


def byte_tokens(text: str) -> list[int]:
    return list(text.encode())


def decode(tokens: Any) -> str:
    return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize(
    ("text", "valid_tokens", "valid"),
    [
        ('{"a": 1}', 8, True),
        ('{"a": 1', 7, False),
        ('{"a": 1} ok', 9, False),
        ('["ä"] x', 7, False),
        ('["äöü\n', 8, False),
        ("no", 0, False),
        ("", 0, False),
    ],
)
def test_an_answer_keeps_to_its_format_for_so_many_tokens(text: str, valid_tokens: int, valid: bool) -> None:
    tokens = byte_tokens(text)
    assert keep_to(JSON, tokens, text, decode) == Kept(num_tokens=len(tokens), valid_tokens=valid_tokens, valid=valid)


@given(st.text(alphabet='{}[]":,1 äa', max_size=20))
def test_halving_finds_what_going_token_by_token_finds(text: str) -> None:
    tokens = byte_tokens(text)
    one_by_one = 0
    for length in range(1, len(tokens) + 1):
        if JSON.valid_length(whole := decode(tokens[:length]).rstrip("\ufffd")) < len(whole):
            break
        one_by_one = length
    assert keep_to(JSON, tokens, text, decode).valid_tokens == one_by_one


def answer(tokens: int, valid_tokens: int, *, valid: bool = False, ended: bool = True, **texts: str) -> RowPrediction:
    fields: dict[str, Any] = {"prediction": "", "expected": "", **texts}
    return RowPrediction(
        task="task", row=0, prompt="", score=0.0, correct=False, nll=None, num_labels=1, num_bytes=1, ended=ended,
        kept=Kept(num_tokens=tokens, valid_tokens=valid_tokens, valid=valid), **fields,
    )  # fmt: skip


def test_validity_falls_where_answers_leave_the_format_or_end_unfinished() -> None:
    rows = [
        answer(2, 2, valid=True),  # ended and valid: valid for ever
        answer(5, 3),  # drifts after its third token
        answer(4, 4),  # ended after its fourth, unfinished
        answer(6, 6, ended=False),  # cut off, valid so far
        answer(0, 0),  # said nothing
    ]
    assert prefix_validity(rows) == (0.8, 0.8, 0.8, 0.4, 0.4, 0.4)
    assert prefix_validity([replace(row, kept=None) for row in rows]) is None
    assert prefix_validity([answer(0, 0)]) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans(), st.booleans()), min_size=1))
def test_validity_never_rises(drawn: list[tuple[int, int, bool, bool]]) -> None:
    rows = [
        answer(tokens, min(tokens, kept), valid=valid and 0 < tokens <= kept, ended=ended)
        for tokens, kept, valid, ended in drawn
    ]
    curve = prefix_validity(rows)
    assert (curve is None) == (max(tokens for tokens, *_ in drawn) == 0)
    assert list(curve or ()) == sorted(curve or (), reverse=True)
    assert all(0 <= share <= 1 for share in curve or ())


LONG = "The quick brown fox jumps over the lazy dog"


@pytest.mark.parametrize(
    ("given", "expected", "training", "share"),
    [
        (f"Sure: {LONG.upper()}  indeed", "a cat", [LONG], 1.0),
        (f"Sure: {LONG}", f"Yes. {LONG}", [LONG], 0.0),
        (f"Sure: {LONG[:-4]}", "a cat", [LONG], 0.0),
        (f"{LONG} {LONG} twice", "a cat", [f"{LONG} twice"], 1.0),
        (LONG, "a cat", ["too short to tell", ""], None),
        (LONG, "a cat", [], None),
        ("", "a cat", [LONG], 0.0),
    ],
)
def test_copies_of_training_answers_are_counted(
    given: str, expected: str, training: list[str], share: float | None
) -> None:
    assert memorised_share([answer(1, 1, prediction=given, expected=expected)], training) == share


def test_a_share_of_all_rows() -> None:
    rows = [answer(1, 1, prediction=text, expected="") for text in (LONG, "no", f"oh {LONG}", "what")]
    assert memorised_share(rows, ["no", LONG, LONG]) == 0.5


def test_a_format_is_declared_inferred_or_not_there() -> None:
    documents = [json.dumps({"n": n}) for n in range(20_000)]
    assert expected_format(EvaluateConfig(), documents) == ExpectedFormat(format=JSON, declared=False)
    assert expected_format(EvaluateConfig(format="json"), []) == ExpectedFormat(format=JSON, declared=True)
    assert expected_format(EvaluateConfig(), ["a text", "another"]) is None
    assert expected_format(EvaluateConfig(task=Metric(metric="choice")), documents) is None
    with pytest.raises(InputError, match="'choice' lets the model write none") as raised:
        expected_format(EvaluateConfig(task=Metric(metric="choice"), format="json"), documents)
    assert (raised.value.kind, raised.value.path) == ("metric_mismatch", "evaluate.format")


def test_a_declared_format_that_no_expected_answer_has_is_refused(tokenization: Tokenization, chat: Any) -> None:
    format = expected_format(EvaluateConfig(format=FormatConfig(pattern="[0-9]+")), [])
    given: dict[str, Any] = {
        "name": "task", "role": "task", "metric": Metric(), "tokenization": tokenization, "format": format,
    }  # fmt: skip
    build_task([chat("How many?", "5"), chat("And?", "six")], **given)
    with pytest.raises(InputError, match="row 0 is 'five'") as raised:
        build_task([chat("How many?", "five")], **given)
    assert (raised.value.kind, raised.value.path) == ("metric_mismatch", "evaluate.format")


def test_answers_are_generated_once_and_graded_twice(
    tiny_model: LlamaForCausalLM, tokenization: Tokenization, chat: Any
) -> None:
    rows = [chat(f"question {row}", '{"a": 1}', row=row) for row in range(3)]
    pattern = AnswerFormat(kind="pattern", pattern=r"(?s).{0,4}|\{.*\}")
    task = build_task(
        rows, name="task", role="task", metric=Metric(max_new_tokens=6), tokenization=tokenization,
        format=ExpectedFormat(format=pattern, declared=True),
    )  # fmt: skip
    asked = Asked(
        model=tiny_model, tokenizer=tokenization.tokenizer, stop_token_ids=tokenization.stop_token_ids, layout="padded"
    )
    given = predict_task(task, asked)
    assert all(row.kept is not None and row.ended == (row.kept.num_tokens < 6) for row in given)
    form = format_task(task)
    assert form is not None
    assert (form.name, form.role, form.metric.metric, form.format) == (FORMAT_TASK, "format", "format_valid", None)
    graded = format_predictions(given)
    assert [row.correct for row in graded] == [pattern.is_valid(row.prediction) for row in given]
    record = compare(form, graded, graded).to_record()
    assert (record["n"], record["p_value"], record["ended"] is not None) == (3, 1.0, True)
    found = inspect_outputs(task, given, given, ["a training answer of a good many words, more than eight"])
    assert found.to_record()["format"] == {
        "kind": "pattern", "declared": True, "description": pattern.describe(),
    }  # fmt: skip
    assert found.prefix_validity == found.prefix_validity_base
    assert found.prefix_validity is not None
    assert found.prefix_validity[:4] == (1.0, 1.0, 1.0, 1.0)
    assert found.memorised_share == 0.0
    assert format_task(replace(task, format=ExpectedFormat(format=pattern, declared=False))) is None
