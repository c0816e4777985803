"""Records are written whole or not at all, and equal values have equal digests."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.artifacts import (
    RunDirectory,
    append_line,
    canonical_json,
    digest_file,
    digest_of,
    drop_torn_line,
    jsonable,
    now,
    read_json,
    read_lines,
    run_lock,
    write_json,
    write_text,
)
from ftray.errors import InputError, RunError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@given(VALUES)
def test_jsonable_values_hold_only_finite_numbers_and_survive_json(value: Any) -> None:
    clean = jsonable(value)
    assert finite(clean)
    assert json.loads(json.dumps(clean, allow_nan=False)) == clean
    assert jsonable(clean) == clean


@given(st.dictionaries(st.text(max_size=4), VALUES, min_size=2, max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(record: dict[str, Any]) -> None:
    turned = dict(reversed(record.items()))
    assert canonical_json(turned) == canonical_json(record)
    assert digest_of(turned) == digest_of(record)


def test_a_digest_is_the_sha256_of_the_canonical_json() -> None:
    assert canonical_json({"b": [1, 0.5, math.nan], "a": "ä"}) == '{"a":"ä","b":[1,0.5,null]}'
    assert digest_of({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x00\xff" * 100_000)
    assert digest_file(tmp_path / "x") == hashlib.sha256(b"\x00\xff" * 100_000).hexdigest()


def test_times_are_utc_in_iso_8601() -> None:
    stamp = now()
    assert stamp.endswith("Z")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()) < 5


def test_json_records_come_back_and_leave_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"value": math.inf, "name": "grün"})
    write_json(path, {"value": math.nan, "name": "blau"})
    assert read_json(path) == {"value": None, "name": "blau"}
    assert "blau" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_record_names_its_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{\n"a": ,\n}')
    with pytest.raises(InputError, match="is not JSON") as caught:
        read_json(path)
    assert (caught.value.kind, caught.value.file, caught.value.line) == ("bad_record", str(path), 2)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from ftray.artifacts import append_line, write_text
from ftray.errors import RunError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path(sys.argv[1])
write_text(path, "old")
lines = path.with_suffix(".jsonl")
for write, place, what in ((write_text, path, "x" * 10_000), (append_line, lines, {"a": "x" * 9000})):
    try:
        write(place, what)
    except RunError as error:
        print(error.kind, error.file, error.hint)
"""


def test_a_full_disk_is_a_run_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.txt"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["unknown", str(path)],
        ["unknown", str(path.with_suffix(".jsonl"))],
    ]
    assert "space" in done.stdout
    assert path.read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_a_place_that_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        write_text(tmp_path / "missing" / "record.txt", "x")


def test_lines_are_read_in_the_order_they_were_appended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    for step in range(3):
        append_line(path, {"step": step, "loss": math.nan})
    assert read_lines(path) == [{"step": step, "loss": None} for step in range(3)]


def test_a_line_torn_by_a_crash_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 0})
    with path.open("a") as file:
        file.write('{"step": 1, "lo')
    assert read_lines(path) == [{"step": 0}]
    drop_torn_line(path)
    append_line(path, {"step": 1})
    append_line(path, {"step": 2})
    assert read_lines(path) == [{"step": 0}, {"step": 1}, {"step": 2}]
    assert path.read_text().count("lo") == 0


def test_text_that_is_no_record_is_not_ignored(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\nhello\nworld\n{"step": 1}\n')
    with pytest.raises(InputError, match="not JSON") as caught:
        read_lines(path)
    assert (caught.value.kind, caught.value.line) == ("bad_record", 2)


def test_a_run_directory_has_the_names_of_the_contract(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    names = ["job", "audit", "plan", "metrics", "checkpoints", "evaluation", "predictions", "selection", "adapter"]
    assert [getattr(run, name).name for name in [*names, "result", "report"]] == [
        "job.json", "audit.json", "plan.json", "metrics.jsonl", "checkpoints", "evaluation.json", "predictions.jsonl",
        "selection.json", "adapter", "result.json", "report.html",
    ]  # fmt: skip


def test_a_run_directory_is_made_with_its_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "b")
    run.create()
    run.create()
    assert [path.name for path in run.root.iterdir()] == ["checkpoints"]


def test_a_run_directory_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="cannot be written") as caught:
        RunDirectory(tmp_path / "runs" / "mine").create()
    assert caught.value.kind == "storage"
    assert "--storage" in caught.value.hint


HOLDER = """
import sys, time
from pathlib import Path
from ftray.artifacts import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_is_locked_while_its_process_lives(tmp_path: Path) -> None:
    path = tmp_path / ".driver.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(InputError, match=f"process {holder.pid}") as caught, run_lock(path):
                pass
            assert caught.value.kind == "run_locked"
        finally:
            holder.kill()
    with run_lock(path):
        assert "process" in path.read_text()
    with run_lock(path):
        pass
