"""Replay rows as they are read and tokenized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftray.data.config import ReplayConfig
from ftray.data.replay import (
    ReplayRows,
    SampledTexts,
    mix_replay,
    read_sampled,
    require_one_origin,
    stand_ins,
)
from ftray.data.tokenization import Tokenization
from ftray.errors import InputError


def write(path: Path, *texts: str, is_ended: bool = True, is_answer: bool = False) -> Path:
    lines = [{"number": n, "text": text, "is_ended": is_ended, "is_answer": is_answer} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def sampled_rows(file: Path, *, fraction: float = 0.5, count: int = 2) -> ReplayRows:
    config = ReplayConfig(sample_base=count, fraction=fraction)
    return ReplayRows(config=config, origin="the base", examples=read_sampled(file), digest="0")


@pytest.fixture
def plain(make_tokenizer: Any) -> Tokenization:
    return Tokenization(make_tokenizer(), template=None, loss_on="all_turns", max_length=40)


def mix(rows: ReplayRows, plain: Tokenization, *, num_task_rows: int = 4) -> Any:
    return mix_replay(rows, plain, num_task_rows=num_task_rows, seed=0, max_dropped=0.0, on_overlong="error")


def test_a_text_that_ended_learns_its_end_and_one_that_was_cut_off_does_not(
    plain: Tokenization, tmp_path: Path
) -> None:
    for is_ended in (True, False):
        file = write(tmp_path / f"{is_ended}.jsonl", "a fox", is_ended=is_ended)
        (row, *_) = mix(sampled_rows(file), plain).rows
        assert row.tokens[-1] == plain.tokenizer.eos_token_id
        assert row.is_label.tolist() == [False] + [True] * 5 + [is_ended]


def test_fewer_rows_than_the_fraction_asks_for_repeat(plain: Tokenization, tmp_path: Path) -> None:
    replay = mix(sampled_rows(write(tmp_path / "t.jsonl", "one", "two", "three")), plain, num_task_rows=7)
    assert (len(replay.rows), replay.distinct, replay.available) == (7, 3, 3)
    assert replay.share == 0.5
    record = replay.to_record()
    assert (record["rows"], record["distinct"], record["is_sampled"]) == (7, 3, True)
    assert record["tokens"] == sum(len(row.tokens) for row in replay.rows)


def test_sampled_texts_that_do_not_fit_are_dropped_and_counted(plain: Tokenization, tmp_path: Path) -> None:
    replay = mix(sampled_rows(write(tmp_path / "t.jsonl", "one", "x" * 60)), plain)
    assert (replay.available, len(replay.dropped)) == (1, 1)
    with pytest.raises(InputError) as caught:
        mix(sampled_rows(write(tmp_path / "t.jsonl", "x" * 60)), plain)
    assert (caught.value.kind, caught.value.path) == ("empty_dataset", "data.replay")


def test_answers_are_conversations_with_an_empty_question(tmp_path: Path) -> None:
    (example,) = read_sampled(write(tmp_path / "t.jsonl", "Hello.", is_answer=True))
    assert [(turn.role, turn.content) for turn in example.messages] == [("user", ""), ("assistant", "Hello.")]
    assert example.text is None


def test_stand_ins_have_the_greatest_length_and_differ(plain: Tokenization, tmp_path: Path) -> None:
    texts = SampledTexts(file=tmp_path / "none.jsonl", count=5, longest=40)
    rows = stand_ins(texts)
    assert {len(row.tokens) for row in rows} == {40}
    assert len({row.digest for row in rows}) == 5
    config = ReplayConfig(sample_base=5, fraction=0.5)
    waiting = ReplayRows(config=config, origin="the base", examples=[], digest=None, unsampled=texts)
    replay = mix(waiting, plain)
    assert not replay.is_sampled
    assert (len(replay.rows), replay.distinct) == (4, 4)
    assert all(np.count_nonzero(row.is_label) == 39 for row in replay.rows)


@pytest.mark.parametrize(
    ("settings", "kind", "path"),
    [
        ({}, "bad_value", "data.replay"),
        ({"path": "a.txt", "sample_base": 3}, "bad_value", "data.replay"),
        ({"sample_base": 3, "limit": 2}, "no_effect", "data.replay.limit"),
        ({"sample_base": 3, "prompt": "{q}", "completion": "{a}"}, "no_effect", "data.replay.prompt"),
    ],
)
def test_rows_come_from_one_place(settings: dict[str, Any], kind: str, path: str) -> None:
    with pytest.raises(InputError) as caught:
        require_one_origin(ReplayConfig(fraction=0.2, **settings))
    assert (caught.value.kind, caught.value.path) == (kind, path)
    assert caught.value.hint
