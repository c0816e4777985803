"""metrics.jsonl is written first, read back without superseded lines, and mirrored."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from ftray.artifacts import append_line, read_lines
from ftray.errors import InputError
from ftray.follow import following
from ftray.tracking import MODULES, Tracker, current_lines, next_attempt, open_mirrors, require_trackers


class Notebook:
    """A mirror that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, values: dict[str, float]) -> None:
        self.lines.append((step, values))

    def close(self) -> None:
        self.closed = True


def test_a_line_goes_to_the_file_then_to_mirrors_and_display(tmp_path: Path) -> None:
    mirror, shown = Notebook(), list[dict[str, Any]]()
    tracker = Tracker(tmp_path / "metrics.jsonl", attempt=3, mirrors=[mirror], also=shown.append)
    tracker.report({"step": 5, "epoch": 0.5, "kind": "step", "train/loss": 1.5, "train/tokens": 80})
    tracker.report({"step": 5, "epoch": 0.5, "kind": "event", "event": "resumed"})
    tracker.close()
    first, second = read_lines(tmp_path / "metrics.jsonl")
    assert shown == [first, second]
    assert {key: first[key] for key in ("attempt", "step", "kind", "train/loss")} == {
        "attempt": 3, "step": 5, "kind": "step", "train/loss": 1.5,
    }  # fmt: skip
    assert first["time"].endswith("Z")
    assert mirror.lines == [(5, {"train/loss": 1.5, "train/tokens": 80.0}), (5, {})]
    assert mirror.closed


def test_of_equal_steps_the_latest_attempt_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for attempt, step, kind, loss in (
        (1, 1, "step", 5.0), (1, 2, "step", 4.0), (1, 2, "evaluation", 3.0), (1, 3, "step", 2.0),
        (2, 2, "step", 4.5), (2, 2, "evaluation", 3.5),
    ):  # fmt: skip
        append_line(path, {"attempt": attempt, "step": step, "kind": kind, "loss": loss})
    lines = [(line["step"], line["kind"], line["loss"]) for line in current_lines(path)]
    assert lines == [(1, "step", 5.0), (2, "step", 4.5), (2, "evaluation", 3.5), (3, "step", 2.0)]


def test_events_of_all_attempts_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for attempt in (1, 2):
        append_line(path, {"attempt": attempt, "step": 0, "kind": "event", "event": f"attempt {attempt}"})
    assert [line["event"] for line in current_lines(path)] == ["attempt 1", "attempt 2"]


def test_an_attempt_is_one_more_than_any_line_says(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert next_attempt(path) == 1
    append_line(path, {"attempt": 4, "step": 1, "kind": "step"})
    append_line(path, {"attempt": 2, "step": 1, "kind": "step"})
    assert next_attempt(path) == 5


def test_tensorboard_files_hold_the_numbers_names(tmp_path: Path) -> None:
    (mirror,) = open_mirrors(["tensorboard"], folder=tmp_path, name="job", run_id="0" * 64, params={})
    mirror.log(7, {"train/loss": 1.25})
    mirror.close()
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    assert b"train/loss" in events.read_bytes()


def test_no_trackers_no_mirrors(tmp_path: Path) -> None:
    assert open_mirrors([], folder=tmp_path, name="job", run_id="0" * 64, params={}) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(name: str) -> None:
    if importlib.util.find_spec(MODULES[name]) is not None:
        require_trackers([name])
        return
    with pytest.raises(InputError, match=name) as caught:
        require_trackers(["tensorboard", name])
    assert caught.value.kind == "missing_package"
    assert f"ftray[{name}]" in caught.value.hint
    assert name not in caught.value.allowed


def test_what_follows_a_torn_line_is_kept(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"attempt": 1, "step": 1, "kind": "step"}\n{"attempt": 1, "st')
    tracker = Tracker(metrics, attempt=2, mirrors=[], also=lambda line: None)
    tracker.report({"step": 1, "epoch": 0.1, "kind": "event", "event": "resumed"})
    assert [line["attempt"] for line in read_lines(metrics)] == [1, 2]
    assert all(json.loads(line) for line in metrics.read_text().splitlines())


def test_who_follows_a_torn_file_sees_the_next_line_whole(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"attempt": 1, "step": 1, "kind": "step"}\n{"attempt": 1, "st')
    seen: list[dict[str, Any]] = []
    with following(metrics, seen.append):
        tracker = Tracker(metrics, attempt=2, mirrors=[], also=lambda line: None)
        tracker.report({"step": 1, "epoch": 0.1, "kind": "event", "event": "resumed"})
    assert [line["event"] for line in seen] == ["resumed"]
