"""Where the store lies: what survives a SIGKILL, and what is said of a place that is none, damaged or too new."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from outcome_world import answer, digests, opened, run_traffic, show, spec

from ftray.errors import InputError, RunError
from ftray.serve.outcomes.database import PostgresDatabase, SqliteDatabase, database_of, without_password
from ftray.serve.outcomes.store import open_outcomes

TESTS = Path(__file__).resolve().parent.parent
WRITE_UNTIL_KILLED = """
import sys, threading
from pathlib import Path
from outcome_world import answer, digests, show, spec
from ftray.serve.outcomes.store import open_outcomes

store = open_outcomes("sqlite", Path(sys.argv[1]))
experiment = store.create(spec(), digests(spec()))

def work(part):
    number = 0
    while True:
        unit = f"{part}-{number}"
        show(store, experiment, unit)
        answer(store, unit, float(number % 2), unit=unit)
        sys.stdout.write(unit + "\\n")
        sys.stdout.flush()
        number += 1

for part in range(4):
    threading.Thread(target=work, args=(part,), daemon=True).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_what_was_acknowledged_outlives_sigkill(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, "-c", WRITE_UNTIL_KILLED, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with process.stdout as acknowledged:
        units = [acknowledged.readline().strip() for _ in range(random.Random(seed).randrange(40, 200))]
        process.send_signal(signal.SIGKILL)
        units += [line.strip() for line in acknowledged if line.endswith("\n")]
    assert process.wait() == -signal.SIGKILL
    with opened("sqlite", tmp_path) as store:
        assert store.report("greeting") == store.recompute("greeting")
        counted = store.report("greeting")["looks"]
        assert counted >= len(units)
        for unit in units:
            assert answer(store, unit, float(int(unit.split("-")[1]) % 2), unit=unit) == "duplicate"
        assert store.report("greeting")["looks"] == counted


def test_sqlite_lies_in_the_folder_or_where_it_is_told(tmp_path: Path) -> None:
    with opened("sqlite", tmp_path / "store"):
        assert (tmp_path / "store" / "outcomes.sqlite").is_file()
    with opened(f"sqlite:///{tmp_path}/else/where.db", tmp_path):
        assert (tmp_path / "else" / "where.db").is_file()


def test_commits_are_flushed_to_the_disk(tmp_path: Path) -> None:
    with closing(SqliteDatabase(tmp_path / "outcomes.sqlite").connect()) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_what_is_purged_leaves_no_trace(tmp_path: Path) -> None:
    secret = "a very private question " * 40
    with opened("sqlite", tmp_path) as store:
        store.keep("r", arm="base", prompt=secret, answer="yes", until=1.0)
    file = tmp_path / "outcomes.sqlite"
    assert b"very private" in file.read_bytes()
    with opened("sqlite", tmp_path) as store:
        assert store.purge(2.0) == 1
    assert b"very private" not in file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["outcomes.sqlite"]


@pytest.mark.parametrize("url", ["mysql://root:secret@db/x", "sqlite:", "sqlite:///", "outcomes.db", ""])
def test_a_place_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_outcomes(url, tmp_path)
    assert caught.value.kind == "bad_value"
    assert "postgresql://" in str(caught.value.allowed)
    assert "secret" not in str(caught.value.to_record())


def test_tables_of_a_newer_ftray_are_refused(tmp_path: Path) -> None:
    with opened("sqlite", tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "outcomes.sqlite")) as connection, connection:
        connection.execute("UPDATE ftray_store SET version = 99")
    with pytest.raises(InputError, match="newer ftray") as caught:
        open_outcomes("sqlite", tmp_path)
    assert (caught.value.kind, caught.value.given, caught.value.allowed) == ("incompatible", 99, 1)


@pytest.mark.parametrize("content", [b"{}" * 4000, b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "outcomes.sqlite").write_bytes(content)
    with pytest.raises(InputError, match="cannot be used as a database of outcomes") as caught:
        open_outcomes("sqlite", tmp_path)
    assert caught.value.file == str(tmp_path / "outcomes.sqlite")
    assert (tmp_path / "outcomes.sqlite").read_bytes() == content


def test_a_damaged_page_is_found_when_the_store_is_opened(tmp_path: Path) -> None:
    with opened("sqlite", tmp_path) as store:
        run_traffic(store, store.create(spec(), digests(spec())), range(60), rates={"base": 0.5, "tuned": 0.5})
    file = tmp_path / "outcomes.sqlite"
    content = bytearray(file.read_bytes())
    for page in range(4, len(content) // 4096, 3):
        content[page * 4096 : page * 4096 + 64] = bytes(64)
    file.write_bytes(content)
    with pytest.raises(InputError, match="cannot be used as a database of outcomes"):
        open_outcomes("sqlite", tmp_path)


def test_a_store_that_loses_its_tables_says_so_and_goes_on(tmp_path: Path) -> None:
    with opened("sqlite", tmp_path) as store:
        experiment = store.create(spec(), digests(spec()))
        with closing(sqlite3.connect(tmp_path / "outcomes.sqlite")) as connection, connection:
            connection.execute("ALTER TABLE ftray_exposures RENAME TO elsewhere")
        with pytest.raises(RunError, match="cannot be reached: no such table"):
            show(store, experiment, "ann")
        with closing(sqlite3.connect(tmp_path / "outcomes.sqlite")) as connection, connection:
            connection.execute("ALTER TABLE elsewhere RENAME TO ftray_exposures")
        assert show(store, experiment, "ann").is_new


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        open_outcomes("sqlite", tmp_path / "file")
    assert caught.value.kind == "storage"


def test_without_psycopg_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError) as caught:
        database_of("postgresql://ann:secret@db/x", tmp_path)
    assert caught.value.kind == "missing_package"
    assert "ftray[postgres]" in caught.value.hint
    assert "secret" not in str(caught.value.to_record())


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(InputError, match="cannot be reached") as caught:
        open_outcomes(f"postgresql://ann:secret@/x?host={tmp_path}", tmp_path)
    assert caught.value.kind == "storage"
    assert "secret" not in str(caught.value.to_record())
    assert without_password("postgresql://ann:secret@db:5432/x?sslmode=require") == "postgresql://db:5432/x"
    assert PostgresDatabase("postgres://db/x").spell("SELECT ?") == "SELECT %s"
