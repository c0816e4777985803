"""Lines are followed from where a file ends, each once, and only whole ones."""

from __future__ import annotations

import json
from pathlib import Path

from ftray.follow import Tail, following


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_tail_begins_at_the_end_and_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, '{"step": 1}\n{"st')
    tail = Tail(path)
    assert tail.lines() == []
    append(path, 'ep": 2}\n{"step": 3')
    assert tail.lines() == [{"step": 2}]
    append(path, "}\n")
    assert tail.lines() == [{"step": 3}]
    assert tail.lines() == []


def test_a_file_that_is_not_there_yet_is_read_from_its_start(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "metrics.jsonl")
    assert tail.lines() == []
    append(tmp_path / "metrics.jsonl", '{"step": 1}\n')
    assert tail.lines() == [{"step": 1}]


def test_following_passes_on_what_was_written_up_to_its_end(tmp_path: Path) -> None:
    seen: list[dict[str, int]] = []
    with following(tmp_path / "metrics.jsonl", seen.append):
        for step in range(3):
            append(tmp_path / "metrics.jsonl", json.dumps({"step": step}) + "\n")
    assert [line["step"] for line in seen] == [0, 1, 2]
